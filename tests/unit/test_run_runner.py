"""Whole runs on a laboratory without machines: resume, failures, interruption, full disks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from numalab.errors import ExperimentError, MissingError, UserError
from numalab.paths import ROOT, write_json
from numalab.results import Json, NewerSchemaError, load_experiment, load_results, succeeded
from numalab.run import runner, store
from numalab.run.check import load
from numalab.run.lab import Lab
from numalab.run.runner import Options, Summary
from tests.unit.fake_lab import KNOB, QUICK, THP, World, boot_failure, make_lab

ONE = '[matrix]\nworkload = "gups"\n[topologies.four]\nnode_memory = "64M"\n'
CELLS_OF_QUICK = 2 * 2 * 2 * 2


class Bench:
    """An experiment file, a world and a result directory."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.world = World()
        self.out = top / "out"

    @property
    def lab(self) -> Lab:
        return make_lab(self.world, self.top)

    def run(self, text: str = QUICK, **options: Any) -> Summary:
        file = self.top / "exp.toml"
        file.write_text(text)
        wanted = Options(**{"given": str(file), "out": self.out, **options})
        return runner.run(load(file, self.lab), self.lab, wanted)

    def act(self, act: str, **options: Any) -> Json:
        """Run one cell in which the program does `act`; return its result."""
        summary = self.run("repeats = 1\n" + ONE + f'[workloads.gups]\nact = "{act}"\n', **options)
        assert len(summary.done) == 1
        on_disk = load_results(self.out).results[0]
        assert {key: on_disk[key] for key in summary.done[0]} == summary.done[0]
        return on_disk

    def files(self) -> dict[str, float]:
        return {str(path): path.stat().st_mtime_ns for path in self.out.glob("cells/*/*")}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# What a good run leaves.


def test_every_cell_is_run_once_and_recorded(bench: Bench) -> None:
    summary = bench.run()
    assert (summary.planned, len(summary.done), summary.failed) == (CELLS_OF_QUICK, CELLS_OF_QUICK, [])
    results = load_results(bench.out)
    assert not results.corrupt
    assert {result["cell"]["id"] for result in results.results} == {result["cell"]["id"] for result in summary.done}
    experiment = load_experiment(bench.out)
    assert experiment["order"] == [result["cell"]["id"] for result in summary.done]
    assert experiment["seed"] == 7
    assert bench.world.open == 0
    assert sorted(path.name for path in bench.out.iterdir()) == [".lock", "cells", "experiment.json"]


def test_two_machines_serve_two_kernels(bench: Bench) -> None:
    summary = bench.run()
    assert bench.world.boots == 2
    machines = [result["provenance"]["machine"] for result in summary.done]
    assert sorted(machine["cells_before"] for machine in machines) == sorted([*range(8), *range(8)])


def test_a_fresh_machine_for_every_cell_when_asked_for(bench: Bench) -> None:
    summary = bench.run(QUICK + "[run]\nfresh_machine = true\n")
    assert bench.world.boots == CELLS_OF_QUICK
    assert {result["provenance"]["machine"]["cells_before"] for result in summary.done} == {0}


def test_machines_make_room_for_each_other(bench: Bench) -> None:
    """The host can carry one machine at a time: each change of kernel boots, and never are two alive."""
    bench.world.free = (256 << 20) + (512 << 20)
    alive = []
    bench.world.on_run = lambda _: alive.append(bench.world.open)
    summary = bench.run()
    kernels = [result["cell"]["kernel"] for result in summary.done]
    assert bench.world.boots == 1 + sum(a != b for a, b in pairwise(kernels))
    assert set(alive) == {1}


