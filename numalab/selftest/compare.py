"""A kernel's test results against a baseline: what the kernel is to blame for, and what was there before.

The baseline holds several repeats on the kernel compared with (the stock one, or ours without patches), so that a test
that is flaky or cannot work on this machine is known before a patch is blamed.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from numalab.errors import UserError
from numalab.selftest.record import History, Run, Standing, places
from numalab.selftest.runner import Result
from numalab.selftest.verdict import Verdict


class Judgement(StrEnum):
    """What a difference means."""

    REGRESSION = "regression"  # held in every repeat of the baseline, fails in every repeat now
    SUSPECT = "suspect"  # held in every repeat of the baseline, fails in some repeats now
    COMPLAINT = "complaint"  # the kernel warned about itself, which it did not in the baseline
    NEW_FAILURE = "new-failure"  # not in the baseline, and bad
    GONE = "gone"  # in the baseline, no longer reported
    SKIPPED = "skipped"  # held in the baseline, does not run now: nobody knows whether it would hold
    FLAKY = "flaky"  # bad now, and sometimes bad in the baseline
    FIXED = "fixed"  # bad in every repeat of the baseline, holds now
    RUNS = "runs"  # skipped in the baseline, holds now

    @property
    def blames(self) -> bool:
        """Whether the kernel under test is to blame until somebody explains the difference."""
        return self in (
            Judgement.REGRESSION,
            Judgement.SUSPECT,
            Judgement.COMPLAINT,
            Judgement.NEW_FAILURE,
            Judgement.GONE,
            Judgement.SKIPPED,
        )


@dataclass(frozen=True)
class Difference:
    """One line of a comparison.

    Attributes:
        program, test: which; test "" is the program as a whole.
        judgement: what it means.
        baseline, now: histories as people read them, "pass 3/3"; "" where it was not reported.
        explanation: why it is judged so, and what the test said.
        explained: why it is expected, from a file of explanations; "" when nobody said.
    """

    program: str
    test: str
    judgement: Judgement
    baseline: str
    now: str
    explanation: str
    explained: str = ""

    @property
    def name(self) -> str:
        """Program and test in one."""
        return f"{self.program}: {self.test}" if self.test else self.program

    @property
    def blames(self) -> bool:
        """Whether this difference makes the comparison fail."""
        return self.judgement.blames and not self.explained

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "judgement": self.judgement.value, "blames": self.blames}


def compare(run: Run, baseline: Run, explanations: Mapping[str, str] | None = None) -> list[Difference]:
    """Return the differences of `run` from `baseline`, those that blame the kernel first.

    Args:
        run: results on the kernel under test.
        baseline: results on the kernel compared with; the same group.
        explanations: pattern of "program" or "program: test" (fnmatch) → why it is expected.

    Raises:
        UserError: the two are not of the same group.
    """
    if run.group != baseline.group:
        raise UserError(f"results of group {run.group} cannot be compared with those of group {baseline.group}")
    found = []
    programs, before = run.programs(), baseline.programs()
    for program in dict.fromkeys((*programs, *before)):
        if program not in programs:
            continue  # only some programs were run
        tests = list(_tests(program, run, baseline))
        whole = _judge(program, "", before.get(program), programs[program])
        # A program that fails because of one of its tests is told once.
        if whole is not None and not (whole.judgement.blames and _told(whole, programs[program], tests)):
            found.append(whole)
        found += tests
        found += _complaints(program, run, baseline)
    known = explanations or {}
    found = [replace(each, explained=_explained(each.name, known)) for each in found]
    order = list(Judgement)
    return sorted(found, key=lambda each: (not each.blames, order.index(each.judgement)))


def read_explanations(path: Path) -> dict[str, str]:
    """Read those explanations of a file that stand everywhere; see `explanations_by_place`."""
    return explanations_by_place(path).get("", {})


def explanations_by_place(path: Path) -> dict[str, dict[str, str]]:
    """Read a file of explanations: TOML, `[[explained]]` with `test` (a pattern) and `why`.

    Returns: by `where`, which is an "axis=value" of a matrix, the only place where they stand; "": everywhere.

    Raises:
        UserError: unreadable, or an entry without either.
    """
    try:
        table = tomllib.loads(path.read_text())
        found: dict[str, dict[str, str]] = {}
        for entry in table.get("explained", []):
            found.setdefault(entry.get("where", ""), {})[entry["test"]] = entry["why"]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: each [[explained]] has a test and a why: {error}") from None
    return found


def _tests(program: str, run: Run, baseline: Run) -> Iterator[Difference]:
    results = [*run.results(program), *baseline.results(program)]
    names = places(results) if _same_plan(results) else ()
    now, before = run.tests(program, names), baseline.tests(program, names)
    known = baseline.programs().get(program)
    for test, history in now.items():
        difference = _judge(program, test, before.get(test), history, new_program=known is None)
        if difference is not None:
            yield difference
    for test, history in before.items():
        # When the program as a whole did not end well, or did not run, that is what is told.
        if test not in now and history.standing is Standing.STABLE_PASS and _ended_well(run, program):
            why = "every repeat of the baseline reported it, none does now"
            yield Difference(program, test, Judgement.GONE, str(history), "", why)


def _same_plan(results: Sequence[Result]) -> bool:
    """Whether a program announced the same number of tests whenever it ran any, and nests none."""
    ran = [result for result in results if result.tests]
    plans = {result.planned for result in ran}
    return len(plans) == 1 and all(each.planned and len(each.tests) <= each.planned for each in ran)


def _ended_well(run: Run, program: str) -> bool:
    ends = {Verdict.PASS, Verdict.FAIL, Verdict.XFAIL}
    return all(each.verdict in ends for each in run.results(program))


def _judge(
    program: str, test: str, before: History | None, now: History, *, new_program: bool = False
) -> Difference | None:
    judged = _judgement(before, now)
    if judged is None or (judged is Judgement.NEW_FAILURE and new_program):
        return None
    words = {
        Judgement.REGRESSION: _once(now),
        Judgement.SUSPECT: "never failed in the baseline; repeat both to tell a rare failure from a new one",
        Judgement.NEW_FAILURE: "the baseline does not have it",
        Judgement.FLAKY: "fails sometimes in the baseline too",
        Judgement.SKIPPED: "does not run on this kernel or machine",
        Judgement.FIXED: "failed in every repeat of the baseline",
        Judgement.RUNS: "was skipped in the baseline",
    }[judged]
    # What holds now has no reason of its own: why it did not is the baseline's.
    reason = before.reason if before and judged in (Judgement.FIXED, Judgement.RUNS) else now.reason
    explanation = f"{words}: {reason}" if reason else words
    return Difference(program, test, judged, str(before or ""), str(now), explanation)


def _once(now: History) -> str:
    if now.repeats == 1:
        return "held in the baseline and failed now, once; repeat it to tell a flaky test"
    return "held in the baseline and fails every time now"


def _judgement(before: History | None, now: History) -> Judgement | None:
    """What the two histories mean together; None when there is no difference worth a line."""
    if before is None:
        return Judgement.NEW_FAILURE if any(verdict.bad for verdict in now.verdicts) else None
    if Verdict.LOST in now.verdicts and Verdict.LOST not in before.verdicts:
        return Judgement.REGRESSION  # whatever it did before, it did not take the machine with it
    match now.standing, before.standing:
        case Standing.STABLE_FAIL, Standing.STABLE_PASS | Standing.SKIP:
            return Judgement.REGRESSION
        case Standing.FLAKY, Standing.STABLE_PASS | Standing.SKIP:
            return Judgement.SUSPECT
        case Standing.STABLE_FAIL | Standing.FLAKY, Standing.FLAKY:
            return Judgement.FLAKY
        case Standing.SKIP, Standing.STABLE_PASS:
            return Judgement.SKIPPED
        case Standing.STABLE_PASS, Standing.STABLE_FAIL:
            return Judgement.FIXED
        case Standing.STABLE_PASS, Standing.SKIP:
            return Judgement.RUNS
    return None


def _told(whole: Difference, now: History, tests: list[Difference]) -> bool:
    """Whether the program's failure is that of tests that have lines of their own."""
    only_failed = all(verdict in (Verdict.FAIL, Verdict.PASS, Verdict.SKIP) for verdict in now.verdicts)
    blamed = any(test.judgement.blames for test in tests)
    flaky = any(test.judgement is Judgement.FLAKY for test in tests)
    return only_failed and (blamed or flaky) and "killed by" not in whole.explanation


def _complaints(program: str, run: Run, baseline: Run) -> Iterator[Difference]:
    before = {_without_numbers(line) for line in baseline.complaints(program)}
    told: set[str] = set()
    for line in run.complaints(program):
        key = _without_numbers(line)
        if key not in before and key not in told:
            told.add(key)
            yield Difference(program, "", Judgement.COMPLAINT, "", "", f"the kernel said: {line}")


def _without_numbers(line: str) -> str:
    return re.sub(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+", "#", line)


def _explained(name: str, explanations: Mapping[str, str]) -> str:
    return next((why for pattern, why in explanations.items() if fnmatch.fnmatchcase(name, pattern)), "")
