"""Reader of TAP and KTAP: what kernel selftests and KUnit print.

Documentation/dev-tools/ktap.rst and tools/testing/selftests/kselftest.h are the reference. Read as it is met in
practice: kernel messages between and within lines, output cut off anywhere, output repeated because a forked child
flushed its parent's buffer, plans before or after the tests or none at all, several TAP documents in one output.

A test that was planned and did not report makes the whole output incomplete; nothing here turns silence into a pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from numalab.selftest.verdict import Verdict, worst

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
#: A kernel message: "[   12.345678] ", perhaps with a level before it and a caller or processor behind the time.
_PRINTK = re.compile(r"(?:<\d+>)?\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? ?")
_VERSION = re.compile(r"( *)K?TAP version \d+\s*$", re.IGNORECASE)
_PLAN = re.compile(r"( *)1\.\.(\d+)\s*(?:#\s*SKIP\b[:\s-]*(?P<why>.*))?$", re.IGNORECASE)
_RESULT = re.compile(r"( *)(?P<not>not )?ok\b(?: +(?P<number>\d+))?(?P<rest>(?:\s.*)?)$")
_DIRECTIVE = re.compile(
    r"(?:^|\s)#\s*(?P<word>SKIP|TODO|XFAIL|TIMEOUT|ERROR)(?:PED)?\b[:\s-]*(?P<why>.*)$", re.IGNORECASE
)
_BAIL = re.compile(r" *Bail out!\s*(?P<why>.*)$", re.IGNORECASE)
_TOTALS = re.compile(r" *# Totals: pass:(\d+) fail:(\d+) xfail:(\d+) xpass:(\d+) skip:(\d+) error:(\d+)")
_CONTEXT = re.compile(r" *# \[RUN\]\s*(?P<what>.*\S)\s*$")
_DIAGNOSTIC = re.compile(r" *# ?")


@dataclass(frozen=True)
class Test:
    """One test of the output.

    Attributes:
        name: as printed; behind a "# [RUN] ..." line that line's words stand before it, or, when the line has but one
            result, in its place: many such tests have the same description, or one that depends on their outcome.
            "" when nothing was printed.
        verdict: PASS, FAIL, SKIP, XFAIL or INCOMPLETE.
        number: as printed, None without.
        reason: behind "# SKIP" and the like.
        tests: its subtests.
    """

    name: str
    verdict: Verdict
    number: int | None = None
    reason: str = ""
    tests: tuple[Test, ...] = ()

    def leaves(self, path: str = "") -> Iterator[tuple[str, Verdict, str]]:
        """Yield (path of names, verdict, reason) of this test's innermost subtests, or of itself."""
        here = f"{path}/{self.name}" if path else self.name
        for test in self.tests:
            yield from test.leaves(here)
        # A parent that failed although all its subtests held has something to say of its own.
        if not self.tests or (self.verdict.bad and not any(test.verdict.bad for test in self.tests)):
            yield here, self.verdict, self.reason

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        found: dict[str, Any] = {"name": self.name, "verdict": self.verdict.value}
        if self.number is not None:
            found["number"] = self.number
        if self.reason:
            found["reason"] = self.reason
        if self.tests:
            found["tests"] = [test.to_json() for test in self.tests]
        return found


@dataclass(frozen=True)
class Output:
    """A program's output, read.

    Attributes:
        tests: of the outermost level, in order.
        planned: how many it announced, None without a plan.
        is_tap: whether there was any TAP in it.
        bail: why it gave up ("Bail out!"), None when it did not; "" when it gave no reason.
        skip_all: why it skipped everything ("1..0 # SKIP"), None when it did not.
        problems: why the results are not whole; empty means complete.
        notes: oddities that do not spoil the results.
    """

    tests: tuple[Test, ...] = ()
    planned: int | None = None
    is_tap: bool = False
    bail: str | None = None
    skip_all: str | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict | None:
        """What the tests come to together; None when the output holds no TAP at all."""
        if not self.is_tap:
            return None
        if self.bail is not None:
            return Verdict.FAIL
        found = worst(test.verdict for test in self.tests)
        if found is not None and found.bad:
            return found
        if self.problems:
            return Verdict.INCOMPLETE
        return found or Verdict.SKIP

    def leaves(self) -> dict[str, tuple[Verdict, str]]:
        """Return verdict and reason of every innermost test by its path; equal paths are told apart by " (2)" etc."""
        found: dict[str, tuple[Verdict, str]] = {}
        for test in self.tests:
            for path, verdict, reason in test.leaves():
                name, copy = path or f"test {test.number}", 1
                while (unique := name if copy == 1 else f"{name} ({copy})") in found:
                    copy += 1
                found[unique] = (verdict, reason)
        return found