def test_a_result_field_by_field(bench: Bench) -> None:
    result = bench.act("ok")
    assert (result["schema"], result["kind"]) == (2, "numalab-result")
    cell = result["cell"]
    assert {key: cell[key] for key in ("experiment", "kernel", "topology", "workload", "policy", "repeat")} == {
        "experiment": "exp",
        "kernel": "stock",
        "topology": "four",
        "workload": "gups",
        "policy": "none",
        "repeat": 0,
    }
    assert cell["placebo_of"] is None
    assert cell["params"]["workload"]["params"] == {"size": "64M", "memory": "first-touch", "act": "ok"}
    assert cell["params"]["workload"]["argv"] == ["gups", "--act", "ok"]
    assert result["outcome"] == {"type": "exit", "status": 0, "signal": None, "detail": "", "oops": None}
    assert result["samples"] == [
        {"metric": "updates", "value": 5, "unit": "", "kind": "counted"},
        {"metric": "walks", "value": None, "unit": "", "kind": "counted"},
    ]
    assert [mark["name"] for mark in result["marks"]] == ["init", "ready", "done"]
    counters = result["counters"]
    assert counters["kind"] == "counted"
    assert counters["vmstat"] == {"pgfault": 30, "nr_free_pages": 0}
    assert counters["measured"]["vmstat"] == {"pgfault": 10, "nr_free_pages": 0}
    assert counters["numastat"] == {"node0": {"numa_hit": 0}, "node1": {"numa_hit": 0}}
    assert counters["perf"]["cycles:u"] is None
    assert result["placement"] == [
        {"mark": "ready", "file": "snapshot-ready.npz", "summary": {"label": "ready", "names": ["gups"]}}
    ]
    provenance = result["provenance"]
    assert provenance["kernel"]["build_id"] == "ab" * 20
    assert provenance["machine"]["qemu_argv"] == ["qemu"]
    assert provenance["sysctls_before"] == provenance["sysctls_after"] != {}
    assert set(provenance["versions"]) >= {"python", "numalab", "libvirt-python", "drgn"}
    assert set(provenance["git"]) == {"commit", "dirty"}
    assert provenance["host"]["cpus"] >= 1
    assert len(provenance["host"]["load"]) == 3
    assert provenance["reproduce"] == (
        f"numalab run {bench.top}/exp.toml --accel auto --only kernel=stock --only policy=none "
        "--only workload=gups --only topology=four --only interference=none --only repeat=0"
    )
    directory = bench.out / "cells" / cell["id"]
    assert (directory / "stdout.txt").read_bytes().startswith(b"hello\n")
    assert (directory / "stderr.txt").read_bytes() == b"words on stderr\n"
    assert (directory / "console.log").read_text() == "boot 1\nran gups 1\n"


def test_each_cell_keeps_its_own_part_of_the_console(bench: Bench) -> None:
    summary = bench.run("repeats = 2\n" + ONE)
    logs = [(bench.out / "cells" / r["cell"]["id"] / "console.log").read_text() for r in summary.done]
    assert logs == ["boot 1\nran gups 1\n", "ran gups 2\n"]


def test_what_a_policy_did_is_recorded(bench: Bench) -> None:
    summary = bench.run(QUICK, only=("policy=mitosis", "kernel=stock", "workload=gups", "repeat=0"))
    settings = summary.done[0]["provenance"]["policy"]
    assert settings[1] == {"path": THP, "before": "madvise", "wanted": "always", "got": "always", "restored": True}


def test_the_placebo_is_run_as_its_policy(bench: Bench) -> None:
    text = 'placebo = true\nrepeats = 1\n[matrix]\nkernel = "patched"\nworkload = "gups"\npolicy = ["first-touch"]\n'
    summary = bench.run(text)
    assert [(r["cell"]["policy"], r["cell"]["placebo_of"]) for r in sorted(summary.done, key=str)] == sorted(
        [("first-touch", None), ("placebo", "first-touch")], key=str
    )
    assert [line for line in bench.world.log if line.startswith(KNOB)] == [f"{KNOB}=-1"] * 4


# Ends of cells: each is a result.


@pytest.mark.parametrize(
    ("act", "kind", "detail"),
    [
        ("fail", "exit", "gups exited with status 3"),
        ("signal", "signal", "gups was killed by signal 11 (Segmentation fault)"),
        ("silent", "no-result", "gups printed no result line"),
        ("junk", "no-result", "gups printed no result line"),
        ("panic", "panic", "the guest's kernel panicked: NULL"),
        ("hang", "hang", "the guest has had no heartbeat for 60 s; its last words:\nlast words"),
        ("qemu-died", "qemu-died", "QEMU ended: out of memory\nlast words of the guest:\n(none)"),
        ("timeout", "timeout", "gups ran longer than 600 s and was killed"),
    ],
)
def test_an_end_is_a_result(bench: Bench, act: str, kind: str, detail: str) -> None:
    result = bench.act(act)
    assert (result["outcome"]["type"], result["outcome"]["detail"]) == (kind, detail)
    assert not succeeded(result)
    assert result["samples"] == []
    assert bench.world.open == 0


def test_a_warning_of_the_kernel_is_recorded(bench: Bench) -> None:
    result = bench.act("warn")
    assert succeeded(result)
    assert result["complaints"] == ["WARNING: CPU: 0 PID: 7 at mm/memory.c:1"]


