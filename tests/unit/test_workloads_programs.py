"""The workloads' programs, run on this host with small sizes: results, mistakes, marks, and errors made on purpose."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from workloads import catalogue
from workloads.build import compile_command

NAMES = catalogue.names()
SMALL: dict[str, list[str]] = {
    "gups": ["--size", "1M", "--updates", "10k"],
    "btree": ["--size", "1M", "--lookups", "10k"],
    "stream": ["--size", "768K", "--iterations", "2"],
    "memops": ["--size", "64K", "--iterations", "3"],
    "samepage": ["--size", "1M", "--seconds", "0.1"],
    # Without swap: that is reclaim of the whole machine.
    "churn": ["--size", "64K", "--seconds", "0.2", "--processes", "2", "--ways", "merge,unmerge,fork,exit,migrate"],
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Compiled as for the guest, but warnings are errors."""
    found = {}
    for name in NAMES:
        found[name] = tmp_path_factory.mktemp("programs") / name
        command = compile_command(name, found[name], "-Werror", "-Wshadow", "-Wconversion")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return found


def run(program: Path, *options: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *options], capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **(env or {})}
    )


def result(program: Path, *options: str) -> dict[str, Any]:
    done = run(program, *options)
    assert done.returncode == 0, done.stderr
    catalogue.get(program.name).parse(done.stdout.encode())  # raises unless the entry knows every metric
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1].removeprefix("numalab-result: "))
    return values