@dataclass
class _Level:
    """The tests of one indentation, while they are read; `contexts` holds the "[RUN]" line each stands behind."""

    indent: int
    name: str = ""
    planned: int | None = None
    tests: list[Test] = field(default_factory=list)
    contexts: list[str] = field(default_factory=list)

    def named(self) -> tuple[Test, ...]:
        """Return the tests with their contexts in their names."""
        return tuple(
            replace(test, name=_in_context(test.name, context, alone=self.contexts.count(context) == 1))
            for test, context in zip(self.tests, self.contexts, strict=True)
        )


def parse(raw: bytes, *, kernel_log: bool = False) -> Output:
    """Read the output of a test program; with `kernel_log`, the log of a kernel that ran KUnit tests.

    Bytes that are not text are shown as escapes. A last line without a newline is taken as cut off.
    """
    text = raw.decode("utf-8", errors="backslashreplace")
    lines = [_COLOUR.sub("", line).rstrip("\r") for line in text.split("\n")]
    reader = _Reader(kernel_log=kernel_log)
    for line in lines[:-1]:
        reader.line(line)
    if lines[-1].strip():
        reader.notes.append(f"the last line is cut off: {lines[-1].strip()[:60]!r}")
    return reader.finish()


class _Reader:
    """Reads line by line; `stack` holds the open levels, outermost first."""

    def __init__(self, *, kernel_log: bool) -> None:
        self.kernel_log = kernel_log
        self.documents: list[_Level] = []
        self.stack: list[_Level] = [_Level(0)]
        self.finished: tuple[Test, ...] = ()  # subtests whose parent has not reported yet
        self.context = ""
        self.subtest = ""
        self.is_tap = False
        self.bail: str | None = None
        self.skip_all: str | None = None
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.totals: list[int] | None = None

    def line(self, line: str) -> None:
        """Take one line."""
        stamp = _PRINTK.match(line)
        if self.kernel_log:
            line = line[stamp.end() :] if stamp else line
        elif stamp:
            return
        elif found := _PRINTK.search(line):
            line = line[: found.start()]  # a kernel message broke in
        if found := _VERSION.match(line):
            self._version(len(found[1]))
        elif found := _PLAN.match(line):
            self._plan(len(found[1]), int(found[2]), found["why"])
        elif (found := _RESULT.match(line)) and (found["number"] or self.is_tap):
            self._result(len(found[1]), found)
        elif found := _BAIL.match(line):
            self.is_tap = True
            self.bail = found["why"].strip()
        elif found := _TOTALS.match(line):
            self.totals = [int(number) for number in found.groups()]
        elif found := _CONTEXT.match(line):
            self.context = found["what"]
        elif found := re.match(r" *# Subtest: (?P<name>.*\S)", line):
            self.subtest = found["name"]

    def _level(self, indent: int) -> _Level:
        """Return the level of `indent`; deeper ones end, a new one begins."""
        while len(self.stack) > 1 and self.stack[-1].indent > indent:
            self._close(self.stack.pop())
        if indent > self.stack[-1].indent:
            self.stack.append(_Level(indent, self.subtest))
            self.subtest = ""
        return self.stack[-1]

    def _close(self, level: _Level) -> None:
        where = f"subtests of {level.name}" if level.name else "subtests"
        self._check_plan(level, where)
        self.finished = (*self.finished, *level.named())

    def _check_plan(self, level: _Level, where: str) -> None:
        if level.planned is not None and len(level.tests) < level.planned:
            self.problems.append(f"{where}: {level.planned} planned, {len(level.tests)} reported")
        elif level.planned is not None and len(level.tests) > level.planned:
            self.notes.append(f"{where}: {level.planned} planned, {len(level.tests)} reported")

    def _version(self, indent: int) -> None:
        self.is_tap = True
        level = self._level(indent)
        if indent == 0 and (level.tests or level.planned is not None):
            self._end_document()

    def _plan(self, indent: int, count: int, why: str | None) -> None:
        self.is_tap = True
        level = self._level(indent)
        if level.planned is not None and level.planned != count:
            if indent == 0 and len(level.tests) >= level.planned:
                self._end_document()
                level = self.stack[0]
            else:
                self.notes.append(f"a second plan: {level.planned} tests, then {count}")
        level.planned = count
        if count == 0 and indent == 0:
            self.skip_all = (why or "").strip()

    def _result(self, indent: int, found: re.Match[str]) -> None:
        self.is_tap = True
        level = self._level(indent)
        children, self.finished = self.finished, ()
        number = int(found["number"]) if found["number"] else None
        test = _read_test(number, bool(found["not"]), found["rest"], children)
        same = next((other for other in level.tests if number is not None and other.number == number), None)
        if same == test:
            self.notes.append(f"test {number} is reported twice, the same way")
        else:
            if same:
                self.notes.append(f"number {number} is used twice")
            level.tests.append(test)
            level.contexts.append(self.context)

    def _end_document(self) -> None:
        """A new TAP document begins where one has been."""
        self._unwind()
        self.documents.append(self.stack[0])
        self.stack = [_Level(0)]
        self.context = ""

    def _unwind(self) -> None:
        """End all levels above the outermost; subtests without a parent's result make one that is incomplete."""
        name = next((level.name for level in self.stack[1:] if level.name), "")
        while len(self.stack) > 1:
            self._close(self.stack.pop())
        if self.finished:
            children, self.finished = self.finished, ()
            self.problems.append(f"no result for the parent of {len(children)} subtests")
            parent = Test(name or "(unfinished)", Verdict.INCOMPLETE, reason="no result line", tests=children)
            self.stack[0].tests.append(parent)
            self.stack[0].contexts.append("")

    def finish(self) -> Output:
        self._end_document()
        documents = self._without_repeats()
        for document in documents:
            self._check_plan(document, "tests")
        tests = tuple(test for document in documents for test in document.named())
        plans = [document.planned for document in documents if document.planned is not None]
        if self.is_tap and not plans and tests:
            self.notes.append("no plan: whether all tests reported is unknown")
        if self.is_tap and not tests and self.skip_all is None and self.bail is None:
            self.problems.append("no test reported")
        self._check_totals(tests)
        return Output(
            tests,
            sum(plans) if plans else None,
            self.is_tap,
            self.bail,
            self.skip_all if not tests else None,
            tuple(self.problems),
            tuple(self.notes),
        )

    def _without_repeats(self) -> list[_Level]:
        """Drop documents that are only the beginning of the next: a forked child's copy of its parent's buffer."""
        kept: list[_Level] = []
        for document in self.documents:
            previous = kept[-1] if kept else None
            repeats = (
                previous is not None
                and previous.planned == document.planned
                and previous.tests == document.tests[: len(previous.tests)]
            )
            if repeats:
                self.notes.append("the beginning is printed twice (a forked child flushed its parent's buffer)")
                kept.pop()
            if document.tests or document.planned is not None:
                kept.append(document)
        return kept

    def _check_totals(self, tests: tuple[Test, ...]) -> None:
        if self.totals is None:
            return
        passed, failed, _, _, skipped, errors = self.totals
        counted = [test.verdict for test in tests]
        if passed != counted.count(Verdict.PASS) or skipped != counted.count(Verdict.SKIP):
            self.notes.append(f"the totals say {passed} passed and {skipped} skipped; the lines say otherwise")
        if failed + errors > 0 and not any(verdict.bad for verdict in counted):
            self.problems.append(f"the totals say {failed + errors} failed, no line does")