def test_a_panic_keeps_the_oops_and_the_console(bench: Bench) -> None:
    result = bench.act("panic")
    assert "NULL pointer dereference" in result["outcome"]["oops"]
    assert (bench.out / "cells" / result["cell"]["id"] / "console.log").read_text().startswith("boot 1\n")
    assert result["counters"]["vmstat"] is None


def test_a_timeout_keeps_what_was_printed(bench: Bench) -> None:
    result = bench.act("timeout")
    assert (bench.out / "cells" / result["cell"]["id"] / "stdout.txt").read_bytes() == b"half a line"
    assert result["placement"][0]["file"] == "snapshot-ready.npz"


def test_binary_junk_is_kept_byte_for_byte(bench: Bench) -> None:
    result = bench.act("junk")
    assert (bench.out / "cells" / result["cell"]["id"] / "stdout.txt").read_bytes() == bytes(range(256)) * 4


def test_a_flood_is_clipped_and_its_result_still_read(bench: Bench) -> None:
    result = bench.act("flood")
    assert succeeded(result)
    assert result["samples"][0]["value"] == 5
    text = (bench.out / "cells" / result["cell"]["id"] / "stdout.txt").read_bytes()
    assert len(text) < 9 << 20
    assert b"bytes left out]" in text
    assert text.endswith(b'numalab-result: {"updates": 5}\n')


def test_another_machine_after_anything_but_an_exit(bench: Bench) -> None:
    text = "repeats = 2\n" + ONE + '[workloads.gups]\nact = "{}"\n'
    for act, boots in (("fail", 1), ("silent", 1), ("signal", 2), ("panic", 2), ("timeout", 2)):
        bench.world.boots = 0
        bench.run(text.format(act), out=bench.top / act)
        assert bench.world.boots == boots, act


def test_a_machine_that_does_not_boot(bench: Bench) -> None:
    bench.world.boot_error = boot_failure()
    summary = bench.run("repeats = 5\n" + ONE)
    assert [r["outcome"]["type"] for r in summary.done] == ["boot-failure"] * 2
    assert len(summary.given_up) == 3
    assert summary.left == 3
    logs = {path.read_text() for path in bench.out.glob("cells/*/console.log")}
    assert logs == {"it stopped here\n"}
    bench.world.boot_error = None
    assert len(bench.run("repeats = 5\n" + ONE, resume=True).done) == 3


def test_a_knob_that_does_not_take_is_an_error_of_its_cell(bench: Bench) -> None:
    bench.world.stuck_knob = THP
    summary = bench.run()
    broken = [r for r in summary.done if not succeeded(r)]
    assert {r["cell"]["policy"] for r in broken} == {"mitosis"}
    assert len(broken) == CELLS_OF_QUICK // 2
    assert broken[0]["outcome"]["type"] == "error"
    assert "did not take: wanted 'always', got 'madvise'" in broken[0]["outcome"]["detail"]


def test_a_snapshot_that_fails_is_an_error_of_its_cell(bench: Bench) -> None:
    bench.world.snapshot_error = MissingError("drgn cannot attach", remedy="apt-get install it")
    result = bench.act("ok")
    assert result["outcome"]["type"] == "error"
    assert result["outcome"]["detail"] == "drgn cannot attach (apt-get install it)"
    assert result["placement"] == [{"mark": "ready", "file": None, "summary": None}]


@pytest.mark.parametrize("act", ["ok", "explode"])
def test_a_bug_of_ours_costs_one_cell_and_leaves_its_traceback(bench: Bench, act: str) -> None:
    bench.world.snapshot_error = ValueError("cannot reshape") if act == "ok" else None
    result = bench.act(act)
    said = "cannot reshape" if act == "ok" else "explode"
    assert result["outcome"]["type"] == "error"
    assert result["outcome"]["detail"] == f"ValueError: {said} (a bug of numalab; see traceback.txt)"
    text = (bench.out / "cells" / result["cell"]["id"] / "traceback.txt").read_text()
    assert text.startswith("Traceback")
    assert bench.world.open == 0


def test_a_policy_the_kernel_cannot_have_is_refused_before_any_boot(bench: Bench) -> None:
    text = '[matrix]\nkernel = ["stock", "patched"]\npolicy = ["remote"]\nworkload = "gups"\n'
    with pytest.raises(UserError) as caught:
        bench.run(text)
    assert str(caught.value) == (
        f"{bench.top}/exp.toml: policy 'remote' needs the patch set 'common', which kernel 'stock' does not have; "
        'leave the pair out: [[exclude]] kernel = "stock", policy = "remote"'
    )
    assert bench.world.boots == 0
    assert not bench.out.exists()
    bench.run(text + '[[exclude]]\nkernel = "stock"\npolicy = "remote"\n')


