"""Throughput over time of a program that reports its progress, as figure 6 of the paper shows it.

A workload with the option `interval` prints lines of the form `numalab-point: {"seconds": 1.0, "work": 1234, ...}`:
what has been done since the measured phase began.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from numalab.errors import ExperimentError

_PREFIX = "numalab-point:"


class Rate(NamedTuple):
    """Work per second between `begin` and `end`, seconds of the program's measured phase."""

    begin: float
    end: float
    rate: float


def rates(stdout: str) -> list[Rate]:
    """Work per second between each two points that a program has printed.

    Raises:
        ExperimentError: a line of progress that cannot be read.
    """
    points = [(0.0, 0)]
    for line in stdout.splitlines():
        if not line.startswith(_PREFIX):
            continue
        try:
            said = json.loads(line.removeprefix(_PREFIX))
            points.append((float(said["seconds"]), int(said["work"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ExperimentError(f"not a line of progress: {line!r} ({error})") from error
    return [
        Rate(before[0], after[0], (after[1] - before[1]) / (after[0] - before[0]))
        for before, after in pairwise(points)
        if after[0] > before[0]
    ]


def around(found: Sequence[Rate], moment: float, *, settle: float = 0.0) -> tuple[float | None, float | None]:
    """Mean rate before a move at `moment`, and from `settle` seconds after it; None where there is no whole interval.

    Weighted by the length of intervals: the last one may be short.
    """
    return (
        _mean([rate for rate in found if rate.end <= moment]),
        _mean([rate for rate in found if rate.begin >= moment + settle]),
    )


def _mean(found: Sequence[Rate]) -> float | None:
    seconds = sum(rate.end - rate.begin for rate in found)
    return sum(rate.rate * (rate.end - rate.begin) for rate in found) / seconds if seconds else None
