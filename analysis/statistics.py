"""Statistics for small samples of benchmark values: intervals, rank test, effect sizes.

Nothing here prints an unlabelled "±": an interval says its level, its method and its n, and says so when
the data do not carry one. Resampling is seeded: the same samples give the same interval.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Centre = Literal["median", "mean"]

LEVEL = 0.95
RESAMPLES = 9999
#: `Interval.method` of samples that are all alike.
NO_SPREAD = "no spread"
SEED = 20_612  # any fixed number: the same data shall give the same interval
#: Below this many samples BCa's acceleration is guesswork (scipy's own advice is n of about 10).
ENOUGH_FOR_BCA = 10
#: Below this many samples a bootstrap has next to no distinct resamples.
ENOUGH_FOR_BOOTSTRAP = 3


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval; None where the data carry none, and `note` says why.

    Attributes:
        estimate: the statistic of the samples themselves.
        low, high: bounds of the interval.
        method: how the bounds were found; "" when there are none.
        note: what a reader must know about it.
        level: confidence level.
    """

    estimate: float | None
    low: float | None = None
    high: float | None = None
    method: str = ""
    note: str = ""
    level: float = LEVEL

    def contains(self, value: float) -> bool | None:
        """Whether `value` lies inside; None when there is no interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= value <= self.high

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "estimate": self.estimate,
            "low": self.low,
            "high": self.high,
            "level": self.level,
            "method": self.method or None,
            "note": self.note or None,
        }


@dataclass(frozen=True)
class RankTest:
    """Two-sided Mann-Whitney U test.

    Attributes:
        p: the p-value; None when the test was not worth doing.
        smallest_p: the smallest p that so many samples can reach at all.
        note: why there is no p, or how it was found.
    """

    p: float | None
    smallest_p: float
    note: str = ""


def clean(values: Sequence[float | None] | Floats) -> Floats:
    """Return the finite values as floats; missing ones (None, NaN) are left out, never taken for 0."""
    array = np.asarray([math.nan if value is None else value for value in values], dtype=np.float64)
    return array[np.isfinite(array)]


def _centre(centre: Centre) -> Callable[..., Any]:
    return np.median if centre == "median" else np.mean


def ratio_interval(a: Floats, b: Floats, *, centre: Centre = "median") -> Interval:
    """Return the ratio of centres b / a with its bootstrap interval.

    Without a positive baseline there is no ratio (a share of 0, say): the note says so and
    `difference_interval` is what to look at.
    """
    return geomean_ratio_interval([(a, b)], centre=centre)


def geomean_ratio_interval(pairs: Sequence[tuple[Floats, Floats]], *, centre: Centre = "median") -> Interval:
    """Return the geometric mean, over the pairs, of the ratios of centres b / a, with its interval.

    Each side of each pair is resampled by itself. All values must be positive.
    """
    if not pairs or any(len(a) == 0 or len(b) == 0 for a, b in pairs):
        return Interval(None, note="no samples on one side")
    if any((a <= 0).any() or (b < 0).any() for a, b in pairs):
        return Interval(None, note="no ratio: the baseline holds values that are not positive")
    if len(pairs) > 1 and any((b <= 0).any() for _, b in pairs):
        return Interval(None, note="no geometric mean: a value is not positive")
    middle = _centre(centre)

    def statistic(*samples: Floats, axis: int = -1) -> Any:
        below = np.stack([middle(a, axis=axis) for a in samples[0::2]])
        above = np.stack([middle(b, axis=axis) for b in samples[1::2]])
        if len(below) == 1:
            return above[0] / below[0]
        return np.exp(np.mean(np.log(above) - np.log(below), axis=0))

    return _bootstrap([side for pair in pairs for side in pair], statistic)


def difference_interval(a: Floats, b: Floats, *, centre: Centre = "median") -> Interval:
    """Return the difference of centres b - a, in the samples' own unit, with its bootstrap interval."""
    if len(a) == 0 or len(b) == 0:
        return Interval(None, note="no samples on one side")
    middle = _centre(centre)

    def statistic(first: Floats, second: Floats, axis: int = -1) -> Any:
        return middle(second, axis=axis) - middle(first, axis=axis)

    return _bootstrap([a, b], statistic)


def centre_interval(values: Floats, *, centre: Centre = "median") -> Interval:
    """Return the centre of one sample with its bootstrap interval."""
    if len(values) == 0:
        return Interval(None, note="no samples")
    middle = _centre(centre)
    return _bootstrap([values], lambda sample, axis=-1: middle(sample, axis=axis))


def _bootstrap(samples: Sequence[Floats], statistic: Callable[..., Any]) -> Interval:
    """Bootstrap `statistic`: BCa from 10 samples on, the expanded percentile interval below.

    The plain percentile interval of few samples is too narrow; Hesterberg ("What Teachers Should Know
    About the Bootstrap", The American Statistician 69(4), 2015) widens its level by the factor that
    separates Student's t from the normal distribution. It is applied with the smaller n: on the safe side.
    """
    estimate = float(statistic(*samples))
    n = min(len(sample) for sample in samples)
    if n < ENOUGH_FOR_BOOTSTRAP:
        return Interval(estimate, note=f"no interval from n = {n}: it takes at least {ENOUGH_FOR_BOOTSTRAP}")
    if all(np.ptp(sample) == 0 for sample in samples):
        return Interval(
            estimate, estimate, estimate, NO_SPREAD, note="every repeat gave the same value: no spread to resample"
        )
    if n >= ENOUGH_FOR_BCA:
        bounds = _bounds(samples, statistic, LEVEL, "BCa")
        if bounds is not None:
            return Interval(estimate, *bounds, method="BCa bootstrap")
    bounds = _bounds(samples, statistic, _expanded_level(LEVEL, n), "percentile")
    if bounds is None:
        return Interval(estimate, note="no interval: the samples are degenerate")
    note = f"n = {n}: an interval from so few samples is rough" if n < ENOUGH_FOR_BCA else ""
    return Interval(estimate, *bounds, method="expanded percentile bootstrap", note=note)