def test_a_kernel_that_is_not_built(bench: Bench) -> None:
    bench.world.missing_kernels = ("patched",)
    with pytest.raises(MissingError, match="'patched' is not built") as caught:
        bench.run()
    assert caught.value.remedy == "numalab kernel build; or leave it out for now: --only kernel=stock"
    assert len(bench.run(only=("kernel=stock",)).done) == CELLS_OF_QUICK // 2


# Resume.


def test_resume_skips_what_is_done(bench: Bench) -> None:
    bench.run()
    before = bench.files()
    again = bench.run(resume=True)
    assert (len(again.skipped), again.done) == (CELLS_OF_QUICK, [])
    assert bench.files() == before
    assert bench.world.boots == 2


def test_without_resume_results_are_not_touched(bench: Bench) -> None:
    bench.run()
    with pytest.raises(UserError, match="there are results here already"):
        bench.run()


def test_failed_cells_are_done_again_only_when_asked_for(bench: Bench) -> None:
    bench.world.stuck_knob = THP
    bench.run()
    bench.world.stuck_knob = ""
    skipping = bench.run(resume=True)
    assert (len(skipping.skipped), len(skipping.failed)) == (CELLS_OF_QUICK, CELLS_OF_QUICK // 2)
    again = bench.run(retry_failed=True)
    assert (len(again.done), again.failed) == (CELLS_OF_QUICK // 2, [])
    assert len(list(bench.out.glob("cells/*.failed"))) == CELLS_OF_QUICK // 2
    assert len(load_results(bench.out).results) == CELLS_OF_QUICK


def test_another_kernel_under_the_same_name_is_run_anew(bench: Bench) -> None:
    bench.run()
    bench.world.kernel_bytes["patched"] = b"built anew"
    again = run_again(bench)
    assert {r["cell"]["kernel"] for r in again.done} == {"patched"}
    assert len(again.done) == CELLS_OF_QUICK // 2
    results = load_results(bench.out).results
    assert len(results) == CELLS_OF_QUICK
    hashes = {r["cell"]["params"]["kernel"]["sha256"] for r in results if r["cell"]["kernel"] == "patched"}
    assert len(hashes) == 1
    assert len(list(bench.out.glob("cells/*.superseded"))) == CELLS_OF_QUICK // 2
    assert sorted(load_experiment(bench.out)["order"]) == sorted(r["cell"]["id"] for r in results)


def run_again(bench: Bench) -> Summary:
    from numalab.run.plan import sha256_of

    sha256_of.cache_clear()  # a new process would not remember
    return bench.run(resume=True)


def test_a_part_then_the_rest(bench: Bench) -> None:
    first = bench.run(only=("kernel=stock",))
    rest = bench.run(resume=True)
    assert (len(first.done), len(rest.skipped), len(rest.done)) == (8, 8, 8)
    last = bench.run(resume=True, only=("kernel=patched",))
    assert len(last.skipped) == 8
    experiment = load_experiment(bench.out)
    assert len(experiment["order"]) == CELLS_OF_QUICK
    assert len(experiment["runs"]) == 3


def test_more_repeats_keep_the_first_ones(bench: Bench) -> None:
    bench.run()
    more = bench.run(resume=True, repeats=3)
    assert (len(more.skipped), len(more.done)) == (CELLS_OF_QUICK, CELLS_OF_QUICK // 2)


def test_a_corrupted_result_is_moved_aside_and_run_again(bench: Bench) -> None:
    done = bench.run().done
    cut, junk, shape = (bench.out / "cells" / result["cell"]["id"] / "result.json" for result in done[:3])
    cut.write_bytes(cut.read_bytes()[:100])
    junk.write_bytes(bytes(range(256)))
    shape.write_text(json.dumps({"schema": 1, "kind": "numalab-result", "cell": {}}))
    again = bench.run(resume=True)
    assert {r["cell"]["id"] for r in again.done} == {path.parent.name for path in (cut, junk, shape)}
    assert len(again.notes) == 3
    assert any(str(cut) in note for note in again.notes)
    assert {path.name for path in bench.out.glob("cells/*.corrupt")} == {
        f"{path.parent.name}.corrupt" for path in (cut, junk, shape)
    }
    assert len(load_results(bench.out).results) == CELLS_OF_QUICK


def test_a_corrupted_index_is_written_anew(bench: Bench) -> None:
    bench.run()
    (bench.out / "experiment.json").write_text("{")
    bench.run(resume=True)
    assert len(load_experiment(bench.out)["order"]) == CELLS_OF_QUICK


def test_a_newer_result_is_refused_by_name(bench: Bench) -> None:
    done = bench.run().done
    path = bench.out / "cells" / done[0]["cell"]["id"] / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 3}))
    with pytest.raises(NewerSchemaError) as caught:
        bench.run(resume=True)
    assert str(caught.value) == f"{path}: schema 3 is newer than the schema 2 that this numalab reads"
    assert json.loads(path.read_text())["schema"] == 3


