"""The host itself in the place of a machine: commands, marks, files, its shape, its kernel."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from numalab.errors import MissingError, UserError
from numalab.kernel.running import build_id_in, running
from numalab.machine import hypervisor
from numalab.machine.host import HostMachine, this_host, virtual
from numalab.machine.outcome import CommandFailedError, CommandTimeoutError, GuestFileError, Mark
from numalab.machine.topology import Node, Topology, uniform
from numalab.paths import ROOT

MARKER = """\
import os, sys, time
fd = int(os.environ["NUMALAB_MARK_FD"])
def mark(name):
    os.write(fd, name.encode() + b"\\n")
    if os.read(fd, 1) != b"\\n":
        sys.exit(9)
for name in sys.argv[1:]:
    mark(name) if name != "sleep" else time.sleep(60)
print("done")
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HostMachine]:
    script = tmp_path / "marker.py"
    script.write_text(f"#!{sys.executable}\n{MARKER}")
    script.chmod(0o755)
    with HostMachine(uniform(1, 1, "64M"), {"/bin/marker": script}, tmp_path / "logs") as machine:
        yield machine


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


# Commands.


def test_output_status_and_signal_come_back(host: HostMachine) -> None:
    junk = bytes(range(256)) * 3000
    done = host.run(["sh", "-c", "cat; printf '\\377\\0err' >&2; exit 7"], stdin=junk)
    assert (done.status, done.signal, done.stdout, done.stderr) == (7, None, junk, b"\xff\0err")
    dead = host.run(["sh", "-c", "kill -SEGV $$"])
    assert (dead.status, dead.signal, dead.type) == (None, 11, "signal")


def test_the_environment_is_the_same_whoever_runs_it(host: HostMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    said = host.run(["env"], env={"MINE": "2"}).stdout.decode().splitlines()
    names = {line.partition("=")[0] for line in said}
    assert {"PATH", "HOME", "LC_ALL", "MINE", "NUMALAB_MARK_FD"} <= names
    assert "SECRET" not in names
    assert host.run(["pwd"], cwd="/usr").stdout == b"/usr\n"


@pytest.mark.parametrize(("argv", "number"), [(["no-such-program"], errno.ENOENT), (["/etc"], errno.ENOENT)])
def test_a_program_that_is_not_there(host: HostMachine, argv: list[str], number: int) -> None:
    with pytest.raises(GuestFileError) as caught:
        host.run(argv)
    assert caught.value.errno == number


def test_a_time_out_kills_the_command_and_what_it_started(host: HostMachine) -> None:
    process = host.start(["sh", "-c", "echo half; sleep 60 & echo $!; wait"])
    with pytest.raises(CommandTimeoutError, match="sh ran longer than 1 s and was killed"):
        process.wait(1)
    done = process.wait()
    assert done.signal == 9
    child = int(done.stdout.split()[1])
    time.sleep(0.1)
    assert not alive(child)


def test_nothing_outlives_the_machine(tmp_path: Path) -> None:
    with HostMachine(uniform(1, 1, "64M"), {}, tmp_path) as machine:
        process = machine.start(["sh", "-c", "sleep 60 & wait"])
        scratch = machine.scratch
        assert scratch.is_dir()
    assert not alive(process.pid)
    assert not scratch.exists()
    machine.close()


@pytest.mark.skipif(not Path("/usr/bin/setpriv").exists(), reason="setpriv (util-linux) is not here")
def test_a_killed_laboratory_leaves_no_program_behind(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n"
        "from pathlib import Path\n"
        "from numalab.machine.host import HostMachine\n"
        "from numalab.machine.topology import uniform\n"
        f"machine = HostMachine(uniform(1, 1, '64M'), {{}}, Path({str(tmp_path)!r}))\n"
        "process = machine.start(['sleep', '60'])\n"
        "print(process.pid, machine.scratch, flush=True)\n"
        "process.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout
        said = child.stdout.readline().split()
        pid, scratch = int(said[0]), Path(said[1].decode())
        assert alive(pid)
        child.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)
    assert scratch.is_dir()
    hypervisor.sweep()  # as the next start does
    assert not scratch.exists()


# Marks.


def test_marks_are_served_while_the_program_waits(host: HostMachine) -> None:
    seen: list[str] = []

    def on_mark(mark: Mark, machine: object) -> None:
        assert machine is host
        seen.append(mark.name)

    done = host.start(["marker", "init", "ready", "done"], on_mark=on_mark).wait(30)
    assert (done.status, done.stdout, seen) == (0, b"done\n", ["init", "ready", "done"])
    assert [mark.name for mark in done.marks] == seen
    assert [mark.time_s for mark in done.marks] == sorted(mark.time_s for mark in done.marks)


def test_waiting_for_a_mark(host: HostMachine) -> None:
    process = host.start(["marker", "init", "ready", "sleep"])
    assert process.wait_mark("ready", 30).name == "ready"
    assert not process.ended()
    process.kill(signal.SIGTERM)
    done = process.wait(30)
    assert done.signal == signal.SIGTERM
    assert process.ended()


def test_a_mark_that_never_comes(host: HostMachine) -> None:
    with pytest.raises(CommandFailedError, match="marker exited with status 0 before its mark 'ready'"):
        host.start(["marker", "init"]).wait_mark("ready", 30)
    process = host.start(["marker", "sleep"])
    with pytest.raises(CommandTimeoutError, match="did not reach its mark 'ready' within 1 s"):
        process.wait_mark("ready", 1)
    assert not process.ended()


def test_two_commands_at_once(host: HostMachine) -> None:
    """As interference is: started while the other waits at its mark."""
    order = []

    def on_mark(mark: Mark, _: object) -> None:
        order.append(mark.name)
        if mark.name == "ready":
            host.start(["marker", "beside"], on_mark=lambda m, _: order.append(m.name)).wait_mark("beside", 30)

    assert host.start(["marker", "ready", "done"], on_mark=on_mark).wait(30).ok
    assert order == ["ready", "beside", "done"]


def test_processes_are_found_by_name_among_ours_only(host: HostMachine) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        process = host.start(["sh", "-c", "sleep 60 & sleep 60; true"])
        deadline = time.monotonic() + 10
        while len(host.processes("sleep")) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        found = host.processes("sleep")
        assert len(found) == 2
        assert stranger.pid not in found
        assert host.processes("sh") == [process.pid]
    finally:
        stranger.kill()
        stranger.wait()


# Files and facts.


def test_files(host: HostMachine, tmp_path: Path) -> None:
    host.write_file(str(tmp_path / "knob"), b"1\n")
    assert host.read_file(str(tmp_path / "knob")) == b"1\n"
    assert b"pgfault" in host.read_file("/proc/vmstat")
    for call in (lambda: host.read_file("/proc/no/such"), lambda: host.write_file("/proc/no/such", b"1")):
        with pytest.raises(GuestFileError) as caught:
            call()
        assert caught.value.errno == errno.ENOENT


def test_facts(host: HostMachine) -> None:
    facts = host.facts()
    assert (facts["accel"], facts["boot_seconds"]) == ("host", None)
    assert Topology.from_json(facts["topology"]) == host.topology
    assert facts["virtual"] is virtual()
    assert host.console.exists()


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK | os.W_OK), reason="/dev/kmsg may not be read here")
def test_the_kernels_log_is_the_console(host: HostMachine) -> None:
    assert host.console.read_bytes() == b""
    Path("/dev/kmsg").write_text("numalab test: WARNING: not a real one\n")
    assert b"] numalab test: WARNING: not a real one\n" in host.console.read_bytes()