class Marked:
    """A program under way with a mark channel whose other end we hold."""

    def __init__(self, program: Path, *options: str) -> None:
        self.host, guest = socket.socketpair()
        self.host.settimeout(30)
        self.process = subprocess.Popen(
            [program, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[guest.fileno()],
            env={**os.environ, "NUMALAB_MARK_FD": str(guest.fileno())},
        )
        guest.close()

    def next_mark(self) -> str:
        name = b""
        while not name.endswith(b"\n"):
            byte = self.host.recv(1)
            if not byte:
                return ""
            name += byte
        return name.decode().rstrip("\n")

    def answer(self, byte: bytes = b"\n") -> None:
        self.host.sendall(byte)

    def run_to(self, name: str) -> None:
        while (mark := self.next_mark()) != name:
            assert mark, f"ended before the mark {name}"
            self.answer()

    def finish(self) -> tuple[int, str, str]:
        while self.next_mark():
            self.answer()
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out.decode(), err.decode()


@contextmanager
def marked(program: Path, *options: str) -> Iterator[Marked]:
    one = Marked(program, *options)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.communicate()
        one.host.close()


def region_of(pid: int, size: int) -> int:
    """Address of the region of a process: its largest anonymous mapping, `size` bytes at least."""
    found = re.findall(
        r"^([0-9a-f]+)-([0-9a-f]+) rw-p 00000000 00:00 0\s*$", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE
    )
    length, start = max((int(end, 16) - int(start, 16), int(start, 16)) for start, end in found)
    assert length >= size
    assert start % (2 << 20) == 0
    return start


def poke(pid: int, address: int, data: bytes) -> None:
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        memory.seek(address)
        memory.write(data)


def peek(pid: int, address: int, length: int) -> bytes:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(length)


def spoil_leaves(pid: int, offset: int, data: bytes) -> None:
    """Write `data` at `offset` of every leaf of a btree of 1 MiB."""
    start = region_of(pid, 1 << 20)
    for node in range(start, start + (1 << 20), 256):
        if peek(pid, node, 8) == b"\1" + b"\0" * 7:
            poke(pid, node + offset, data)


@pytest.mark.parametrize("name", NAMES)
def test_result_line_is_last_and_known(programs: dict[str, Path], name: str) -> None:
    done = run(programs[name], *SMALL[name])
    assert (done.returncode, done.stderr) == (0, "")
    people, line = done.stdout.splitlines()
    assert people.startswith(f"{name}: ")
    samples = {sample.metric: sample.value for sample in catalogue.get(name).parse(done.stdout.encode())}
    assert samples["seconds"] is not None
    assert samples["seconds"] > 0
    assert line.startswith("numalab-result: ")


@pytest.mark.parametrize("name", NAMES)
def test_help_lists_what_the_catalogue_lists(programs: dict[str, Path], name: str) -> None:
    done = run(programs[name], "--help")
    assert done.returncode == 0
    assert re.findall(r"^  --([\w-]+)", done.stdout, re.MULTILINE) == list(catalogue.get(name).params)


@pytest.mark.parametrize("name", NAMES)
def test_catalogue_defaults_are_the_programs(programs: dict[str, Path], name: str) -> None:
    """Every default that the catalogue states is accepted, and stated in the help too."""
    params = catalogue.get(name).params
    text = " ".join(run(programs[name], "--help").stdout.split())
    for key, param in params.items():
        if param.default not in (None, False) and not param.choices and param.default != 0:
            assert re.search(
                rf"--{key} .*?\(default {re.escape(str(param.default))}\)|{param.default} \(default\)", text
            )


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("gups", ["--sise", "1M"], "unknown option '--sise' (did you mean '--size'?)"),
        ("gups", ["--colour"], "unknown option '--colour'\n"),
        ("gups", ["size"], "'size' is not an option"),
        ("gups", ["--size"], "--size needs a value"),
        ("gups", ["--size", "12Q"], "--size: '12Q' is not a size (write 4096, 64K, 512M or 2G)"),
        ("gups", ["--size", "-1"], "is not a size"),
        ("gups", ["--size", "99999999T"], "is not a size"),
        ("gups", ["--size", "1"], "too small (at least 4096 bytes)"),
        ("gups", ["--size=1M", "--size=1M"], "--size is given twice"),
        ("gups", ["--updates", "0"], "too small"),
        ("gups", ["--updates", "1.5"], "is not a count"),
        ("gups", ["--verify=yes"], "--verify takes no value"),
        ("gups", ["--threads", "5000"], "too large (at most 4096)"),
        ("gups", ["--cpus", "0,4095"], "--cpus: CPU 4095 does not exist"),
        ("gups", ["--cpus", "0-"], "'0-' is not a list such as 0-3,8"),
        ("gups", ["--cpus", "3-1"], "is not a list"),
        ("gups", ["--memory", "bind"], "is not first-touch, local, bind:NODES or interleave:NODES"),
        ("gups", ["--memory", "bind:1023"], "--memory: node 1023 has no memory to be used here (these have: 0"),
        ("gups", ["--tables", "interleave:x"], "--tables: 'x' is not a list"),
        ("gups", ["--huge", "allways"], "not one of default|always|never (did you mean 'always'?)"),
        ("gups", ["--init", "parallel", "--init-cpu", "0"], "--init-cpu names the CPU of --init single"),
        ("btree", ["--keys", "10", "--size", "1M"], "give one of them"),
        ("btree", ["--misses", "101"], "too large (at most 100)"),
        ("stream", ["--seconds", "0"], "--seconds: '0' is not a number of seconds above 0"),
        ("stream", ["--seconds", "soon"], "not a number of seconds"),
        ("stream", ["--forever", "--seconds", "1"], "--forever has no end"),
        ("stream", ["--node", "0", "--memory", "local"], "give one of them"),
        ("memops", ["--ops", "mmap,mprotec"], "'mprotec' is not one of"),
        ("memops", ["--init", "single"], "unknown option '--init'"),
    ],
)
def test_bad_usage(programs: dict[str, Path], name: str, options: list[str], words: str) -> None:
    done = run(programs[name], *options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"{name}: ")
    assert words in done.stderr


def test_too_much_memory_is_said_before_it_is_taken(programs: dict[str, Path]) -> None:
    done = run(programs["gups"], "--size", "8000T")
    assert done.returncode == 1
    assert re.search(r"8388608000 MiB of memory are needed, \d+ MiB are available", done.stderr)