def test_two_runs_into_one_directory(bench: Bench) -> None:
    bench.run()
    with (bench.out / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=rf"another run \(process {os.getpid()}\) writes here"):
            bench.run(resume=True)


def test_a_directory_of_something_else(bench: Bench) -> None:
    bench.out.mkdir()
    (bench.out / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not empty, and no result directory"):
        bench.run()


# Interruption and death.


def test_an_interrupted_run_keeps_what_is_done(bench: Bench) -> None:
    def interrupt(_: list[str]) -> None:
        if len([line for line in bench.world.log if "=" not in line]) == 6:
            raise KeyboardInterrupt

    bench.world.on_run = interrupt
    summary = bench.run()
    assert (summary.interrupted, len(summary.done), summary.left) == (True, 5, CELLS_OF_QUICK - 5)
    assert bench.world.open == 0
    assert len(load_results(bench.out).results) == 5
    assert not list(bench.out.glob("cells/.*"))
    bench.world.on_run = None
    again = bench.run(resume=True)
    assert (len(again.skipped), len(again.done)) == (5, CELLS_OF_QUICK - 5)


def test_sigterm_is_an_interruption(bench: Bench) -> None:
    bench.world.on_run = lambda _: os.kill(os.getpid(), signal.SIGTERM)
    assert bench.run().interrupted
    assert bench.world.open == 0


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.unit.test_run_runner import Bench
bench = Bench(Path(sys.argv[1]))
def die(_):
    if len([line for line in bench.world.log if "=" not in line]) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
bench.world.on_run = die
bench.run()
"""


def test_resume_after_a_kill(bench: Bench) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(bench.top), str(ROOT)], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert len(list(bench.out.glob("cells/.partial-*"))) == 1
    assert len(load_results(bench.out).results) == 3
    before = bench.files()
    again = bench.run(resume=True)
    assert (len(again.skipped), len(again.done)) == (3, CELLS_OF_QUICK - 3)
    assert not list(bench.out.glob("cells/.*"))
    assert before.items() <= bench.files().items() | {p: t for p, t in before.items() if ".partial" in p}.items()
    assert len(load_results(bench.out).results) == CELLS_OF_QUICK


# Full disks.


def test_a_full_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def full(path: Path, value: Any) -> None:
        if path.name == "result.json" and len(written) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written.extend([path] if path.name == "result.json" else [])
        write_json(path, value)

    monkeypatch.setattr(store, "write_json", full)
    with pytest.raises(ExperimentError) as caught:
        bench.run()
    assert caught.value.exit_status == 1
    assert str(caught.value).startswith("the disk is full: ")
    assert "No space left on device; finished cells are kept" in str(caught.value)
    assert "--resume" in caught.value.remedy
    assert bench.world.open == 0
    assert len(load_results(bench.out).results) == 5
    monkeypatch.setattr(store, "write_json", write_json)
    assert len(bench.run(resume=True).done) == CELLS_OF_QUICK - 5


def test_a_snapshot_onto_a_full_disk_stops_the_run(bench: Bench) -> None:
    bench.world.snapshot_error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(store.DiskFullError):
        bench.run()
    assert bench.world.open == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for a few cells; needs the right to mount."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(where)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root and CAP_SYS_ADMIN")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_disk_that_is_really_full(bench: Bench, small_disk: Path) -> None:
    bench.out = small_disk / "out"
    with pytest.raises(store.DiskFullError):
        bench.run()
    kept = load_results(bench.out)
    assert 0 < len(kept.results) < CELLS_OF_QUICK
    assert not kept.corrupt
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    again = bench.run(resume=True)
    assert len(again.skipped) == len(kept.results)
    assert len(load_results(bench.out).results) == CELLS_OF_QUICK


def test_a_directory_that_may_not_be_written(bench: Bench) -> None:
    bench.out = Path("/sys/numalab-results")
    with pytest.raises(UserError) as caught:
        bench.run()
    assert str(caught.value).startswith("/sys/numalab-results: ")
    assert caught.value.remedy == "name a directory you may write to with --out"
