"""Running test programs: their ends, the machine's ends, what they need, and what status and output say together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from numalab.machine.outcome import (
    CommandTimeoutError,
    Completed,
    GuestFileError,
    GuestHangError,
    GuestPanicError,
    QemuDiedError,
)
from numalab.selftest import runner
from numalab.selftest.catalogue import Group, Program
from numalab.selftest.runner import Result
from numalab.selftest.verdict import Verdict

End = Callable[[list[str]], Completed]


def ended(status: int | None = 0, out: bytes = b"", err: bytes = b"", signal: int | None = None) -> End:
    return lambda argv: Completed(argv, status, signal, out, err)


class FakeProcess:
    def __init__(self, machine: FakeMachine, argv: list[str]) -> None:
        self.machine, self.argv = machine, argv
        self.timed_out = False

    def wait(self, timeout: float | None = None) -> Completed:
        if self.argv[:2] == ["test", "-e"]:
            return Completed(self.argv, int(self.argv[2] not in self.machine.files), None, b"", b"")
        if self.argv[0] in ("mkswap", "swapon", "swapoff"):
            self.machine.swap.append(self.argv[0])
            return Completed(self.argv, 0, None, b"", b"")
        self.machine.seen.append((self.argv, timeout, dict(self.machine.files)))
        end = self.machine.ends[Path(self.argv[0]).name]
        if end is TIMEOUT:
            if not self.timed_out:
                self.timed_out = True
                raise CommandTimeoutError("too long")
            return Completed(self.argv, None, 9, b"Testing a... done\nTesting b... ", b"")
        return end(self.argv)


def TIMEOUT(argv: list[str]) -> Completed:  # noqa: N802
    raise AssertionError("only a mark")


class FakeMachine:
    accel = "tcg"

    def __init__(self, directory: Path, ends: Mapping[str, End], files: Mapping[str, bytes]) -> None:
        self.console = directory / "console.log"
        self.console.write_bytes(b"[    1.000000] booting\n")
        self.ends = ends
        self.files = {"/sys/devices/system/node/has_memory": b"0-1\n", **files}
        self.seen: list[tuple[list[str], float | None, dict[str, bytes]]] = []
        self.swap: list[str] = []
        self.full = False

    def start(self, argv: Sequence[str], *, cwd: str = "/", env: Mapping[str, str] | None = None) -> FakeProcess:
        if argv[0] == "/share/mm/unstartable":
            raise GuestFileError(argv[0], 8)
        return FakeProcess(self, list(argv))

    def read_file(self, path: str) -> bytes:
        if path not in self.files:
            raise GuestFileError(path, 2)
        return self.files[path]

    def write_file(self, path: str, data: bytes) -> None:
        if path not in self.files:
            raise GuestFileError(path, 2)
        if path.endswith("nr_hugepages") and int(data) > 8:
            data = b"8\n"
        self.files[path] = data


class Rack:
    """Gives machines, and keeps them to look at."""

    def __init__(self, directory: Path, ends: Mapping[str, End], **files: bytes) -> None:
        self.directory, self.ends, self.files = directory, ends, files
        self.machines: list[FakeMachine] = []

    @contextmanager
    def open(self) -> Iterator[FakeMachine]:
        self.machines.append(FakeMachine(self.directory, self.ends, {f"/{k}": v for k, v in self.files.items()}))
        yield self.machines[-1]


def program(name: str, **more: object) -> Program:
    return replace(Program(name, (name,), 30.0), **more)  # type: ignore[arg-type]


def run(rack: Rack, *programs: Program, directory: str = "mm", built: Mapping[str, str] | None = None) -> list[Result]:
    group = Group("mm", "", programs, directory)
    known = built if built is not None else {f"mm/{each.argv[0]}": "static" for each in programs}
    return runner.run(group, programs, rack.open, known.get, patience=2.0)


@pytest.mark.parametrize(
    ("end", "verdict", "reason"),
    [
        (ended(0), Verdict.PASS, ""),
        (ended(0, b"1..1\nok 1 a\n"), Verdict.PASS, ""),
        (ended(0, b"", b"1..1\nnot ok 1 a\n"), Verdict.FAIL, "1 failed: a"),
        (ended(1, b"1..1\nnot ok 1 a\n"), Verdict.FAIL, "1 failed: a"),
        (ended(0, b"1..1\nnot ok 1 a\n"), Verdict.FAIL, "1 failed: a"),  # a status that lies
        (ended(1, b"1..1\nok 1 a\n", b"then it broke\n"), Verdict.FAIL, "exit status 1: then it broke"),
        (ended(4, b"1..0 # SKIP no GPU\n"), Verdict.SKIP, "no GPU"),
        (ended(4, b"no GPU here\n"), Verdict.SKIP, "no GPU here"),
        (ended(4, b"1..2\nnot ok 1 a\nok 2 b\n"), Verdict.FAIL, "1 failed: a"),  # failing is not skipping
        (ended(4, b"Run test: a\nx... \x1b[31mFail\x1b[0m\n"), Verdict.FAIL, "exit status 4, 1 failed: a"),
        (ended(0, b"1..2\nok 1 a\n"), Verdict.INCOMPLETE, "tests: 2 planned, 1 reported"),
        (ended(0, b"1..1\nok 1 a # SKIP none\n"), Verdict.SKIP, "none"),
        (ended(0, b"Bail out! no\n"), Verdict.FAIL, "bailed out: no"),
        (ended(0, b"[RUN]\ta\n[FAIL]\twrong\n"), Verdict.FAIL, "exit status 0, 1 failed: a"),
        (ended(0, b"[RUN]\ta\n[OK]\tfine\n"), Verdict.PASS, ""),
        (ended(2, b"", b""), Verdict.FAIL, "exit status 2: it said nothing"),
        (ended(None, b"1..1\nok 1 a\n", signal=11), Verdict.FAIL, "was killed by signal 11 (Segmentation fault)"),
        (ended(None, b"1..0 # SKIP\n", signal=6), Verdict.FAIL, "was killed by signal 6"),
        (ended(0, b"\xff\x00 junk\n"), Verdict.PASS, ""),
    ],
)
def test_status_and_output_together(tmp_path: Path, end: End, verdict: Verdict, reason: str) -> None:
    (result,) = run(Rack(tmp_path, {"cow": end}), program("cow"))
    assert result.verdict is verdict, result.reason
    assert reason in result.reason
    assert bool(reason) == bool(result.reason)


def test_program_is_found_below_share_with_its_time(tmp_path: Path) -> None:
    rack = Rack(tmp_path, {"cow": ended()})
    run(rack, replace(program("cow"), argv=("cow", "-x", "1")))
    ((argv, timeout, _),) = rack.machines[0].seen
    assert (argv, timeout) == (["/share/mm/cow", "-x", "1"], 60.0)


def test_program_of_the_host(tmp_path: Path) -> None:
    rack = Rack(tmp_path, {"stress-ng": ended(3)})
    (result,) = run(rack, program("stress-ng", skip_status=(3, 4)), directory="")
    assert rack.machines[0].seen[0][0] == ["stress-ng"]
    assert result.verdict is Verdict.SKIP


def test_another_user(tmp_path: Path) -> None:
    rack = Rack(tmp_path, {"su": ended()})
    run(rack, replace(program("a"), argv=("a", "b c"), user="nobody"))
    assert rack.machines[0].seen[0][0] == ["su", "-s", "/bin/sh", "nobody", "-c", "exec /share/mm/a 'b c'"]


def test_not_built_and_not_startable(tmp_path: Path) -> None:
    rack = Rack(tmp_path, {})
    first, second = run(rack, program("gone"), program("unstartable"), built={"mm/unstartable": "static"})
    assert first.verdict is second.verdict is Verdict.MISSING
    assert "not built" in first.reason
    assert "cannot be started: Exec format error" in second.reason
    assert len(rack.machines) == 1


def test_time_out_says_where_and_gets_a_fresh_machine(tmp_path: Path) -> None:
    rack = Rack(tmp_path, {"slow": TIMEOUT, "quick": ended()})
    slow, quick = run(rack, program("slow"), program("quick"))
    assert slow.verdict is Verdict.TIMEOUT
    assert slow.reason == "still running after 60 s, in 'b'; /share/mm/slow was killed"
    assert slow.tests == {"a": (Verdict.PASS, ""), "b": (Verdict.INCOMPLETE, "its end was never printed")}
    assert quick.verdict is Verdict.PASS
    assert [len(machine.seen) for machine in rack.machines] == [2, 1]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            GuestPanicError("the guest's kernel panicked: Fatal exception\nRIP: ..."),
            "panic: the guest's kernel panicked: ",
        ),
        (GuestHangError("no heartbeat"), "hang: no heartbeat"),
        (QemuDiedError("QEMU ended"), "qemu-died: QEMU ended"),
    ],
)
def test_lost_machine_is_a_verdict_and_the_rest_goes_on(tmp_path: Path, error: Exception, reason: str) -> None:
    def lose(argv: list[str]) -> Completed:
        raise error

    rack = Rack(tmp_path, {"killer": lose, "cow": ended()})
    killer, cow = run(rack, program("killer"), program("cow"))
    assert killer.verdict is Verdict.LOST
    assert killer.reason.startswith(reason)
    assert "\n" not in killer.reason
    assert cow.verdict is Verdict.PASS
    assert len(rack.machines) == 2


def test_machine_that_never_comes_up_ends_the_run(tmp_path: Path) -> None:
    @contextmanager
    def never() -> Iterator[FakeMachine]:
        raise QemuDiedError("no QEMU")
        yield

    with pytest.raises(QemuDiedError):
        runner.run(Group("mm", "", (program("a"),), "mm"), [program("a")], never, lambda _: "static")


def test_complaints_of_the_kernel_are_those_of_the_program(tmp_path: Path) -> None:
    machines: list[FakeMachine] = []

    def complain(argv: list[str]) -> Completed:
        with machines[0].console.open("ab") as log:
            log.write(b"[    2.000000] WARNING: CPU: 0 PID: 7 at mm/memory.c:1 x+0x1/0x2\n[    2.1] harmless\n")
        return Completed(argv, 0, None, b"", b"")

    rack = Rack(tmp_path, {"loud": complain, "quiet": ended()})
    machines = rack.machines
    loud, quiet = run(rack, program("loud"), program("quiet"))
    assert loud.verdict is Verdict.PASS
    assert loud.complaints == ("WARNING: CPU: 0 PID: 7 at mm/memory.c:1 x+0x1/0x2",)
    assert quiet.complaints == ()


def test_settings_are_made_and_unmade(tmp_path: Path) -> None:
    other = "sys/module/kvm/parameters/nx_huge_pages"
    files = {"proc/sys/vm/nr_hugepages": b"0\n", "proc/sys/vm/overcommit_memory": b"2\n", other: b"auto\n"}
    rack = Rack(tmp_path, {"cow": ended()}, **files)
    run(rack, program("cow", hugepages=4, sysctls={"vm.overcommit_memory": "1", f"/{other}": "Y"}))
    machine = rack.machines[0]
    during = machine.seen[0][2]
    assert during["/proc/sys/vm/nr_hugepages"] == b"4\n"
    assert during["/proc/sys/vm/overcommit_memory"] == b"1\n"
    assert during[f"/{other}"] == b"Y\n"
    assert machine.files["/proc/sys/vm/nr_hugepages"] == b"0\n"
    assert machine.files["/proc/sys/vm/overcommit_memory"] == b"2\n"
    assert machine.files[f"/{other}"] == b"auto\n"


def test_files_of_the_kernel_are_set_before_each_program_and_back_after_it(tmp_path: Path) -> None:
    """The word in brackets is set back: what is read of a choice is no value that it takes."""
    policy, huge = "sys/kernel/mm/ksm/numa_policy", "sys/kernel/mm/transparent_hugepage/enabled"
    before = {policy: b"[none] fair priority strict\n", huge: b"always [madvise] never\n"}
    rack = Rack(tmp_path, {"cow": ended(), "pkey": ended()}, **before)
    group = Group("mm", "", (program("cow"), program("pkey", sysctls={f"/{huge}": "never"})), "mm")
    runner.run(group, group.programs, rack.open, lambda _: "static", files={f"/{policy}": "fair"})
    machine = rack.machines[0]
    assert [files[f"/{policy}"] for _, _, files in machine.seen] == [b"fair\n"] * 2
    assert [files[f"/{huge}"] for _, _, files in machine.seen] == [b"always [madvise] never\n", b"never\n"]
    assert (machine.files[f"/{policy}"], machine.files[f"/{huge}"]) == (b"none\n", b"madvise\n")


def test_a_kernel_without_a_file_runs_nothing(tmp_path: Path) -> None:
    rack = Rack(tmp_path, {"cow": ended()})
    group = Group("mm", "", (program("cow"),), "mm")
    (result,) = runner.run(group, group.programs, rack.open, lambda _: "static", files={"/sys/x": "4"})
    assert (result.verdict, result.reason) == (Verdict.SKIP, "cannot set /sys/x to 4: No such file or directory")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"needs": ("/dev/kvm",)}, "needs /dev/kvm"),
        ({"needs": ("cpu:la57",)}, "needs la57"),
        ({"hardware": True}, "would take hours in emulation"),
        ({"nodes": 3}, "needs 3 nodes with memory, the machine has 2"),
        ({"hugepages": 64}, "needs 64 huge pages, got 8"),
        ({"sysctls": {"vm.nothing": "1"}}, "cannot set /proc/sys/vm/nothing to 1: No such file or directory"),
    ],
)
def test_what_the_machine_lacks_is_a_skip(tmp_path: Path, more: dict[str, object], reason: str) -> None:
    files = {"proc/sys/vm/nr_hugepages": b"0\n", "proc/cpuinfo": b"flags : fpu la58 pge\n"}
    rack = Rack(tmp_path, {"cow": ended()}, **files)
    (result,) = run(rack, program("cow", **more))
    assert (result.verdict, result.reason) == (Verdict.SKIP, reason)
    assert rack.machines[0].seen == []
    assert rack.machines[0].files["/proc/sys/vm/nr_hugepages"] == b"0\n"


def test_what_the_machine_has(tmp_path: Path) -> None:
    rack = Rack(tmp_path, {"cow": ended()}, **{"dev/kvm": b"", "proc/cpuinfo": b"flags : fpu la57 pge\n"})
    (result,) = run(rack, program("cow", needs=("/dev/kvm", "cpu:la57"), nodes=2))
    assert result.verdict is Verdict.PASS


def test_swap_where_there_is_a_device(tmp_path: Path) -> None:
    files = {"dev/zram0": b"", "sys/block/zram0/disksize": b"0", "sys/block/zram0/reset": b"0"}
    with_device, without = Rack(tmp_path, {"cow": ended()}, **files), Rack(tmp_path, {"cow": ended()})
    for rack in (with_device, without):
        (result,) = run(rack, program("cow", swap=True))
        assert result.verdict is Verdict.PASS
    machine = with_device.machines[0]
    assert machine.swap == ["mkswap", "swapon", "swapoff"]
    assert machine.files["/sys/block/zram0/disksize"] == b"268435456"
    assert machine.files["/sys/block/zram0/reset"] == b"1"
    assert without.machines[0].swap == []


def test_result_is_told_at_once_and_survives_json(tmp_path: Path) -> None:
    told: list[Result] = []
    rack = Rack(tmp_path, {"cow": ended(1, b"1..2\nnot ok 1 a\nok 2 # SKIP b\n")})
    group = Group("mm", "", (program("cow"),), "mm")
    (result,) = runner.run(group, group.programs, rack.open, lambda _: "static", on_result=told.append)
    assert told == [result]
    again = Result.from_json(result.to_json())
    assert replace(again, stdout=result.stdout, seconds=result.seconds) == result
    assert (result.planned, list(result.tests)) == (2, ["a", "b"])


def test_words_before_a_command(tmp_path: Path) -> None:
    rack = Rack(tmp_path, {"bounce": ended(0), "gup": ended(0)})
    group = Group("mm", "", (program("cow"), program("gup", steady=True)), "mm")
    built = {"mm/cow": "static", "mm/gup": "static"}
    runner.run(group, group.programs, rack.open, built.get, wrap=["/bin/bounce"])
    assert [argv for argv, *_ in rack.machines[0].seen] == [["/bin/bounce", "/share/mm/cow"], ["/share/mm/gup"]]
