"""Reader of what older selftests print instead of TAP.

Two forms, both of the kernel's own tests: "[RUN] what", then "[OK] ...", "[FAIL] ..." or "[SKIP] ..." (x86); and
"Testing what... done", "... skipped [reason: ...]" or "... failed [reason: ...]" (mm/uffd-unit-tests).
"""

from __future__ import annotations

import re

from numalab.selftest.tap import Output, Test
from numalab.selftest.verdict import Verdict

_RUN = re.compile(r"\[RUN\]\s+(?P<what>.*\S)")
_RESULT = re.compile(r"\[(?P<word>OK|PASS|FAIL|SKIP)\]\s*(?P<said>.*)")
_TESTING = re.compile(r"Testing (?P<what>.*?)\.\.\. ?(?P<end>done|skipped|failed)?(?: \[reason: (?P<why>.*)\])?\s*$")
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
    return Output(tuple(tests))
