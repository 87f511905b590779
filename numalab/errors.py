"""Errors, in two kinds: the user's and the machine's; each kind has its exit status.

Exit status of every command: 0 ok · 1 the experiment or test failed · 2 usage or bad
experiment file · 3 something is missing on this machine · 4 the machine was lost.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NumalabError(Exception):
    """Root of everything numalab raises on purpose; `str()` is what the user reads.

    `remedy` is the way out, printed under the message.
    """

    exit_status = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class ExperimentError(NumalabError):
    """The experiment, build or test itself failed (exit status 1)."""


class UserError(NumalabError):
    """What the user wrote is wrong: says what, where, and the nearest right word (exit status 2)."""

    exit_status = 2


class MissingError(NumalabError):
    """This machine lacks something: says what, and how to get it (exit status 3)."""

    exit_status = 3


class MachineLostError(NumalabError):
    """The machine under study was lost: panic, hang, QEMU died (exit status 4)."""

    exit_status = 4


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the known word closest to `word`, or ""."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
