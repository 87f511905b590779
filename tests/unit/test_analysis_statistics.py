"""Statistics: what is claimed must be true, and what the samples cannot carry must not be claimed."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import comparison, statistics
from analysis.comparison import Finding, Side
from numalab.kinds import Kind

POSITIVE = st.floats(min_value=1e-3, max_value=1e9, allow_nan=False)


def floats(values: object) -> statistics.Floats:
    return np.asarray(values, dtype=np.float64)


def compared(
    a: object,
    b: object,
    *,
    unit: str = "s",
    kind: Kind | None = Kind.MEASURED,
    floor: comparison.Floor | None = None,
) -> comparison.Comparison:
    sides = Side("A", floats(a)), Side("B", floats(b))
    return comparison.judge([comparison.measure({}, "workload", "m", unit, kind, *sides, floor=floor)])[0]


@settings(max_examples=25, deadline=None)
@given(st.lists(POSITIVE, min_size=1, max_size=15))
def test_identical_samples_never_differ(values: list[float]) -> None:
    found = compared(values, values)
    assert found.finding in (Finding.SAME, Finding.NOTHING, Finding.UNDECIDED)
    if found.ratio.low is not None:
        assert found.ratio.contains(1.0)
        assert found.difference.contains(0.0)


@pytest.mark.parametrize("n", [4, 6, 12])
@pytest.mark.parametrize("centre", ["median", "mean"])
def test_interval_contains_the_true_ratio(n: int, centre: statistics.Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 120 simulated experiments with a true ratio of 1.3, at least 90 % of the intervals contain it."""
    monkeypatch.setattr(statistics, "RESAMPLES", 499)
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(120):
        a = np.exp(rng.normal(0, 0.1, n))
        b = 1.3 * np.exp(rng.normal(0, 0.15, n))
        hits += bool(statistics.ratio_interval(a, b, centre=centre).contains(1.3))
    assert hits >= 0.9 * 120
    assert hits < 120 or n < 12, "an interval that always contains the truth says nothing"