# The shape of the host.


def sysfs(top: Path, *nodes: tuple[int, str, int]) -> Path:
    for number, cpus, memory in nodes:
        node = top / f"node{number}"
        node.mkdir(parents=True)
        (node / "cpulist").write_text(cpus + "\n")
        (node / "distance").write_text(" ".join("10" if n == number else "21" for n, _, _ in nodes) + "\n")
        (node / "meminfo").write_text(f"Node {number} MemTotal:       {memory} kB\n")
    return top


@pytest.mark.parametrize(("flags", "levels"), [("fpu la57 hypervisor", 5), ("fpu", 4)])
def test_the_shape_of_a_server(tmp_path: Path, flags: str, levels: int) -> None:
    """CPUs of a real machine are not numbered node by node: hyperthreads come last."""
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    top = sysfs(tmp_path / "node", (0, "0-1,4-5", 1 << 20), (1, "2-3,6-7", 1 << 20))
    shape = this_host(top, tmp_path / "cpuinfo")
    assert shape.nodes == (Node(4, 1 << 30), Node(4, 1 << 30))
    assert (list(shape.cpus_of(0)), list(shape.cpus_of(1))) == ([0, 1, 4, 5], [2, 3, 6, 7])
    assert (shape.distances, shape.paging_levels) == (((10, 21), (21, 10)), levels)
    assert Topology.from_json(shape.to_json()) == shape
    assert virtual(tmp_path / "cpuinfo") is (levels == 5)
    assert "cpu_numbers" not in uniform().to_json(), "names of cells are hashes of it"


def test_nodes_with_a_gap_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("flags : fpu\n")
    top = sysfs(tmp_path / "node", (0, "0-1", 1 << 20), (2, "2-3", 1 << 20))
    with pytest.raises(MissingError, match="the nodes of this host are numbered 0, 2"):
        this_host(top, tmp_path / "cpuinfo")


# Its kernel.


def note(name: bytes, kind: int, data: bytes) -> bytes:
    padded = name + bytes(-len(name) % 4)
    return struct.pack("<III", len(name), len(data), kind) + padded + data + bytes(-len(data) % 4)


def test_the_build_id_among_notes() -> None:
    other = note(b"Xen\0", 3, b"x" * 7) + note(b"GNU\0", 1, b"y" * 16)
    assert build_id_in(other + note(b"GNU\0", 3, b"\xab" * 20) + other) == "ab" * 20
    assert build_id_in(other) == build_id_in(b"") == build_id_in(b"\1\2\3") == ""


def test_the_running_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    notes = tmp_path / "notes"
    notes.write_bytes(note(b"GNU\0", 3, b"\xab" * 20))
    image = running(notes)
    assert (image.name, image.release, image.build_id, image.path) == ("running", os.uname().release, "ab" * 20, notes)
    assert image.provenance["flavour"] == "running"
    built = {"build_id": "ab" * 20, "flavour": "patched", "series": {"sets": ["common"]}, "built": "2026"}
    monkeypatch.setattr("numalab.kernel.store.entries", lambda: [{"build_id": "", "built": ""}, built])
    assert running(notes).provenance == built, "one of ours: everything that is known of it"
    without = running(tmp_path / "absent")
    assert (without.build_id, without.path) == ("", Path("/proc/version"))


def test_a_mistyped_connection_is_the_users_error() -> None:
    with pytest.raises(UserError, match=r"not a connection: 'embd' \(did you mean 'embed'\?\)"):
        hypervisor.connect("embd")
