"""Recording runs, and the cache of baselines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from numalab.kernel.image import KernelImage
from numalab.machine.outcome import Completed
from numalab.machine.topology import uniform
from numalab.selftest import lab, record
from numalab.selftest.build import Programs
from numalab.selftest.catalogue import Group, Program
from numalab.selftest.record import Standing
from numalab.selftest.verdict import Verdict


class Machines:
    """Fake machines; `statuses` gives the exit status of each start, by program."""

    accel = "tcg"

    def __init__(self, console: Path) -> None:
        self.console = console
        self.statuses: dict[str, list[int]] = {}
        self.runs: list[str] = []
        self.boots: list[Any] = []

    @contextmanager
    def boot(self, setting: lab.Setting, logs: Path) -> Iterator[Machines]:
        self.boots.append((setting, logs))
        yield self

    def start(self, argv: list[str], **_: Any) -> Machines:
        self.runs.append(Path(argv[0]).name)
        return self

    def wait(self, _: float | None = None) -> Completed:
        left = self.statuses.get(self.runs[-1], [])
        status = left.pop(0) if left else 0
        if status < 0:
            raise KeyboardInterrupt
        return Completed(["x"], status, None, f"{self.runs[-1]} {status}\n".encode(), b"")

    def read_file(self, _: str) -> bytes:
        return b"0-1\n"

    def facts(self) -> dict[str, Any]:
        return {"qemu_version": "7.2", "cmdline": "quiet", "domain_xml": "long"}


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = Machines(tmp_path / "console")
    monkeypatch.setattr(lab, "_boot", found.boot)
    return found


def setting(*names: str, release: str = "6.12.1") -> lab.Setting:
    programs = tuple(Program(name, (name,), 10.0) for name in names)
    kernel = KernelImage("stock", Path("/boot/bzImage"), release, build_id=f"id of {release}")
    built = Programs(Path("/built"), {f"mm/{name}": "static" for name in names}, {}, "key")
    return lab.Setting(Group("mm", "", programs, "mm"), programs, kernel, uniform(2), "tcg", built)


def test_run_records_everything(machines: Machines, tmp_path: Path) -> None:
    machines.statuses = {"b": [0, 1]}
    told = []
    found = lab.run(setting("a", "b"), 2, tmp_path, on_result=lambda n, of, r: told.append((n, of, r.program)))
    assert told == [(1, 2, "a"), (1, 2, "b"), (2, 2, "a"), (2, 2, "b")]
    assert record.load(tmp_path).repeats == tuple(
        tuple(replace(each, stdout=b"", stderr=b"", seconds=round(each.seconds, 3)) for each in repeat)
        for repeat in found.repeats
    )
    assert found.programs()["b"].standing is Standing.FLAKY
    assert found.kernel["build_id"] == "id of 6.12.1"
    assert found.machine["qemu_version"] == "7.2"
    assert "domain_xml" not in found.machine
    assert (tmp_path / "logs/2/b.out").read_bytes() == b"b 1\n"
    assert len({logs for _, logs in machines.boots}) == 2


def test_interrupted_run_keeps_what_it_has(machines: Machines, tmp_path: Path) -> None:
    machines.statuses = {"b": [0, -1]}
    with pytest.raises(KeyboardInterrupt):
        lab.run(setting("a", "b"), 2, tmp_path)
    assert [len(repeat) for repeat in record.load(tmp_path).repeats] == [2, 1]


def test_an_interrupted_run_goes_on_with_the_next_program(machines: Machines, tmp_path: Path) -> None:
    machines.statuses = {"b": [0, -1]}
    with pytest.raises(KeyboardInterrupt):
        lab.run(setting("a", "b", "c"), 2, tmp_path)
    assert machines.runs == ["a", "b", "c", "a", "b"]
    first = record.load(tmp_path)
    machines.runs.clear()
    done = lab.run(setting("a", "b", "c"), 2, tmp_path, resume=True)
    assert machines.runs == ["b", "c"]
    assert [[result.program for result in repeat] for repeat in done.repeats] == [["a", "b", "c"]] * 2
    assert (done.started, done.seconds >= first.seconds) == (first.started, True)
    machines.runs.clear()
    boots = len(machines.boots)
    assert lab.run(setting("a", "b", "c"), 2, tmp_path, resume=True).programs() == done.programs()
    assert (machines.runs, len(machines.boots)) == ([], boots)
    lab.run(setting("a", "b", "c"), 1, tmp_path)
    assert machines.runs == ["a", "b", "c"]


def test_an_interrupted_baseline_goes_on_with_the_next_program(machines: Machines) -> None:
    machines.statuses = {"b": [0, -1]}
    with pytest.raises(KeyboardInterrupt):
        lab.baseline(setting("a", "b"), 2)
    machines.runs.clear()
    found, place = lab.baseline(setting("a", "b"), 2)
    assert machines.runs == ["b"]
    assert [len(repeat) for repeat in found.repeats] == [2, 2]
    assert [file.name for file in place.glob("*.json")] == ["results.json"]


def test_a_fresh_baseline_forgets_an_interrupted_one(machines: Machines) -> None:
    machines.statuses = {"b": [-1]}
    with pytest.raises(KeyboardInterrupt):
        lab.baseline(setting("a", "b"), 1)
    machines.runs.clear()
    lab.baseline(setting("a", "b"), 1, fresh=True)
    assert machines.runs == ["a", "b"]


def test_baseline_is_run_once(machines: Machines) -> None:
    first, place = lab.baseline(setting("a", "b"), 3)
    assert len(machines.runs) == 6
    second, again = lab.baseline(setting("a", "b"), 3)
    assert len(machines.runs) == 6
    assert place == again
    assert second.programs() == first.programs()


def test_baseline_runs_only_what_it_does_not_know(machines: Machines) -> None:
    lab.baseline(setting("a", "b"), 2)
    machines.runs.clear()
    found, _ = lab.baseline(setting("b", "c"), 2)
    assert machines.runs == ["c", "c"]
    assert list(found.programs()) == ["b", "c"]
    machines.runs.clear()
    found, _ = lab.baseline(setting("a", "b", "c"), 3)  # more repeats than it has
    assert sorted(machines.runs) == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    assert {len(history.verdicts) for history in found.programs().values()} == {3}


def test_fresh_baseline(machines: Machines) -> None:
    machines.statuses = {"a": [1, 1]}
    assert lab.baseline(setting("a"), 2)[0].programs()["a"].standing is Standing.STABLE_FAIL
    found, _ = lab.baseline(setting("a"), 2, fresh=True)
    assert found.programs()["a"].verdicts == (Verdict.PASS, Verdict.PASS)


def test_baselines_of_other_kernels_and_machines_are_others(machines: Machines) -> None:
    one = setting("a")
    others = [
        setting("a", release="6.12.2"),
        replace(one, topology=uniform(4)),
        replace(one, accel="kvm"),
        replace(one, append="nosmp"),
        replace(one, built=replace(one.built, key="other")),
        replace(one, group=replace(one.group, name="x86")),
    ]
    assert len({other.key() for other in [one, *others]}) == 7
    assert replace(one, patience=5.0, programs=()).key() == one.key()


def test_interrupted_baseline_does_not_replace_a_better_one(machines: Machines) -> None:
    lab.baseline(setting("a"), 2)
    machines.statuses = {"c": [-1]}
    with pytest.raises(KeyboardInterrupt):
        lab.baseline(setting("a", "c"), 2)
    machines.runs.clear()
    lab.baseline(setting("a"), 2)
    assert machines.runs == []


def test_dynamic_programs_bring_the_hosts_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from numalab.machine import session

    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(session, "Machine", lambda kernel, topology, **more: seen.append(more))
    one = setting("a", "b")
    lab._boot(one, tmp_path)
    lab._boot(replace(one, built=replace(one.built, built={"mm/a": "static", "mm/b": "dynamic"})), tmp_path)
    stress = Program("vm", ("stress-ng", "--vm", "1"), 10.0)
    lab._boot(replace(one, group=Group("stress-ng", "", (stress,)), programs=(stress,)), tmp_path)
    assert [bool(more["host_programs"]) for more in seen] == [False, True, True]
    assert seen[2]["host_programs"] == ("stress-ng",)
    assert seen[0]["share"] == Path("/built")
