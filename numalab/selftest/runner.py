"""Running test programs in a machine: one after the other, each with its time, whatever happens to the machine."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from numalab.errors import MachineLostError
from numalab.machine import console
from numalab.machine.outcome import CommandTimeoutError, Completed, GuestFileError
from numalab.selftest import tap
from numalab.selftest.catalogue import Group, Program
from numalab.selftest.verdict import Verdict

#: Where the guest sees the directory of built programs.
GUEST_TOP = PurePosixPath("/share")
_NR_HUGEPAGES = "/proc/sys/vm/nr_hugepages"
_SHOWN = 300


class ProcessLike(Protocol):
    """A command of the guest that was started."""

    def wait(self, timeout: float | None = None) -> Completed:
        """Wait for its end; after a time-out, called again, return what it left."""


class MachineLike(Protocol):
    """What the runner needs of a machine (numalab.machine.session.Machine has it)."""

    @property
    def console(self) -> Path:
        """The log of its console."""

    def start(self, argv: Sequence[str], *, cwd: str = "/", env: Mapping[str, str] | None = None) -> ProcessLike:
        """Start a command."""

    def read_file(self, path: str) -> bytes:
        """Return a file of the guest."""

    def write_file(self, path: str, data: bytes) -> None:
        """Write a file of the guest."""


#: Gives a freshly booted machine for the length of a `with` block.
OpenMachine = Callable[[], AbstractContextManager[MachineLike]]
#: Path of a program below the built directory → "static", "dynamic", None when it was not built.
Linkage = Callable[[str], str | None]


@dataclass(frozen=True)
class Result:
    """What one program came to, once.

    Attributes:
        program: its name in the group.
        verdict: of the program as a whole.
        reason: one line that says why, when it is not a plain pass.
        tests: path of the innermost tests → (verdict, reason); empty for a program without TAP.
        complaints: what the guest's kernel said about itself meanwhile (WARN, BUG, lockdep ...).
        status, signal: how it ended; both None when it did not.
        seconds: wall time, in emulation of the emulation.
        stdout, stderr: what it printed.
        notes: oddities of its output that do not matter for the verdict.
    """

    program: str
    verdict: Verdict
    reason: str = ""
    tests: Mapping[str, tuple[Verdict, str]] = field(default_factory=dict)
    complaints: tuple[str, ...] = ()
    status: int | None = None
    signal: int | None = None
    seconds: float = 0.0
    stdout: bytes = b""
    stderr: bytes = b""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the output."""
        return {
            "program": self.program,
            "verdict": self.verdict.value,
            "reason": self.reason,
            "status": self.status,
            "signal": self.signal,
            "seconds": round(self.seconds, 3),
            "tests": {name: [verdict.value, reason] for name, (verdict, reason) in self.tests.items()},
            "complaints": list(self.complaints),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Result:
        """Read what `to_json` wrote."""
        return cls(
            value["program"],
            Verdict(value["verdict"]),
            value["reason"],
            {name: (Verdict(verdict), reason) for name, (verdict, reason) in value["tests"].items()},
            tuple(value["complaints"]),
            value["status"],
            value["signal"],
            value["seconds"],
            notes=tuple(value["notes"]),
        )


def run(
    group: Group,
    programs: Sequence[Program],
    open_machine: OpenMachine,
    linkage: Linkage,
    *,
    on_result: Callable[[Result], None] = lambda _: None,
    patience: float = 1.0,
) -> list[Result]:
    """Run `programs` of `group`, in order, and return a result for every one of them.

    A machine that is lost, or that a program could only be killed in, is replaced by a fresh one.

    Args:
        group: where they belong.
        programs: which of them.
        open_machine: boots a machine in which the built programs are at /share.
        linkage: how each program was built.
        on_result: is told each result as it comes.
        patience: factor on every time-out.

    Raises:
        MachineLostError: no machine comes up.
    """
    left = list(programs)
    results: list[Result] = []
    while left:
        fresh = True
        # An exception out of the block would hide how the machine ended: it is caught inside.
        with open_machine() as machine:
            while left and fresh:
                result = _run_one(group, left.pop(0), machine, linkage, patience)
                results.append(result)
                on_result(result)
                fresh = result.verdict not in (Verdict.LOST, Verdict.TIMEOUT)
    return results


def _run_one(group: Group, program: Program, machine: MachineLike, linkage: Linkage, patience: float) -> Result:
    begun = time.monotonic()
    before = len(console.read(machine.console))
    try:
        result = _prepared(group, program, machine, linkage, patience)
    except MachineLostError as error:
        reason = f"{getattr(error, 'type', 'lost')}: {str(error).partition(chr(10))[0]}"
        result = Result(program.name, Verdict.LOST, reason)
    said = console.complaints(console.read(machine.console)[max(0, before - 1) :])
    values = {**vars(result), "complaints": tuple(said), "seconds": time.monotonic() - begun}
    return Result(**values)


def _prepared(group: Group, program: Program, machine: MachineLike, linkage: Linkage, patience: float) -> Result:
    """Check what the program needs, set the machine up for it, run it, and set the machine back."""
    if group.directory:
        path = f"{group.directory}/{program.argv[0]}"
        if linkage(path) is None:
            return Result(program.name, Verdict.MISSING, "not built (numalab selftest build says why)")
        argv = [str(GUEST_TOP / path), *program.argv[1:]]
    else:
        argv = list(program.argv)
    for needed in program.needs:
        if not _exists(machine, needed):
            return Result(program.name, Verdict.SKIP, f"needs {needed}")
    nodes = _memory_nodes(machine)
    if nodes < program.nodes:
        return Result(program.name, Verdict.SKIP, f"needs {program.nodes} nodes with memory, the machine has {nodes}")
    settings = {f"/proc/sys/{name.replace('.', '/')}": value for name, value in program.sysctls.items()}
    if program.hugepages:
        settings[_NR_HUGEPAGES] = str(program.hugepages)
    with contextlib.ExitStack() as stack:
        for knob, value in settings.items():
            try:
                stack.enter_context(_set(machine, knob, value))
            except GuestFileError as error:
                return Result(program.name, Verdict.SKIP, f"cannot set {knob} to {value}: {error.strerror}")
        if program.hugepages and (got := int(machine.read_file(_NR_HUGEPAGES))) < program.hugepages:
            return Result(program.name, Verdict.SKIP, f"needs {program.hugepages} huge pages, got {got}")
        return _executed(program, argv, machine, patience)


@contextlib.contextmanager
def _set(machine: MachineLike, knob: str, value: str) -> Iterator[None]:
    before = machine.read_file(knob)
    machine.write_file(knob, value.encode() + b"\n")
    try:
        yield
    finally:
        # A lost machine is reported by what found it lost.
        with contextlib.suppress(MachineLostError, GuestFileError):
            machine.write_file(knob, before)


def _executed(program: Program, argv: list[str], machine: MachineLike, patience: float) -> Result:
    limit = program.timeout * patience
    try:
        process = machine.start(argv, cwd=program.cwd)
    except GuestFileError as error:
        return Result(program.name, Verdict.MISSING, f"cannot be started: {error.strerror}")
    try:
        done = process.wait(limit)
    except CommandTimeoutError:
        done = process.wait()
        # Its kind of end is our own kill: what counts is what it had said until then.
        cut = judge(program, Completed(done.argv, None, None, done.stdout, done.stderr))
        reason = f"still running after {limit:g} s; {shlex.join(argv)} was killed"
        return Result(**{**vars(cut), "verdict": Verdict.TIMEOUT, "reason": reason})
    return judge(program, done)


def judge(program: Program, done: Completed) -> Result:
    """Return what a program that ended came to, from its exit status and its output together.

    Either can spoil the other: a test that fails under exit status 0, or a status other than 0 (or a signal) after
    tests that all passed, is no pass.
    """
    output = tap.parse(done.stdout)
    if not output.is_tap and (said := tap.parse(done.stderr)).is_tap:
        output = said
    verdict, reason = _verdict(program, done, output)
    return Result(
        program.name,
        verdict,
        reason,
        output.leaves(),
        status=done.status,
        signal=done.signal,
        stdout=done.stdout,
        stderr=done.stderr,
        notes=output.notes,
    )


def _verdict(program: Program, done: Completed, output: tap.Output) -> tuple[Verdict, str]:
    tests = output.verdict
    if done.signal is not None:
        return Verdict.FAIL, str(done)
    if tests is not None and tests.bad:
        return tests, _why_bad(output)
    if done.status in program.skip_status:
        skipped = output.skip_all or next((test.reason for test in output.tests if test.verdict is Verdict.SKIP), "")
        return Verdict.SKIP, skipped or _last_words(done)
    if done.status:
        return Verdict.FAIL, f"exit status {done.status}: {_last_words(done)}"
    if tests is None:
        complaint = next((line for line in done.stdout.splitlines() if line.startswith(b"[FAIL]")), None)
        if complaint is not None:
            return Verdict.FAIL, f"exit status 0, but: {complaint.decode(errors='backslashreplace')}"
        return Verdict.PASS, ""
    if tests is Verdict.SKIP:
        return tests, output.skip_all or next((test.reason for test in output.tests), "")
    return tests, ""


def _why_bad(output: tap.Output) -> str:
    if output.bail is not None:
        return f"bailed out: {output.bail}".rstrip(": ")
    bad = [name for name, (verdict, _) in output.leaves().items() if verdict.bad]
    return "; ".join([*([f"{len(bad)} failed: {', '.join(bad)}"] if bad else []), *output.problems])[:_SHOWN]


def _last_words(done: Completed) -> str:
    lines = (done.stderr or done.stdout).decode(errors="backslashreplace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")[:_SHOWN]


def _exists(machine: MachineLike, path: str) -> bool:
    # `test -e` in the guest: reading a device node would not tell.
    process = machine.start(["test", "-e", path])
    return process.wait(60).status == 0


def _memory_nodes(machine: MachineLike) -> int:
    try:
        text = machine.read_file("/sys/devices/system/node/has_memory").decode().strip()
    except GuestFileError:
        return 1  # a kernel without NUMA
    count = 0
    for span in filter(None, text.split(",")):
        first, _, last = span.partition("-")
        count += int(last or first) - int(first) + 1
    return count