def test_full_disk_is_a_failure(programs: dict[str, Path]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [programs["gups"], *SMALL["gups"]], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert "cannot write the result" in done.stderr


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("init", ["parallel", "single"])
def test_gups_verifies(programs: dict[str, Path], threads: str, init: str) -> None:
    options = [*SMALL["gups"], "--verify", "--threads", threads, "--init", init, "--cpus", "0"]
    values = result(programs["gups"], *options)
    assert values["updates"] == 10_000
    assert values["table_bytes"] == 1 << 20
    assert values["errors"] <= (0 if threads == "1" else 0.01 * (1 << 17))


def test_gups_without_verification_reports_no_errors_figure(programs: dict[str, Path]) -> None:
    assert result(programs["gups"], *SMALL["gups"])["errors"] is None


def test_gups_notices_a_wrong_word(programs: dict[str, Path]) -> None:
    with marked(programs["gups"], *SMALL["gups"], "--verify") as gups:
        gups.run_to("ready")
        poke(gups.process.pid, region_of(gups.process.pid, 1 << 20) + 4096, b"\xff" * 8)
        gups.answer()
        status, out, err = gups.finish()
    assert status == 1
    assert '"errors": 1' in out
    assert "1 of 131072 words are wrong" in err


def test_btree_finds_every_key(programs: dict[str, Path]) -> None:
    values = result(programs["btree"], *SMALL["btree"], "--threads", "2")
    assert values["found"] == values["lookups"] == 10_000
    assert values["errors"] == 0
    assert values["tree_bytes"] <= 1 << 20
    assert values["tree_bytes"] == values["nodes"] * 256


def test_btree_does_not_find_absent_keys(programs: dict[str, Path]) -> None:
    values = result(programs["btree"], *SMALL["btree"], "--misses", "100")
    assert values["found"] == 0
    part = result(programs["btree"], *SMALL["btree"], "--misses", "25")["found"]
    assert 7_300 < part < 7_700


@pytest.mark.parametrize("keys", [1, 15, 16, 240, 241, 3841])
def test_btree_of_few_keys(programs: dict[str, Path], keys: int) -> None:
    values = result(programs["btree"], "--keys", str(keys), "--lookups", "2000")
    assert (values["keys"], values["found"]) == (keys, 2000)
    assert values["depth"] == next(depth for depth in range(1, 9) if 15 * 16 ** (depth - 1) >= keys)


def test_btree_notices_wrong_values(programs: dict[str, Path]) -> None:
    with marked(programs["btree"], *SMALL["btree"]) as btree:
        btree.run_to("ready")
        spoil_leaves(btree.process.pid, 128, b"\xaa" * 120)
        btree.answer()
        status, out, err = btree.finish()
    assert status == 1
    assert '"errors": 10000' in out
    assert "10000 lookups returned a wrong value" in err


def test_btree_notices_lost_keys(programs: dict[str, Path]) -> None:
    with marked(programs["btree"], *SMALL["btree"]) as btree:
        btree.run_to("ready")
        spoil_leaves(btree.process.pid, 8, b"\xff" * 120)
        btree.answer()
        status, out, err = btree.finish()
    assert status == 1
    assert '"errors": 1' in out
    assert "10000 keys should have been found, 0 were" in err


def test_same_seed_same_run(programs: dict[str, Path]) -> None:
    def found(seed: str) -> int:
        return int(result(programs["btree"], *SMALL["btree"], "--misses", "50", "--seed", seed)["found"])

    assert found("7") == found("7")
    assert found("7") != found("8")


def test_stream_checks_and_counts(programs: dict[str, Path]) -> None:
    values = result(programs["stream"], *SMALL["stream"], "--threads", "2", "--node", "0")
    assert values["iterations"] == 2
    assert values["errors"] == 0
    assert values["bytes_moved"] == 2 * 10 * 256 * 1024
    assert values["bytes_per_second"] <= max(
        values[f"{kernel}_bytes_per_second"] for kernel in ("copy", "scale", "add", "triad")
    )


def test_stream_values_stay_exact_over_many_rounds(programs: dict[str, Path]) -> None:
    assert result(programs["stream"], "--size", "12288", "--iterations", "5k")["errors"] == 0


def test_stream_notices_a_wrong_value(programs: dict[str, Path]) -> None:
    with marked(programs["stream"], *SMALL["stream"]) as stream:
        stream.run_to("ready")
        poke(stream.process.pid, region_of(stream.process.pid, 768 << 10) + 800, b"\x11" * 8)
        stream.answer()
        status, out, err = stream.finish()
    assert status == 1
    assert '"errors": 3' in out  # a, b and c of one element
    assert "3 values are wrong" in err


def test_stream_for_some_seconds(programs: dict[str, Path]) -> None:
    values = result(programs["stream"], "--size", "768K", "--seconds", "0.2")
    assert values["seconds"] >= 0.2
    assert values["iterations"] > 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stream_in_the_background_ends_with_its_result(programs: dict[str, Path], number: signal.Signals) -> None:
    with marked(programs["stream"], "--size", "768K", "--forever") as stream:
        stream.run_to("ready")
        stream.answer()
        time.sleep(0.2)
        assert stream.process.poll() is None
        stream.process.send_signal(number)
        status, out, err = stream.finish()
    assert (status, err) == (0, "")
    assert "ended by a signal" in out
    values = {sample.metric: sample.value for sample in catalogue.get("stream").parse(out.encode())}
    assert values["iterations"]
    assert values["errors"] == 0


def test_signal_while_waiting_at_a_mark(programs: dict[str, Path]) -> None:
    with marked(programs["stream"], "--size", "768K", "--forever") as stream:
        stream.run_to("ready")
        stream.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert stream.process.poll() is None  # still waiting for the answer
        stream.answer()
        status, out, _ = stream.finish()
    assert status == 0
    assert "1 rounds" in out


def test_memops_counts_every_operation(programs: dict[str, Path]) -> None:
    ops = "mmap,mprotect,munmap,fault,fork"
    values = result(
        programs["memops"], "--size", "64K", "--iterations", "7", "--batch", "3", "--threads", "2", "--ops", ops
    )
    assert values["pages"] == 16
    for op in ops.split(","):
        assert values[f"{op}_count"] == 14
        assert (
            0 < values[f"{op}_ns_min"] <= values[f"{op}_ns_median"] <= values[f"{op}_ns_p99"] <= values[f"{op}_ns_max"]
        )
        assert values[f"{op}_ns_min"] <= values[f"{op}_ns_mean"] <= values[f"{op}_ns_max"]


def test_memops_faults_every_page_of_what_it_maps(programs: dict[str, Path]) -> None:
    values = result(programs["memops"], "--size", "1M", "--iterations", "2", "--ops", "fault", "--huge", "never")
    assert "mmap_count" not in values
    assert 512 <= values["minor_faults"] < 512 + 64


@pytest.mark.parametrize("options", [[], ["--mapping", "shared"], ["--memory", "bind:0", "--tables", "local"]])
def test_memops_kinds_of_mapping(programs: dict[str, Path], options: list[str]) -> None:
    values = result(programs["memops"], *SMALL["memops"], "--ops", "mmap,fault", *options)
    assert values["mmap_count"] == values["fault_count"] == 3


def test_memops_marks_operations(programs: dict[str, Path]) -> None:
    options = ["--size", "8K", "--iterations", "3", "--batch", "2", "--ops", "mprotect,munmap,fault", "--mark-ops"]
    seen = []
    with marked(programs["memops"], *options, "--threads", "2") as memops:
        while mark := memops.next_mark():
            seen.append(mark)
            memops.answer()
    batch = [f"{op}-{where}" for op in ("mprotect", "munmap", "fault") for where in ("begin", "end")]
    assert seen == ["init", "ready", *batch, *batch, "done"]


def test_memops_counts_fork_and_exit_as_one(programs: dict[str, Path]) -> None:
    values = result(programs["memops"], "--size", "64K", "--iterations", "3", "--ops", "fork,forkexit")
    assert values["forkexit_count"] == 3
    assert values["fork_ns_min"] < values["forkexit_ns_max"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--count", "--threads", "2"], "leave out --threads"),
        (["--count", "--batch", "2"], "leave out --threads and --batch"),
        (["--count", "--mark-ops"], "exclude each other"),
        (["--count", "--ops", "fork"], "has forkexit, not fork"),
        (["--touchers", "one"], "--touchers goes with --count"),
        (["--count", "--touchers", "al"], "did you mean 'all'?"),
    ],
)
def test_memops_counting_has_its_limits(programs: dict[str, Path], options: list[str], words: str) -> None:
    done = run(programs["memops"], *options)
    assert done.returncode == 2
    assert words in done.stderr