def _bounds(
    samples: Sequence[Floats], statistic: Callable[..., Any], level: float, method: Literal["BCa", "percentile"]
) -> tuple[float, float] | None:
    """Return the interval, or None when the method cannot give one for these samples."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # degenerate data: scipy warns and answers NaN, which is handled here
        found = stats.bootstrap(
            tuple(samples),
            statistic,
            n_resamples=RESAMPLES,
            vectorized=True,
            axis=-1,
            confidence_level=level,
            method=method,
            rng=np.random.default_rng(SEED),
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _expanded_level(level: float, n: int) -> float:
    quantile = stats.t.ppf((1 + level) / 2, n - 1) * math.sqrt(n / (n - 1))
    return float(2 * stats.norm.cdf(quantile) - 1)


def rank_test(a: Floats, b: Floats, *, alpha: float = 1 - LEVEL) -> RankTest:
    """Two-sided Mann-Whitney U test; first asks whether so few samples could reach `alpha` at all."""
    if len(a) == 0 or len(b) == 0:
        return RankTest(None, 1.0, "no samples on one side")
    smallest = min(1.0, 2 / math.comb(len(a) + len(b), len(a)))
    if smallest > alpha:
        return RankTest(
            None, smallest, f"n = {len(a)} and {len(b)} cannot reach p < {alpha:.2g}: the smallest p is {smallest:.2g}"
        )
    everything = np.concatenate([a, b])
    if np.ptp(everything) == 0:
        return RankTest(1.0, smallest, "all values are the same")
    ties = len(np.unique(everything)) < len(everything)
    if not ties and min(len(a), len(b)) <= 50:
        return RankTest(float(stats.mannwhitneyu(a, b, method="exact").pvalue), smallest, "exact")
    if math.comb(len(everything), len(a)) <= RESAMPLES:
        # With ties the textbook distribution is wrong for few samples: enumerate all splits instead.
        exact = stats.PermutationMethod(n_resamples=RESAMPLES, rng=np.random.default_rng(SEED))
        return RankTest(float(stats.mannwhitneyu(a, b, method=exact).pvalue), smallest, "exact, with ties")
    return RankTest(float(stats.mannwhitneyu(a, b, method="asymptotic").pvalue), smallest, "normal approximation")


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for how many there are (Holm 1979); None stays None and is not counted."""
    known = sorted((p, place) for place, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    worst = 0.0
    for rank, (p, place) in enumerate(known):
        worst = max(worst, min(1.0, p * (len(known) - rank)))
        adjusted[place] = worst
    return adjusted


def cliffs_delta(a: Floats, b: Floats) -> float | None:
    """Return P(b > a) - P(b < a): 1 when every b is above every a, 0 when neither side is higher."""
    if len(a) == 0 or len(b) == 0:
        return None
    return float(np.sign(b[:, None] - a[None, :]).mean())


def hodges_lehmann(a: Floats, b: Floats) -> float | None:
    """Return the median of all differences b - a: the shift between the samples, robust to outliers."""
    if len(a) == 0 or len(b) == 0:
        return None
    return float(np.median(b[:, None] - a[None, :]))


def stability(values: Floats) -> list[str]:
    """Return reasons why this sample may be unstable; empty when there is none.

    The reasons are those of pyperf's check: spread above 10 % of the mean, extremes 50 % away from it, too few
    samples. `repeats_needed` says how many would be enough.
    """
    n = len(values)
    if n == 0:
        return ["no samples"]
    reasons = []
    mean = float(values.mean())
    if n < ENOUGH_FOR_BOOTSTRAP:
        return [f"only {n} sample{'s' * (n != 1)}: the spread is unknown"]
    deviation = float(values.std(ddof=1))
    if mean == 0:
        return [] if deviation == 0 else ["the mean is 0: the relative spread is undefined"]
    relative = deviation / abs(mean)
    if relative > 0.10:
        reasons.append(f"the standard deviation is {relative:.0%} of the mean (over 10 %)")
    for word, extreme in (("smallest", float(values.min())), ("largest", float(values.max()))):
        if abs(extreme - mean) / abs(mean) >= 0.50:
            reasons.append(f"the {word} value is {abs(extreme - mean) / abs(mean):.0%} away from the mean")
    return reasons


def repeats_needed(values: Floats, *, precision: float = 0.01) -> int | None:
    """Return how many samples like these it takes to know the mean to `precision` at 95 %; None if unknown."""
    if len(values) < ENOUGH_FOR_BOOTSTRAP or values.mean() == 0:
        return None
    relative = float(values.std(ddof=1) / abs(values.mean()))
    return max(ENOUGH_FOR_BOOTSTRAP, math.ceil((stats.norm.ppf((1 + LEVEL) / 2) * relative / precision) ** 2))


def interleaved(a: Sequence[str], b: Sequence[str]) -> bool | None:
    """Whether runs of both sides alternated in time; None when that cannot be told.

    `a` and `b` are ISO 8601 starting times in one time zone. When one side ran wholly before the other, a drift of the
    host over time looks like a difference between them.
    """
    first, second = sorted(filter(None, a)), sorted(filter(None, b))
    if len(first) < 2 or len(second) < 2:
        return None
    return not (first[-1] < second[0] or second[-1] < first[0])
