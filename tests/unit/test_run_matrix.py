"""The matrix: every point once, in an order that a seed decides and that interleaves what is compared."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numalab.errors import UserError
from numalab.machine.topology import uniform
from numalab.results import NO_INTERFERENCE, PLACEBO
from numalab.run.interference import Interference
from numalab.run.matrix import parse_only, points, select
from numalab.run.spec import Exclude, Experiment, Variant

NAMES = st.lists(st.text("abcdef", min_size=1, max_size=3), min_size=1, max_size=3, unique=True)


@st.composite
def experiments(draw: st.DrawFn) -> Experiment:
    kernels, policies, workloads, topologies, beside = (draw(NAMES) for _ in range(5))
    beside = beside[:2]
    beside[0] = draw(st.sampled_from([NO_INTERFERENCE, beside[0]]))
    axes = {
        "kernel": kernels,
        "policy": policies,
        "workload": workloads,
        "topology": topologies,
        "interference": beside,
    }
    excludes = draw(
        st.lists(
            st.dictionaries(st.sampled_from(sorted(axes)), st.none(), min_size=1).flatmap(
                lambda keys: st.fixed_dictionaries(
                    {key: st.lists(st.sampled_from(axes[key]), min_size=1, unique=True).map(tuple) for key in keys}
                )
            ),
            max_size=3,
        )
    )
    return Experiment(
        name="x",
        file=Path("x.toml"),
        kernels=tuple(kernels),
        policies=tuple(Variant(name, name) for name in policies),
        workloads=tuple(Variant(name, name) for name in workloads),
        topologies=dict.fromkeys(topologies, uniform(1, 1, "64M")),
        interferences=tuple(Interference(name) for name in beside),
        seed=draw(st.integers(0, 1 << 32)),
        repeats=draw(st.integers(1, 4)),
        excludes=tuple(Exclude(each) for each in excludes),
        baseline_kernel=draw(st.sampled_from(kernels)),
        baseline_policy=draw(st.sampled_from(policies)),
        placebo=draw(st.booleans()),
    )


def expected(experiment: Experiment) -> set[tuple[str, ...]]:
    """The points, found in another way: nested loops and excludes read literally."""
    wanted: set[tuple[str, ...]] = set()
    for kernel in experiment.kernels:
        for policy in experiment.policies:
            for workload in experiment.workloads:
                for topology in experiment.topologies:
                    for beside in experiment.interferences:
                        point = {"kernel": kernel, "policy": policy.name, "workload": workload.name}
                        point |= {"topology": topology, "interference": beside.name}
                        if any(leaves_out(exclude, point) for exclude in experiment.excludes):
                            continue
                        is_baseline = (kernel, policy.name) == (experiment.baseline_kernel, experiment.baseline_policy)
                        labels = [policy.name] + ([PLACEBO] if is_baseline and experiment.placebo else [])
                        for label in labels:
                            for repeat in range(experiment.repeats):
                                wanted.add((kernel, label, workload.name, topology, beside.name, str(repeat)))
    return wanted


def leaves_out(exclude: Exclude, point: dict[str, str]) -> bool:
    return set(exclude.values) <= {axis for axis in point if point[axis] in exclude.values.get(axis, ())}


@given(experiments())
def test_every_point_that_is_not_excluded_exactly_once(experiment: Experiment) -> None:
    found = [(p.kernel, p.policy, p.workload, p.topology, p.interference, str(p.repeat)) for p in points(experiment)]
    assert len(found) == len(set(found))
    assert set(found) == expected(experiment)


@given(experiments())
def test_repeats_follow_each_other_and_groups_stay_together(experiment: Experiment) -> None:
    found = points(experiment)
    assert [p.repeat for p in found] == sorted(p.repeat for p in found)
    groups = [key for key, _ in groupby(found, key=lambda p: (p.repeat, p.workload, p.topology))]
    assert len(groups) == len(set(groups))


@given(experiments())
def test_the_order_of_names_in_the_file_does_not_matter(experiment: Experiment) -> None:
    turned = replace(
        experiment,
        kernels=experiment.kernels[::-1],
        policies=experiment.policies[::-1],
        workloads=experiment.workloads[::-1],
        topologies=dict(reversed(list(experiment.topologies.items()))),
    )
    assert points(turned) == points(experiment)


@given(experiments(), st.data())
def test_leaving_points_out_does_not_move_the_others(experiment: Experiment, data: st.DataObject) -> None:
    kernel = data.draw(st.sampled_from(experiment.kernels))
    fewer = replace(experiment, excludes=(*experiment.excludes, Exclude({"kernel": (kernel,)})))
    assert points(fewer) == [p for p in points(experiment) if p.kernel != kernel]


def big(seed: int) -> Experiment:
    return Experiment(
        name="x",
        file=Path("x.toml"),
        kernels=("stock", "patched"),
        policies=tuple(Variant(name, name) for name in "abcd"),
        workloads=tuple(Variant(name, name) for name in "wxyz"),
        topologies={"four": uniform()},
        seed=seed,
        repeats=3,
        baseline_kernel="stock",
        baseline_policy="a",
    )


def test_orders_differ_between_seeds_and_between_repeats() -> None:
    found = points(big(1))
    assert found != points(big(2))
    rounds = [[replace(p, repeat=0) for p in found if p.repeat == repeat] for repeat in range(3)]
    assert rounds[0] != rounds[1] != rounds[2] != rounds[0]


def test_the_order_is_the_same_everywhere() -> None:
    """Fixed for good: the same seed must give the same order on every Python."""
    found = [f"{p.kernel[0]}{p.policy}{p.workload}" for p in points(replace(big(1), repeats=1))]
    assert found[:8] == ["saz", "sbz", "scz", "pdz", "pcz", "paz", "sdz", "pbz"]


def test_with_and_without_interference_are_neighbours() -> None:
    """What is compared is run close together in time; and the points without stay in their order."""
    both = replace(big(1), interferences=(*big(1).interferences, Interference("far")))
    found = points(both)
    groups = [key for key, _ in groupby(found, key=lambda p: (p.repeat, p.workload))]
    assert len(groups) == len(set(groups))
    assert [p for p in found if p.interference == NO_INTERFERENCE] == points(big(1))


def test_first_positions_are_spread() -> None:
    """Over many seeds no variant is first much more often than another (8 variants, 800 draws)."""
    firsts = [points(replace(big(seed), repeats=1))[0] for seed in range(800)]
    count = {(k, p): 0 for k in ("stock", "patched") for p in "abcd"}
    for point in firsts:
        count[point.kernel, point.policy] += 1
    assert min(count.values()) > 60
    assert max(count.values()) < 145


def test_only() -> None:
    experiment = big(1)
    wanted = parse_only(["policy=a", "policy=b", "kernel=stock", "repeat=2"], experiment, 3)
    found = select(points(experiment), wanted)
    assert len(found) == 8
    assert {(p.kernel, p.repeat) for p in found} == {("stock", 2)}
    assert {p.policy for p in found} == {"a", "b"}
    assert found == [p for p in points(experiment) if p in found]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("policy=e", "--only policy=e: no policy 'e' in this matrix"),
        ("kernel=stok", "--only kernel=stok: no kernel 'stok' in this matrix (did you mean 'stock'?)"),
        ("kernl=stock", "--only kernl=stock: write KEY=VALUE with KEY one of kernel, policy, workload, topology, "
         "interference, repeat (did you mean 'kernel'?)"),
        ("stock", "--only stock: write KEY=VALUE with KEY one of kernel, policy, workload, topology, interference, "
         "repeat"),
        ("repeat=3", "--only repeat=3: no repeat '3' in this matrix"),
        ("policy=placebo", "--only policy=placebo: no policy 'placebo' in this matrix"),
    ],
)  # fmt: skip
def test_only_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_only([text], big(1), 3)
    assert str(caught.value) == message


def test_the_placebo_is_the_baseline_under_another_label() -> None:
    found = points(replace(big(1), placebo=True))
    placebo = [p for p in found if p.policy == PLACEBO]
    assert len(placebo) == 4 * 3
    assert {(p.kernel, p.placebo_of, p.applied_policy) for p in placebo} == {("stock", "a", "a")}
    assert len(select(found, parse_only(["policy=placebo"], replace(big(1), placebo=True), 3))) == 12