def _in_context(name: str, context: str, *, alone: bool) -> str:
    if not context or name == context:
        return name
    return context if alone or not name else f"{context}: {name}"


def _read_test(number: int | None, failed: bool, rest: str, children: tuple[Test, ...]) -> Test:
    text = rest.strip()
    directive = _DIRECTIVE.search(text)
    name = (text[: directive.start()] if directive else text).strip().removeprefix("- ").strip()
    reason = directive["why"].strip() if directive else ""
    # kselftest prints "ok 3 # SKIP name": the words are the test's name then.
    name = name or reason
    verdict = Verdict.FAIL if failed else Verdict.PASS
    word = directive["word"].upper() if directive else ""
    if word == "SKIP":
        verdict = Verdict.SKIP
    elif word in ("TODO", "XFAIL"):
        # "ok # TODO" is a pass nobody expected; "ok # XFAIL" is how kselftest prints an expected failure.
        verdict = Verdict.PASS if word == "TODO" and not failed else Verdict.XFAIL
    elif word in ("TIMEOUT", "ERROR"):
        verdict = Verdict.FAIL
    test = Test(name, verdict, number, reason, children)
    below = worst(child.verdict for child in children)
    if verdict.good and below is not None and below.bad:
        return replace(test, verdict=below, reason="says ok, but a subtest does not")
    return test
