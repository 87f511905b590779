"""What a test can come to, and how verdicts combine."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Verdict(StrEnum):
    """Outcome of one test or of a whole program."""

    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"
    XFAIL = "xfail"  # failed, as its authors say it must here (XFAIL, TODO)
    INCOMPLETE = "incomplete"  # ended without having done what it planned
    TIMEOUT = "timeout"
    LOST = "lost"  # the machine went: panic, hang, QEMU died
    MISSING = "missing"  # could not be run: not built, not started

    @property
    def good(self) -> bool:
        """Whether the test ran and held."""
        return self in (Verdict.PASS, Verdict.XFAIL)

    @property
    def bad(self) -> bool:
        """Whether the test did not hold, or nobody knows."""
        return not self.good and self is not Verdict.SKIP


#: The worst first: what a group of tests comes to is the first that occurs.
_ORDER = (
    Verdict.LOST,
    Verdict.TIMEOUT,
    Verdict.FAIL,
    Verdict.INCOMPLETE,
    Verdict.MISSING,
    Verdict.PASS,
    Verdict.XFAIL,
    Verdict.SKIP,
)


def worst(verdicts: Iterable[Verdict]) -> Verdict | None:
    """Return what several tests come to together: any bad one spoils all, skips count only when alone."""
    found = set(verdicts)
    return next((verdict for verdict in _ORDER if verdict in found), None)
