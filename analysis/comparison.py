"""One comparison: B against its baseline A in one metric, and what may be said about it in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from analysis import statistics
from analysis.statistics import Floats, Interval, RankTest
from numalab.kinds import Kind

ALPHA = 1 - statistics.LEVEL


class Finding(StrEnum):
    """What a comparison comes to."""

    HIGHER = "higher"
    LOWER = "lower"
    SAME = "same"  # the same value in every run
    NOTHING = "no difference shown"
    NOISE = "inside the noise floor"
    UNDECIDED = "undecided"
    NOT_COMPARED = "not compared"


@dataclass(frozen=True, eq=False)
class Side:
    """The repeats of one point of the matrix.

    Attributes:
        name: what this side is called.
        values: the samples, missing ones left out.
        missing: how many were missing (NA).
        failed: cells of this point that did not end well; their values are not used.
        started: when its cells started, ISO 8601.
        settings: what its cells told workload and topology, as JSON text.
    """

    name: str
    values: Floats
    missing: int = 0
    failed: int = 0
    started: tuple[str, ...] = ()
    settings: frozenset[str] = frozenset()

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.values)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, every sample included."""
        middle = statistics.centre_interval(self.values)
        return {
            "name": self.name,
            "n": self.n,
            "missing": self.missing,
            "failed_cells": self.failed,
            "median": middle.to_json(),
            "repeats_for_1_percent": statistics.repeats_needed(self.values),
            "samples": [float(value) for value in self.values],
        }


@dataclass(frozen=True)
class Floor:
    """What an A/A run (the baseline against itself) cannot tell from "no difference".

    Attributes:
        factor: the largest ratio, at least 1, inside its interval; None when it has no ratio.
        difference: the largest difference, in the metric's unit, inside its interval.
    """

    factor: float | None
    difference: float | None


@dataclass(frozen=True, eq=False)
class Comparison:
    """B against its baseline A in one metric at one point of the matrix.

    Attributes:
        point: what both sides share of the axes (`analysis.frames.POINT`).
        source: where the metric stands in result files.
        ratio: median B / median A with its interval.
        difference: median B - median A with its interval, in `unit`.
        test: Mann-Whitney U; `p_adjusted` accounts for the comparisons made along with it (Holm).
        shift, delta: Hodges-Lehmann shift and Cliff's delta of B against A.
        floor: from an A/A run of the same metric; None when none is known.
        finding: what it comes to.
        reason: why, where the finding needs it.
        warnings: what a careful reader wants to know.
    """

    point: Mapping[str, str]
    source: str
    metric: str
    unit: str
    kind: Kind | None
    a: Side
    b: Side
    ratio: Interval
    difference: Interval
    test: RankTest
    shift: float | None
    delta: float | None
    floor: Floor | None = None
    p_adjusted: float | None = None
    finding: Finding = Finding.UNDECIDED
    reason: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def kind_label(self) -> str:
        """The words for the kind of its numbers."""
        if self.kind:
            return self.kind.label
        return "kinds differ" if self.reason else "kind not recorded"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is missing is null."""
        return {
            "point": dict(self.point),
            "metric": self.metric,
            "unit": self.unit or None,
            "kind": self.kind,
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "ratio": self.ratio.to_json(),
            "difference": self.difference.to_json(),
            "mann_whitney": {
                "p": self.test.p,
                "p_holm": self.p_adjusted,
                "smallest_reachable_p": self.test.smallest_p,
                "note": self.test.note or None,
            },
            "hodges_lehmann": self.shift,
            "cliffs_delta": self.delta,
            "noise_floor": None
            if self.floor is None
            else {"factor": self.floor.factor, "difference": self.floor.difference},
            "finding": self.finding,
            "reason": self.reason or None,
            "warnings": list(self.warnings),
        }


def measure(
    point: Mapping[str, str],
    source: str,
    metric: str,
    unit: str,
    kind: Kind | None,
    a: Side,
    b: Side,
    *,
    floor: Floor | None = None,
) -> Comparison:
    """Return the numbers of a comparison; `judge` finds the words, once all p-values are known."""
    if kind in (None, Kind.EMULATION_TIME):
        none = Interval(None, note="not compared")
        test = RankTest(None, 1.0, "not compared")
        return Comparison(point, source, metric, unit, kind, a, b, none, none, test, None, None)
    return Comparison(
        point,
        source,
        metric,
        unit,
        kind,
        a,
        b,
        ratio=statistics.ratio_interval(a.values, b.values),
        difference=statistics.difference_interval(a.values, b.values),
        test=statistics.rank_test(a.values, b.values),
        shift=statistics.hodges_lehmann(a.values, b.values),
        delta=statistics.cliffs_delta(a.values, b.values),
        floor=floor,
        warnings=tuple(_warnings(a, b, stable=unit != "share")),
    )


def judge(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons with adjusted p-values and verdicts.

    A difference is claimed only when the 95 % interval excludes "none", the rank test agrees after Holm's
    correction over all comparisons given here, and no A/A run is known to wander as far by itself. Samples without
    any spread (exact counts) need no test, and do not count among those that were made.
    """
    adjusted = statistics.holm([None if _exact(each) else each.test.p for each in comparisons])
    judged = []
    for each, p in zip(comparisons, adjusted, strict=True):
        finding, reason = _verdict(each, p)
        judged.append(replace(each, p_adjusted=p, finding=finding, reason=reason))
    return judged


