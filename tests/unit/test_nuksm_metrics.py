"""Fairness, tax, savings and speed of merging: known values, and what must hold for all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nuksm import metrics
from nuksm.metrics import Savings, Scan, Worker

POSITIVE = st.floats(1e-6, 1e6)
SHARE = st.floats(0, 1)
FAST = settings(deadline=None)


@pytest.mark.parametrize(
    ("pages", "node", "share"),
    [({0: 3, 1: 1}, 0, 0.75), ({0: 3, 1: 1}, 1, 0.25), ({0: 3}, 5, 0.0), ({}, 0, None), ({0: 0, 1: 0}, 0, None)],
)
def test_local_share(pages: dict[int, float], node: int, share: float | None) -> None:
    assert metrics.local_share(pages, node) == share


def test_pages_are_not_negative() -> None:
    with pytest.raises(ValueError, match="negative"):
        metrics.local_share({0: -1, 1: 2}, 0)


@FAST
@given(st.dictionaries(st.integers(0, 63), st.integers(0, 10**12), min_size=1))
def test_local_shares_over_all_nodes_are_one(pages: dict[int, int]) -> None:
    shares = [metrics.local_share(pages, node) for node in pages]
    if sum(pages.values()):
        assert sum(share for share in shares if share is not None) == pytest.approx(1)
    else:
        assert shares == [None] * len(pages)


@pytest.mark.parametrize(
    ("values", "index"),
    [([], None), ([0.0, 0.0], 1.0), ([1.0, 1.0], 1.0), ([1.0, 0.0], 0.5), ([4.0, 0, 0, 0], 0.25), ([1.0, 0.5], 0.9)],
)
def test_jain(values: list[float], index: float | None) -> None:
    assert metrics.jain(values) == pytest.approx(index) if index is not None else metrics.jain(values) is None


def test_jain_is_of_values_from_zero_up() -> None:
    with pytest.raises(ValueError, match="from 0 up"):
        metrics.jain([1.0, -0.1])


@FAST
@given(st.lists(POSITIVE, min_size=1, max_size=20), POSITIVE)
def test_jain_is_between_one_share_and_one_and_knows_no_scale(values: list[float], factor: float) -> None:
    index = metrics.jain(values)
    assert index is not None
    assert 1 / len(values) - 1e-9 <= index <= 1 + 1e-9
    assert metrics.jain([value * factor for value in values]) == pytest.approx(index)
    assert metrics.jain(values[::-1]) == pytest.approx(index)
    assert metrics.jain([values[0]] * len(values)) == pytest.approx(1)


@FAST
@given(st.integers(1, 20), st.floats(1e-300, 1e300))
def test_jain_of_one_that_has_everything_whatever_its_size(others: int, everything: float) -> None:
    assert metrics.jain([everything, *[0.0] * others]) == pytest.approx(1 / (others + 1))


@FAST
@given(st.lists(SHARE, min_size=2, max_size=8))
def test_taking_from_the_rich_makes_it_fairer(shares: list[float]) -> None:
    rich, poor = max(shares), min(shares)
    rest = sorted(shares)[1:-1]
    before, after = metrics.jain(shares), metrics.jain([*rest, (rich + poor) / 2, (rich + poor) / 2])
    assert before is not None
    assert after is not None
    assert after >= before - 1e-9


def test_spread_is_in_points() -> None:
    assert metrics.spread([0.55, 0.5]) == pytest.approx(5)
    assert metrics.spread([1.0, 0.0, 0.5]) == 100
    assert metrics.spread([]) == metrics.spread([0.3]) == 0


@pytest.mark.parametrize(
    ("nices", "weights"),
    [
        ((-20, -11), [10, 1]),  # the paper's labels
        ((-20, -16), [5, 1]),
        ((-20, -20), [1, 1]),
        ((-16, -20), [1, 5]),
        ((-11, -20), [1, 10]),
        ((0, 19, -20), [20, 1, 40]),
    ],
)
def test_weights_of_the_paper(nices: tuple[int, ...], weights: list[int]) -> None:
    assert metrics.weights_of(nices) == weights


@FAST
@given(st.lists(st.integers(-20, 19), min_size=1, max_size=10), st.integers(-5, 5))
def test_weights_are_relative_and_at_least_one(nices: list[int], by: int) -> None:
    weights = metrics.weights_of(nices)
    assert min(weights) == 1
    assert metrics.weights_of([nice + by for nice in nices]) == weights
    assert sorted(nices) == [nice for _, nice in sorted(zip(weights, nices, strict=True), key=lambda each: -each[0])]


def test_tax() -> None:
    assert metrics.numa_tax([1.0, 0.0]) == 0.5
    assert metrics.numa_tax([1.0, 0.0], [10, 1]) == pytest.approx(1 / 11)
    assert metrics.numa_tax([0.0, 1.0], [10, 1]) == pytest.approx(10 / 11)
    assert metrics.numa_tax([]) is None


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -1], [1, 1, 1]])
def test_tax_takes_a_weight_for_each(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="2 shares"):
        metrics.numa_tax([0.5, 0.5], weights)


@FAST
@given(st.lists(st.tuples(SHARE, POSITIVE), min_size=1, max_size=8), POSITIVE)
def test_tax_is_a_share_and_equal_weights_are_none(both: list[tuple[float, float]], weight: float) -> None:
    shares, weights = [share for share, _ in both], [each for _, each in both]
    tax = metrics.numa_tax(shares, weights)
    assert tax is not None
    assert -1e-9 <= tax <= 1 + 1e-9
    assert metrics.numa_tax(shares, [weight] * len(shares)) == pytest.approx(metrics.numa_tax(shares))


@pytest.mark.parametrize(
    ("shares", "weights", "good"),
    [
        ([0.9, 0.1], [10, 1], True),
        ([0.1, 0.9], [10, 1], False),
        ([0.5, 0.5], [10, 1], False),  # as without weights
        ([0.525, 0.475], [10, 1], False),  # 5 points apart: so may equals be
        ([0.53, 0.47], [10, 1], True),
        ([0.2, 0.2, 0.9], [1, 2, 3], False),
        ([0.52, 0.48], [1, 1], True),
        ([0.53, 0.47], [1, 1], False),
        ([0.55, 0.5], [1, 1], True),  # 5 points are allowed
        ([0.1, 0.2, 0.9], [1, 2, 3], True),
        ([0.1, 0.95, 0.9], [1, 2, 3], False),
        ([], [], True),
    ],
)
def test_order_of_weights(shares: list[float], weights: list[float], good: bool) -> None:
    assert metrics.ordered_by_weight(shares, weights) is good


def test_order_takes_a_weight_for_each() -> None:
    with pytest.raises(ValueError, match="1 shares and 2 weights"):
        metrics.ordered_by_weight([0.5], [1, 2])


@pytest.mark.parametrize(
    ("pairs", "good"),
    [
        ([(0.1, 0.09), (0.2, 0.17), (1, 0.5), (5, 0.83), (10, 0.91)], True),
        ([(10, 0.91), (0.1, 0.09), (1, 0.5)], True),  # in any order
        ([(0.1, 0.09), (0.2, 0.17), (1, 0.5), (5, 0.83), (10, 0.83)], False),
        ([(0.1, 0.17), (0.2, 0.09), (1, 0.5)], False),
        ([(1, 0.5), (1, 0.4), (1, 0.6), (5, 0.55)], True),  # the median of repeats
        ([(1, 0.5), (1, 0.6), (1, 0.6), (5, 0.55)], False),
        ([], True),
    ],
)
def test_shares_rise_with_weight(pairs: list[tuple[float, float]], good: bool) -> None:
    assert metrics.monotone(pairs) is good


def test_eight_slow_passes_are_not_in_time_whatever_they_take() -> None:
    assert metrics.follow_bound(0.1, 2.0, 4, 0, 1) == pytest.approx(8 * 0.5 + 1)
    assert metrics.follow_bound(0.1, 80.0, 8, 0, 1) == pytest.approx(8 * 1.0 + 1), "a pass of 10 s counts as one of 1 s"
    assert metrics.follow_bound(5.0, 80.0, 8, 0, 1) == pytest.approx(8 * 5.0 + 1), "unless looks are that far apart"


def test_savings_and_what_copies_give_up() -> None:
    stock, with_copies = Savings(100, 900), Savings(190, 810, copies=90)
    assert stock.given_up == 0
    assert with_copies.without_copies == 900
    assert with_copies.given_up == pytest.approx(0.1)
    assert with_copies.relative_to(stock) == pytest.approx(0.9)
    assert not with_copies.same_as(stock)
    assert Savings(0, 0).given_up == 0
    assert stock.relative_to(Savings(0, 0)) is None


@pytest.mark.parametrize(("sharing", "same"), [(1000, True), (990, True), (1010, True), (989, False), (1011, False)])
def test_the_same_savings_within_a_hundredth(sharing: int, same: bool) -> None:
    assert Savings(1, sharing).same_as(Savings(1, 1000)) is same


@pytest.mark.parametrize(
    ("points", "passes"),
    [
        ([], None),
        ([(0, 0), (1, 0)], None),
        ([(0, 0), (1, 50), (2, 90), (3, 100)], 2),
        ([(0, 0), (1, 95), (2, 40), (3, 100)], 3),  # what was lost again does not count
        ([(0, 0), (1, 120), (2, 100)], 1),
        ([(5, 100)], 5),
        ([(0, 0), (1, 89), (4, 100)], 4),
    ],
)
def test_passes_to_most_of_what_there_is(points: list[tuple[float, float]], passes: float | None) -> None:
    assert metrics.passes_to(points) == passes


def test_passes_go_forward() -> None:
    with pytest.raises(ValueError, match="backwards"):
        metrics.passes_to([(2, 5), (1, 6)])


@FAST
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30), st.floats(0.01, 1))
def test_once_reached_it_stays(saved: list[int], share: float) -> None:
    points = [(float(number), float(each)) for number, each in enumerate(saved)]
    passes = metrics.passes_to(points, share)
    if saved[-1] == 0:
        assert passes is None
        return
    assert passes is not None
    assert all(each >= share * saved[-1] for number, each in points if number >= passes)
    assert passes == 0 or saved[int(passes) - 1] < share * saved[-1]


def scan(*workers: tuple[int, int], merger: int = 0, handed: int = 0) -> Scan:
    each = (Worker(number, number, scanned, cost) for number, (scanned, cost) in enumerate(workers))
    return Scan(tuple(each), handed, merger)


def test_a_pass_takes_as_long_as_the_longest() -> None:
    four = scan((250, 1000), (250, 1100), (250, 900), (250, 1000), merger=800)
    one = scan((1000, 4000))
    assert (four.longest, four.scanned) == (1100, 1000)
    assert metrics.speedup(four, one) == pytest.approx(4000 / 1100)
    assert four.merger_share == pytest.approx(800 / 4800)
    # The merger is one thread: where it takes longest, it is what a pass takes.
    assert metrics.speedup(scan((500, 10), (500, 10), merger=8000), one) == pytest.approx(0.5)


def test_nothing_done_has_no_speed() -> None:
    assert metrics.speedup(scan(), scan((1, 1))) is None
    assert metrics.speedup(scan((1, 1)), scan((0, 0))) is None
    assert scan().merger_share is None


def test_since() -> None:
    before, now = scan((10, 100), (20, 200), merger=5, handed=3), scan((15, 150), (20, 200), merger=9, handed=4)
    assert now.since(before) == scan((5, 50), (0, 0), merger=4, handed=1)
    with pytest.raises(ValueError, match="others"):
        now.since(scan((1, 1)))
