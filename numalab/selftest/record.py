"""Recorded runs of a group: every repeat on one kernel, as one JSON file, and what the repeats say together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from numalab.errors import ExperimentError, UserError
from numalab.paths import write_json
from numalab.selftest.runner import Result
from numalab.selftest.verdict import Verdict

SCHEMA = 1
KIND = "numalab-selftest"


class Standing(StrEnum):
    """What several repeats on one kernel say about a test."""

    STABLE_PASS = "stable-pass"
    STABLE_FAIL = "stable-fail"
    FLAKY = "flaky"  # sometimes good, sometimes bad
    SKIP = "skip"  # never ran


@dataclass(frozen=True)
class History:
    """Verdicts of one test, one per repeat in which it was reported, and the first reason given for a bad one.

    `repeats` is the number of repeats of the run: fewer verdicts mean that the test was not always reported.
    """

    verdicts: tuple[Verdict, ...]
    repeats: int
    reason: str = ""

    @property
    def standing(self) -> Standing:
        """What the verdicts say together; a repeat that did not report a test that others did counts as bad."""
        ran = [verdict for verdict in self.verdicts if verdict is not Verdict.SKIP]
        bad = sum(verdict.bad for verdict in ran) + self.repeats - len(self.verdicts)
        good = sum(verdict.good for verdict in ran)
        if not bad:
            return Standing.STABLE_PASS if good else Standing.SKIP
        return Standing.FLAKY if good else Standing.STABLE_FAIL

    def __str__(self) -> str:
        """As "pass 3/3" or "pass 2/3, fail 1/3"."""
        counts = {verdict: self.verdicts.count(verdict) for verdict in dict.fromkeys(self.verdicts)}
        words = [f"{verdict.value} {count}/{self.repeats}" for verdict, count in counts.items()]
        if absent := self.repeats - len(self.verdicts):
            words.append(f"not reported {absent}/{self.repeats}")
        return ", ".join(words)


@dataclass(frozen=True)
class Run:
    """All repeats of a group on one kernel.

    Attributes:
        group: its name.
        kernel: KernelImage facts: at least "name" and "release".
        machine: accel, topology, QEMU version.
        programs_key: which build of the test programs.
        repeats: the results of each repeat.
    """

    group: str
    kernel: Mapping[str, Any]
    machine: Mapping[str, Any]
    programs_key: str
    repeats: tuple[tuple[Result, ...], ...]
    started: str = ""
    seconds: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def programs(self) -> dict[str, History]:
        """Return the history of every program, over the repeats in which it was run."""
        names = dict.fromkeys(each.program for repeat in self.repeats for each in repeat)
        return {
            name: _histories([{name: (each.verdict, each.reason)} for each in self.results(name)])[name]
            for name in names
        }

    def tests(self, program: str, names: Sequence[str] = ()) -> dict[str, History]:
        """Return the history of every test that `program` reported.

        Tests are known by their names; with `names` by their place in the output, and get these names (see `places`).
        """
        tests = (result.tests for result in self.results(program))
        return _histories([_renamed(each, names) if names else dict(each) for each in tests])

    def results(self, program: str) -> list[Result]:
        """Return the results of `program`, one per repeat in which it was run."""
        return [each for repeat in self.repeats for each in repeat if each.program == program]

    def complaints(self, program: str) -> list[str]:
        """Return what the kernel said about itself while `program` ran, all repeats together."""
        return [
            line for repeat in self.repeats for each in repeat if each.program == program for line in each.complaints
        ]

    def save(self, path: Path) -> None:
        """Write this run, atomically."""
        write_json(
            path,
            {
                "schema": SCHEMA,
                "kind": KIND,
                "group": self.group,
                "kernel": dict(self.kernel),
                "machine": dict(self.machine),
                "programs_key": self.programs_key,
                "started": self.started,
                "seconds": round(self.seconds, 1),
                **self.extra,
                "repeats": [[each.to_json() for each in repeat] for repeat in self.repeats],
            },
        )


def load(path: Path) -> Run:
    """Read a run, given its file or the directory that holds its results.json.

    Raises:
        UserError: there is none, or it is something else.
        ExperimentError: damaged, or written by a newer numalab.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        value = json.loads(file.read_text())
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise ExperimentError(f"{file} is damaged: {error}", remedy="run the group again") from None
    if not isinstance(value, dict) or value.get("kind") != KIND:
        raise UserError(f"{file} holds no results of kernel test programs")
    if value.get("schema") != SCHEMA:
        raise ExperimentError(f"{file} has schema {value.get('schema')}, this numalab knows {SCHEMA}")
    try:
        repeats = tuple(tuple(Result.from_json(each) for each in repeat) for repeat in value["repeats"])
        return Run(
            value["group"],
            value["kernel"],
            value["machine"],
            value["programs_key"],
            repeats,
            value["started"],
            value["seconds"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExperimentError(f"{file} is damaged: {type(error).__name__}: {error}") from None


def places(results: Sequence[Result]) -> list[str]:
    """Return a name for each place in the output of a program that always reports the same tests.

    Many tests word their result by its outcome ("wake succeeds", "wake returned 0"): the words of a result that held
    are the name.
    """
    names: list[str] = []
    for place in range(max((len(result.tests) for result in results), default=0)):
        there = [list(result.tests.items())[place] for result in results if len(result.tests) > place]
        words = next((name for name, (verdict, _) in there if verdict.good), there[0][0])
        names.append(words if words not in names else f"{words} (at {place + 1})")
    return names


def _renamed(tests: Mapping[str, tuple[Verdict, str]], names: Sequence[str]) -> dict[str, tuple[Verdict, str]]:
    """Return the tests under the names of their places; other words it had for one are its reason."""
    return {
        name: (verdict, reason or ("" if verdict.good else words))
        for name, (words, (verdict, reason)) in zip(names, tests.items(), strict=False)
    }


def _histories(repeats: Sequence[Mapping[str, tuple[Verdict, str]]]) -> dict[str, History]:
    names = dict.fromkeys(name for repeat in repeats for name in repeat)
    found = {}
    for name in names:
        entries = [repeat[name] for repeat in repeats if name in repeat]
        reason = next((why for verdict, why in entries if verdict.bad and why), "") or entries[0][1]
        found[name] = History(tuple(verdict for verdict, _ in entries), len(repeats), reason)
    return found