def _exact(comparison: Comparison) -> bool:
    return comparison.difference.method == statistics.NO_SPREAD


def floor_of(comparison: Comparison) -> Floor | None:
    """Return the noise floor that this comparison of a baseline with itself shows; None without interval."""
    ratio, difference = comparison.ratio, comparison.difference
    if difference.low is None or difference.high is None:
        return None
    factor = None
    if ratio.low is not None and ratio.high is not None and ratio.low > 0:
        factor = max(ratio.high, 1 / ratio.low, 1.0)
    return Floor(factor, max(abs(difference.low), abs(difference.high)))


def factor_text(interval: Interval) -> str:
    """Return "×1.34 [1.20, 1.49]", "×1.34" without an interval, "NA" without a ratio."""
    if interval.estimate is None:
        return "NA"
    text = f"×{interval.estimate:.3g}"
    if interval.low is None or interval.high is None or interval.method == statistics.NO_SPREAD:
        return text
    return f"{text} [{interval.low:.3g}, {interval.high:.3g}]"


def difference_text(interval: Interval, unit: str) -> str:
    """Return the difference and its interval with unit; shares in percentage points."""
    if interval.estimate is None:
        return "NA"
    scale, word = (100, "points") if unit == "share" else (1, unit)
    text = f"{interval.estimate * scale:+.4g}"
    if interval.low is not None and interval.high is not None and interval.method != statistics.NO_SPREAD:
        text += f" [{interval.low * scale:+.4g}, {interval.high * scale:+.4g}]"
    return f"{text} {word}".rstrip()


def size_text(size: float | None, unit: str) -> str:
    """Return the size of a difference with its unit; "NA" when it is not known."""
    if size is None:
        return "NA"
    return f"{size * 100:.4g} points" if unit == "share" else f"{size:.4g} {unit}".rstrip()


def _effect(comparison: Comparison) -> tuple[Interval, float, str]:
    """The interval to judge by, what "no difference" is in it, and its text: a ratio where there is one."""
    if comparison.ratio.estimate is not None and comparison.unit != "share":
        return comparison.ratio, 1.0, factor_text(comparison.ratio)
    return comparison.difference, 0.0, difference_text(comparison.difference, comparison.unit)


def effect_text(comparison: Comparison) -> str:
    """Return how B stands to A with the interval: a ratio, or a difference for shares and without a ratio."""
    return _effect(comparison)[2]


def _verdict(comparison: Comparison, p: float | None) -> tuple[Finding, str]:
    """The finding, and the reason where it needs one."""
    a, b = comparison.a, comparison.b
    if comparison.kind is Kind.EMULATION_TIME:
        return Finding.NOT_COMPARED, "wall time of the emulation says nothing about speed"
    if comparison.kind is None:
        return Finding.NOT_COMPARED, comparison.reason or "the files do not say what kind of number this is"
    if not a.n or not b.n:
        side = a if not a.n else b
        return Finding.NOT_COMPARED, f"no values for {side.name}: missing, or its cells failed"
    interval, none, _ = _effect(comparison)
    if interval.low is None or interval.estimate is None:
        return Finding.UNDECIDED, interval.note
    direction = Finding.HIGHER if interval.estimate > none else Finding.LOWER
    if interval.method == statistics.NO_SPREAD:
        same = interval.estimate == none
        return Finding.SAME if same else direction, f"no spread in {a.n} and {b.n} runs"
    agrees = p is not None and p <= ALPHA
    if interval.contains(none):
        if agrees:
            return Finding.UNDECIDED, f"the interval includes no difference, the rank test does not (p = {p:.2g})"
        return Finding.NOTHING, ""
    if _inside(comparison.floor, interval.estimate, none):
        return Finding.NOISE, "the A/A repetition wanders as far by itself"
    if p is None:
        return Finding.UNDECIDED, comparison.test.note
    if not agrees:
        return Finding.UNDECIDED, f"the interval excludes no difference, the rank test does not (p = {p:.2g})"
    return direction, ""


def _inside(floor: Floor | None, estimate: float, none: float) -> bool:
    if floor is None:
        return False
    if none == 1.0:
        return floor.factor is not None and estimate > 0 and abs(math.log(estimate)) <= math.log(floor.factor)
    return floor.difference is not None and abs(estimate) <= floor.difference


def settings_differ(each: Comparison) -> Comparison:
    """Return the comparison with a warning when its sides were told different things."""
    if not each.a.settings or not each.b.settings or each.a.settings == each.b.settings:
        return each
    said = "the workload's parameters or the topology are not the same on both sides"
    return replace(each, warnings=(*each.warnings, said))


def _warnings(a: Side, b: Side, *, stable: bool) -> list[str]:
    found = []
    for side in (a, b):
        if side.failed:
            found.append(f"{side.name}: {side.failed} cell{'s' * (side.failed != 1)} failed and left out")
        if side.missing:
            found.append(f"{side.name}: {side.missing} missing value{'s' * (side.missing != 1)} (NA) left out")
        if side.n and stable:
            found += [f"{side.name}: {reason}" for reason in statistics.stability(side.values)]
    if statistics.interleaved(a.started, b.started) is False:
        found.append("the runs of both sides were not interleaved: drift of the host may look like a difference")
    return found