def test_memops_counts_only_where_it_can(programs: dict[str, Path]) -> None:
    """Time stamps of this host are no instructions, and are not taken for any."""
    done = run(programs["memops"], "--count", "--size", "64K")
    assert done.returncode == 1
    assert "does not count instructions" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("name", NAMES)
def test_marks_come_in_order_and_wait(programs: dict[str, Path], name: str) -> None:
    with marked(programs[name], *SMALL[name]) as program:
        for expected in ("init", "ready", "done"):
            assert program.next_mark() == expected
            program.host.settimeout(0.1)
            with pytest.raises(TimeoutError):
                program.host.recv(1)  # nothing more until it is answered
            program.host.settimeout(30)
            assert program.process.poll() is None
            program.answer()
        status, out, err = program.finish()
    assert (status, err) == (0, "")
    assert "numalab-result: " in out


def test_region_is_mapped_while_done_waits(programs: dict[str, Path]) -> None:
    with marked(programs["gups"], *SMALL["gups"]) as gups:
        gups.run_to("done")
        assert len(peek(gups.process.pid, region_of(gups.process.pid, 1 << 20), 4096)) == 4096


def test_host_gone(programs: dict[str, Path]) -> None:
    with marked(programs["gups"], *SMALL["gups"]) as gups:
        gups.run_to("ready")
        gups.host.shutdown(socket.SHUT_RDWR)
        out, err = gups.process.communicate(timeout=30)
    assert gups.process.returncode == 1
    assert out == b""
    assert b"gups: mark 'ready': the host closed the mark channel" in err


