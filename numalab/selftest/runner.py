"""Running test programs in a machine: one after the other, each with its time, whatever happens to the machine."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from numalab.errors import MachineLostError
from numalab.machine import console
from numalab.machine.outcome import CommandTimeoutError, Completed, GuestFileError
from numalab.selftest import legacy, prepare, tap
from numalab.selftest.catalogue import Group, Program
from numalab.selftest.machine import MachineLike, OpenMachine
from numalab.selftest.verdict import Verdict

#: Where the guest sees the directory of built programs.
GUEST_TOP = PurePosixPath("/share")
_SHOWN = 300


#: Path of a program below the built directory → "static", "dynamic", None when it was not built.
Linkage = Callable[[str], str | None]


@dataclass(frozen=True)
class Result:
    """What one program came to, once.

    Attributes:
        program: its name in the group.
        verdict: of the program as a whole.
        reason: one line that says why, when it is not a plain pass.
        tests: path of the innermost tests → (verdict, reason), in order; empty for a program that reports none.
        planned: how many tests it announced, None when it did not.
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
    planned: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the output."""
        return {
            "program": self.program,
            "verdict": self.verdict.value,
            "reason": self.reason,
            "status": self.status,
            "signal": self.signal,
            "seconds": round(self.seconds, 3),
            "planned": self.planned,
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
            planned=value["planned"],
        )


def run(
    group: Group,
    programs: Sequence[Program],
    open_machine: OpenMachine,
    linkage: Linkage,
    *,
    on_result: Callable[[Result], None] = lambda _: None,
    patience: float = 1.0,
    wrap: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
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
        wrap: words before each program's command that make its threads bounce; steady programs go without.
        files: of the kernel, and what they are set to before each program; as before after it.

    Raises:
        MachineLostError: no machine comes up.
    """
    way = _Way(linkage, patience, wrap, files)
    left = list(programs)
    results: list[Result] = []
    while left:
        fresh = True
        # An exception out of the block would hide how the machine ended: it is caught inside.
        with open_machine() as machine:
            while left and fresh:
                result = _run_one(group, left.pop(0), machine, way)
                results.append(result)
                on_result(result)
                fresh = result.verdict not in (Verdict.LOST, Verdict.TIMEOUT)
    return results


@dataclass(frozen=True)
class _Way:
    """How every program is run; see `run`."""

    linkage: Linkage
    patience: float
    wrap: Sequence[str]
    files: Mapping[str, str] | None


def _run_one(group: Group, program: Program, machine: MachineLike, way: _Way) -> Result:
    begun = time.monotonic()
    before = len(console.read(machine.console))
    try:
        result = _prepared(group, program, machine, way)
    except MachineLostError as error:
        reason = f"{getattr(error, 'type', 'lost')}: {str(error).partition(chr(10))[0]}"
        result = Result(program.name, Verdict.LOST, reason)
    said = console.complaints(console.read(machine.console)[max(0, before - 1) :])
    values = {**vars(result), "complaints": tuple(said), "seconds": time.monotonic() - begun}
    return Result(**values)


def _prepared(group: Group, program: Program, machine: MachineLike, way: _Way) -> Result:
    argv = list(program.argv)
    if group.directory:
        path = f"{group.directory}/{program.argv[0]}"
        if way.linkage(path) is None:
            return Result(program.name, Verdict.MISSING, "not built (numalab selftest build says why)")
        argv[0] = str(GUEST_TOP / path)
    try:
        with prepare.prepared(program, machine, way.files):
            words = [*(() if program.steady else way.wrap), *prepare.as_user(program, argv)]
            return _executed(program, words, machine, way.patience)
    except prepare.CannotError as cannot:
        return Result(program.name, Verdict.SKIP, str(cannot))


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
        doing = next((name for name, (verdict, _) in cut.tests.items() if verdict is Verdict.INCOMPLETE), "")
        reason = f"still running after {limit:g} s{f', in {doing!r}' if doing else ''}; {shlex.join(argv)} was killed"
        return Result(**{**vars(cut), "verdict": Verdict.TIMEOUT, "reason": reason})
    return judge(program, done)


def judge(program: Program, done: Completed) -> Result:
    """Return what a program that ended came to, from its exit status and its output together.

    Either can spoil the other: a test that fails under exit status 0, or a status other than 0 (or a signal) after
    tests that all passed, is no pass.
    """
    output = tap.parse(done.stdout)
    if not output.is_tap:
        said = tap.parse(done.stderr)
        output = said if said.is_tap else legacy.parse(done.stdout)
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
        planned=output.planned,
    )


def _verdict(program: Program, done: Completed, output: tap.Output) -> tuple[Verdict, str]:
    tests = output.verdict
    if done.signal is not None:
        return Verdict.FAIL, str(done)
    if tests is not None and tests.bad:
        return tests, _why_bad(output)
    if tests is None and any(test.verdict.bad for test in output.tests):
        return Verdict.FAIL, f"exit status {done.status}, {_why_bad(output)}"
    if done.status in program.skip_status:
        skipped = output.skip_all or next((test.reason for test in output.tests if test.verdict is Verdict.SKIP), "")
        return Verdict.SKIP, skipped or _last_words(done)
    if done.status:
        return Verdict.FAIL, f"exit status {done.status}: {_last_words(done)}"
    if tests is None:
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
