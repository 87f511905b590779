"""Reader of what older selftests print instead of TAP.

Three forms, all of the kernel's own tests: "[RUN] what", then "[OK] ...", "[FAIL] ..." or "[SKIP] ..." (x86);
"Testing what... done", "... skipped [reason: ...]" or "... failed [reason: ...]" (mm/uffd-unit-tests); and "Run test:
what", then "step... OK", "... Fail" or "... Skip" (mm/khugepaged, whose exit status is the number of steps that
failed: four of them look like "skipped").
"""

from __future__ import annotations

import re
from dataclasses import replace

from numalab.selftest.tap import Output, Test
from numalab.selftest.verdict import Verdict, worst

_RUN = re.compile(r"\[RUN\]\s+(?P<what>.*\S)")
_RESULT = re.compile(r"\[(?P<word>OK|PASS|FAIL|SKIP)\]\s*(?P<said>.*)")
_TESTING = re.compile(r"Testing (?P<what>.*?)\.\.\. ?(?P<end>done|skipped|failed)?(?: \[reason: (?P<why>.*)\])?\s*$")
_RUN_TEST = re.compile(r"Run test: (?P<what>.*\S)")
#: The words vary ("Fail", "Timeout"); the colour says what they mean.
_STEP = re.compile(r"(?P<step>\S.*?)\.\.\.\.* \x1b\[(?P<colour>3[123])m(?P<said>.*?)\x1b\[0m")
_COLOURS = {"31": Verdict.FAIL, "32": Verdict.PASS, "33": Verdict.SKIP}
_WORDS = {
    "OK": Verdict.PASS,
    "PASS": Verdict.PASS,
    "FAIL": Verdict.FAIL,
    "SKIP": Verdict.SKIP,
    "done": Verdict.PASS,
    "failed": Verdict.FAIL,
    "skipped": Verdict.SKIP,
    None: Verdict.INCOMPLETE,
}


def parse(raw: bytes) -> Output:
    """Read the output of a test program that prints no TAP; `tests` is empty when it prints neither form."""
    tests: list[Test] = []
    running = ""
    for line in raw.decode("utf-8", errors="backslashreplace").splitlines():
        if found := _RUN.match(line):
            running = found["what"]
        elif found := _RESULT.match(line):
            verdict = _WORDS[found["word"]]
            said = found["said"].strip()
            tests.append(Test(running or said, verdict, reason="" if verdict is Verdict.PASS else said))
        elif found := _TESTING.match(line):
            verdict = _WORDS[found["end"]]
            why = found["why"] or ("its end was never printed" if verdict is Verdict.INCOMPLETE else "")
            tests.append(Test(found["what"], verdict, reason=why))
        elif found := _RUN_TEST.match(line):
            tests.append(Test(found["what"], Verdict.INCOMPLETE, reason="no step reported"))
        elif tests and (found := _STEP.match(line)):
            tests[-1] = _with_step(tests[-1], _COLOURS[found["colour"]], f"{found['step']}: {found['said']}")
    return Output(tuple(tests))


def _with_step(test: Test, verdict: Verdict, step: str) -> Test:
    before = test.verdict if test.reason != "no step reported" else verdict
    together = worst((before, verdict)) or verdict
    reason = test.reason if together is before and before is not verdict else "" if together is Verdict.PASS else step
    return replace(test, verdict=together, reason=reason)