def test_false_claims_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 comparisons of a thing with itself, at most 5 % claim a difference."""
    monkeypatch.setattr(statistics, "RESAMPLES", 499)
    rng = np.random.default_rng(3)
    claims = sum(
        compared(rng.lognormal(0, 0.05, 10), rng.lognormal(0, 0.05, 10)).finding in (Finding.HIGHER, Finding.LOWER)
        for _ in range(100)
    )
    assert claims <= 5


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(1)
    found = compared(rng.normal(100, 3, 12), rng.normal(150, 3, 12))
    assert found.finding is Finding.HIGHER
    assert found.ratio.method == "BCa bootstrap"
    assert found.ratio.estimate == pytest.approx(1.5, rel=0.03)
    assert found.delta == 1.0
    assert found.shift == pytest.approx(50, abs=5)
    back = compared(rng.normal(150, 3, 12), rng.normal(100, 3, 12))
    assert back.finding is Finding.LOWER


def test_the_same_samples_give_the_same_interval() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(100, 3, 12), rng.normal(110, 3, 12)
    assert statistics.ratio_interval(a, b) == statistics.ratio_interval(a, b)


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_samples_give_no_interval(n: int) -> None:
    found = statistics.ratio_interval(floats([2.0] * n), floats([3.0] * n))
    assert found.estimate == 1.5
    assert found.low is None and found.high is None and found.method == ""
    assert f"n = {n}" in found.note
    assert compared([2.0] * n, [3.0] * n).finding is Finding.UNDECIDED


def test_few_samples_give_a_wide_interval_and_say_so() -> None:
    found = statistics.ratio_interval(floats([10, 11, 12]), floats([10, 11, 12]))
    assert found.method == "expanded percentile bootstrap"
    assert "n = 3" in found.note
    assert found.low == pytest.approx(10 / 12) and found.high == pytest.approx(12 / 10)


def test_samples_without_spread_are_called_so() -> None:
    found = compared([20] * 3, [80] * 3)
    assert found.ratio.method == statistics.NO_SPREAD
    assert found.ratio.low == found.ratio.high == 4.0
    assert found.finding is Finding.HIGHER
    assert "no spread" in found.reason
    assert compared([20] * 3, [20] * 3).finding is Finding.SAME


def test_a_baseline_of_zero_has_no_ratio_but_a_difference() -> None:
    found = compared([0.0] * 4, [0.5] * 4, unit="share")
    assert found.ratio.estimate is None
    assert found.difference.estimate == 0.5
    assert found.finding is Finding.HIGHER
    assert comparison.effect_text(found) == "+50 points"


def test_missing_values_are_left_out_and_never_zero() -> None:
    assert list(statistics.clean([1.0, None, math.nan, 3.0, math.inf])) == [1.0, 3.0]
    assert compared([], [1.0, 2.0]).finding is Finding.NOT_COMPARED
    assert statistics.centre_interval(floats([])).estimate is None


def test_wall_time_of_emulation_is_not_compared() -> None:
    found = compared([1.0] * 12, [2.0] * 12, kind=Kind.EMULATION_TIME)
    assert found.finding is Finding.NOT_COMPARED
    assert found.ratio.estimate is None and found.difference.estimate is None
    assert "speed" in found.reason


def test_differences_inside_the_noise_floor_are_not_claimed() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(100, 0.5, 12), rng.normal(103, 0.5, 12)
    assert compared(a, b).finding is Finding.HIGHER
    floor = comparison.Floor(1.05, 5.0)
    assert compared(a, b, floor=floor).finding is Finding.NOISE
    assert compared(b, a, floor=floor).finding is Finding.NOISE
    assert compared(a, b, floor=comparison.Floor(1.01, 1.0)).finding is Finding.HIGHER


def test_noise_floor_is_what_the_placebo_cannot_exclude() -> None:
    rng = np.random.default_rng(6)
    placebo = compared(rng.normal(100, 3, 12), rng.normal(100, 3, 12))
    floor = comparison.floor_of(placebo)
    assert floor is not None and floor.factor is not None
    assert placebo.ratio.low is not None and placebo.ratio.high is not None
    assert floor.factor == pytest.approx(max(placebo.ratio.high, 1 / placebo.ratio.low))
    assert comparison.floor_of(compared([1.0], [1.0])) is None


def brute_force_p(a: list[float], b: list[float]) -> float:
    """Two-sided exact p of U over all splits, for samples with or without ties."""

    def u(first: tuple[float, ...], second: tuple[float, ...]) -> float:
        return sum((y > x) + 0.5 * (y == x) for x in first for y in second)

    everything = [*a, *b]
    seen = u(tuple(a), tuple(b))
    splits = list(combinations(range(len(everything)), len(a)))
    below = above = 0
    for chosen in splits:
        first = tuple(everything[i] for i in chosen)
        second = tuple(value for i, value in enumerate(everything) if i not in chosen)
        below += u(first, second) <= seen
        above += u(first, second) >= seen
    return min(1.0, 2 * min(below, above) / len(splits))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1, 2, 3, 4], [5, 6, 7, 8]),
        ([1, 5, 3, 9], [2, 6, 7, 8]),
        ([1, 1, 1, 1], [2, 2, 2, 2]),
        ([1, 2, 2, 3, 4], [2, 3, 3, 5]),
    ],
)
def test_rank_test_is_exact_for_few_samples(a: list[float], b: list[float]) -> None:
    found = statistics.rank_test(floats(a), floats(b))
    assert found.p == pytest.approx(brute_force_p(a, b))


def test_rank_test_asks_first_whether_it_can_decide() -> None:
    found = statistics.rank_test(floats([1, 2, 3]), floats([7, 8, 9]))
    assert found.p is None
    assert found.smallest_p == pytest.approx(0.1)
    assert "cannot reach" in found.note
    assert statistics.rank_test(floats([1, 2, 3, 4]), floats([6, 7, 8, 9])).p == pytest.approx(2 / 70)
    assert statistics.rank_test(floats([1] * 5), floats([1] * 5)).p == 1.0
    many = np.random.default_rng(1).integers(0, 5, 60).astype(float)
    assert statistics.rank_test(many, many).note == "normal approximation"


def test_holm_adjusts_and_keeps_missing() -> None:
    first, missing, second, third = statistics.holm([0.01, None, 0.04, 0.03])
    assert missing is None
    assert [first, second, third] == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(POSITIVE, min_size=1, max_size=20), st.lists(POSITIVE, min_size=1, max_size=20))
def test_effect_sizes_turn_with_the_sides(a: list[float], b: list[float]) -> None:
    x, y = floats(a), floats(b)
    delta = statistics.cliffs_delta(x, y)
    assert delta is not None and -1 <= delta <= 1
    assert statistics.cliffs_delta(y, x) == pytest.approx(-delta)
    shift = statistics.hodges_lehmann(x, y)
    assert shift is not None
    assert statistics.hodges_lehmann(y, x) == pytest.approx(-shift)


def test_geometric_mean_of_ratios() -> None:
    pairs = [(floats([1.0] * 3), floats([2.0] * 3)), (floats([10.0] * 3), floats([80.0] * 3))]
    assert statistics.geomean_ratio_interval(pairs).estimate == pytest.approx(4.0)
    rng = np.random.default_rng(4)
    noisy = [(rng.lognormal(0, 0.05, 12), 1.5 * rng.lognormal(0, 0.05, 12)) for _ in range(3)]
    found = statistics.geomean_ratio_interval(noisy)
    assert found.contains(1.5) and not found.contains(1.0)
    assert statistics.geomean_ratio_interval([]).estimate is None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([100, 130, 70, 100], "standard deviation"),
        ([100, 100, 100, 100, 100, 100, 100, 100, 100, 190], "largest value"),
        ([5.0], "only 1 sample"),
        ([], "no samples"),
        ([1, -1, 0], "mean is 0"),
    ],
)
def test_unstable_samples_are_named(values: list[float], reason: str) -> None:
    assert any(reason in line for line in statistics.stability(floats(values)))


def test_stable_samples_are_not_complained_about() -> None:
    assert statistics.stability(floats([100, 100.1, 99.9, 100])) == []
    assert statistics.repeats_needed(floats([100, 100.1, 99.9, 100])) == 3
    assert statistics.repeats_needed(floats([90, 100, 110])) == math.ceil((1.959964 * 0.1 / 0.01) ** 2)
    assert statistics.repeats_needed(floats([90, 100])) is None


def test_interleaving() -> None:
    early, late = ["2026-01-01T10:00", "2026-01-01T10:05"], ["2026-01-01T11:00", "2026-01-01T11:05"]
    assert statistics.interleaved(early, late) is False
    assert statistics.interleaved(late, early) is False
    assert statistics.interleaved([early[0], late[0]], [early[1], late[1]]) is True
    assert statistics.interleaved(early[:1], late) is None
