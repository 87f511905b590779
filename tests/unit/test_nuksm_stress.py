"""The stress beside churn: settings change, the kernel is asked, and everything is put back. No machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from nuksm.policies import KSM
from nuksm.stress import FIXED, TURNS, VERIFY, stress
from numalab.errors import ExperimentError, MissingError
from numalab.machine.outcome import Completed, GuestFileError, Mark
from workloads import catalogue

GOOD = b"ok shared 3 sharing 5 mapped 8 copies 0 stale 0\n"


class Churn:
    """A program that stands still now and then, and ends."""

    def __init__(self, machine: Machine, argv: list[str], on_mark: Callable[[Mark, Any], None]) -> None:
        self.machine, self.argv, self.on_mark = machine, argv, on_mark
        self.marks = ["ready", "quiet", "done"]
        self.killed: list[int] = []

    def ended(self) -> bool:
        if self.killed:
            return True
        if self.machine.writes % 10 == 0 and self.marks:
            self.on_mark(Mark(self.marks.pop(0), 0.0), self.machine)
        return not self.marks

    def kill(self, number: int = 9) -> None:
        self.killed.append(number)

    def wait(self, _: float) -> Completed:
        line = dict.fromkeys(catalogue.get("churn").metrics, 1)
        out = b"numalab-result: " + json.dumps(line).encode() + b"\n"
        return Completed(self.argv, self.machine.status, None, out, b"churn: word 3 of page 5 is wrong\n")


class Machine:
    """Files of KSM, zram, and ksm/verify."""

    def __init__(self, *, lacks: tuple[str, ...] = (), said: bytes = GOOD, status: int = 0, zram: bool = True) -> None:
        names = [*TURNS, *FIXED, "full_scans"]
        self.files = {f"{KSM}/{name}": "0" for name in names if name not in lacks}
        self.files |= {"/proc/vmstat": "ksm_swpin_copy 3\nnr_free 5\n", "/proc/sys/kernel/numa_balancing": "1"}
        if zram:
            self.files |= {"/sys/block/zram0/disksize": "0", "/sys/block/zram0/reset": "0"}
        self.before = dict(self.files)
        self.said, self.status, self.writes = said, status, 0
        self.commands: list[str] = []
        self.process: Churn | None = None

    def read_file(self, path: str) -> bytes:
        if path not in self.files:
            raise GuestFileError(path, 2)
        if path == f"{KSM}/full_scans":
            self.files[path] = str(int(self.files[path]) + 1)
        return self.files[path].encode()

    def write_file(self, path: str, data: bytes) -> None:
        if path not in self.files:
            raise GuestFileError(path, 2)
        self.writes += 1
        self.files[path] = data.decode().strip()

    def run(self, argv: list[str]) -> Completed:
        self.commands.append(" ".join(argv))
        if argv != ["cat", VERIFY]:
            return Completed(argv, 0, None, b"", b"")
        if self.said.startswith(b"cat: "):
            return Completed(argv, 1, None, b"", self.said)
        return Completed(argv, int(not self.said.startswith(b"ok")), None, self.said, b"")

    def start(self, argv: list[str], *, on_mark: Callable[[Mark, Any], None]) -> Churn:
        assert self.files[f"{KSM}/run"] == "1"
        self.process = Churn(self, argv, on_mark)
        return self.process


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)


def test_settings_change_and_are_put_back() -> None:
    machine = Machine()
    found = stress(machine, 5)
    assert found.wrong == []
    assert (found.verified, found.said) == (2, GOOD.decode().strip())
    assert sum(found.turns.values()) > 10
    assert set(found.turns) <= set(TURNS)
    assert found.vmstat == {"ksm_swpin_copy": 0}
    changed = {path for path, value in machine.files.items() if machine.before[path] != value}
    assert changed == {f"{KSM}/full_scans", "/sys/block/zram0/disksize", "/sys/block/zram0/reset"}
    assert machine.commands[:2] == ["mkswap /dev/zram0", "swapon /dev/zram0"]
    assert machine.commands[-1] == "swapoff /dev/zram0"


def test_the_same_seed_is_the_same_stress() -> None:
    first, second = (stress(Machine(), 5, seed=7).turns for _ in range(2))
    assert first == second


def test_a_kernel_without_the_patch_set() -> None:
    lacks = tuple(name for name in TURNS if name.startswith("numa_") or name == "scan_threads")
    found = stress(Machine(lacks=lacks, said=b"cat: can't open: No such file or directory\n"), 5)
    assert set(found.turns) <= {"smart_scan", "use_zero_pages", "run"}
    assert (found.verified, found.wrong) == (None, []), "it cannot check itself: missing, not good"


def test_what_the_kernel_finds_ends_the_stress() -> None:
    machine = Machine(said=b"pfn 5: mapped 3 times, 2 found (2 rmap_items)\n")
    found = stress(machine, 5)
    assert found.wrong == ["pfn 5: mapped 3 times, 2 found (2 rmap_items)"]
    assert machine.process is not None
    assert machine.process.killed == [15]
    assert machine.commands[-1] == "swapoff /dev/zram0"


def test_a_wrong_word_is_an_error() -> None:
    with pytest.raises(ExperimentError, match="word 3 of page 5 is wrong"):
        stress(Machine(status=1), 5)


def test_no_swap() -> None:
    with pytest.raises(MissingError, match="no zram"):
        stress(Machine(zram=False), 5)


def test_what_a_kernel_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    write = machine.write_file

    def refuse(path: str, data: bytes) -> None:
        if machine.process:
            raise GuestFileError(path, 22)
        write(path, data)

    monkeypatch.setattr(machine, "write_file", refuse)
    with pytest.raises(ExperimentError, match=f"could not be written to {KSM}/"):
        stress(machine, 5)
    assert machine.process is not None
    assert machine.process.killed == [9]