def test_host_gone_before_a_mark(programs: dict[str, Path]) -> None:
    with marked(programs["stream"], "--size", "12M", "--iterations", "1") as stream:
        stream.run_to("ready")
        # It must not get as far as its next mark in between.
        stream.process.send_signal(signal.SIGSTOP)
        stream.answer()
        stream.host.shutdown(socket.SHUT_RDWR)
        stream.process.send_signal(signal.SIGCONT)
        _, err = stream.process.communicate(timeout=30)
    assert stream.process.returncode == 1
    assert b"mark 'done': cannot write to the host" in err


def test_wrong_answer(programs: dict[str, Path]) -> None:
    with marked(programs["gups"], *SMALL["gups"]) as gups:
        assert gups.next_mark() == "init"
        gups.answer(b"x")
        _, err = gups.process.communicate(timeout=30)
    assert gups.process.returncode == 1
    assert b"answered with byte 0x78, not a newline" in err


@pytest.mark.parametrize(
    ("value", "words"), [("three", "is not a file descriptor"), ("-1", "is not"), ("777", "cannot write")]
)
def test_bad_mark_variable(programs: dict[str, Path], value: str, words: str) -> None:
    done = run(programs["gups"], *SMALL["gups"], env={"NUMALAB_MARK_FD": value})
    assert done.returncode == 1
    assert words in done.stderr


def test_threads_run_on_the_cpus_asked_for(programs: dict[str, Path]) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    with marked(programs["gups"], *SMALL["gups"], "--threads", "3", "--cpus", ",".join(map(str, allowed[:2]))) as gups:
        gups.run_to("ready")
        threads = [int(task.name) for task in Path(f"/proc/{gups.process.pid}/task").iterdir()]
        pinned = sorted(tuple(os.sched_getaffinity(thread)) for thread in threads if thread != gups.process.pid)
    expected = sorted((allowed[i % min(2, len(allowed))],) for i in range(3))
    assert pinned == expected


def test_single_initialisation_touches_from_one_thread(programs: dict[str, Path]) -> None:
    """The thread that initialised is gone, and the threads of the measured phase kept their own CPUs."""
    with marked(programs["gups"], *SMALL["gups"], "--init-cpu", "0") as gups:
        gups.run_to("ready")
        tasks = list(Path(f"/proc/{gups.process.pid}/task").iterdir())
        assert len(tasks) == 2
        assert all(os.sched_getaffinity(int(task.name)) == os.sched_getaffinity(0) for task in tasks)


def test_memory_policy_reaches_the_kernel(programs: dict[str, Path]) -> None:
    def policies(*options: str) -> list[str]:
        with marked(programs["gups"], *SMALL["gups"], *options) as gups:
            gups.run_to("ready")
            path = Path(f"/proc/{gups.process.pid}/numa_maps")
            if not path.exists():
                pytest.skip("this host's kernel has no NUMA support: nothing to read the policy from")
            lines = [line.split() for line in path.read_text().splitlines()]
        region = next(words for words in lines if "anon=256" in words or any(w == "dirty=256" for w in words))
        stack = next(words for words in lines if "stack" in words)
        return [region[1], stack[1]]

    assert policies() == ["default", "default"]
    assert policies("--memory", "bind:0") == ["bind:0", "default"]
    assert policies("--memory", "interleave:all")[0].startswith("interleave:0")
    assert policies("--tables", "bind:0") == ["local", "bind:0"]
