"""NO-F, later: whether groups still hold after the host may have moved vCPUs, and new ones under the old numbers.

A whole matrix takes a measurement for each pair. Whether it would say something new a few pairs tell: for each vCPU one
inside its group and one that leads to another group (`pairs`), and of them those that contradict (`contradicted`) are
measured again by the caller, since disturbance only ever adds. Pools stay with the numbers of their groups, so that a
group keeps its number when most of its vCPUs do (`renumbered`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from vmitosis.discovery import Grouping

__all__ = ["contradicted", "moved", "pairs", "renumbered"]

Pair = tuple[int, int]
#: Measures pairs of vCPUs: latency of each, in the unit of the grouping.
Measure = Callable[[Sequence[Pair]], Mapping[Pair, float]]


def pairs(grouping: Grouping, turn: int = 0) -> list[Pair]:
    """Pairs to measure: two for each vCPU where there are two groups, others each turn; hyper-threads are left out."""
    siblings = {frozenset(pair) for pair in grouping.siblings}
    found: set[Pair] = set()
    for number, group in enumerate(grouping.groups):
        others = [vcpu for place, each in enumerate(grouping.groups) if place != number for vcpu in each]
        for vcpu in group:
            near = [other for other in group if other != vcpu and frozenset((vcpu, other)) not in siblings]
            for choice in (near, others):
                if choice:
                    other = choice[(vcpu + turn) % len(choice)]
                    found.add((min(vcpu, other), max(vcpu, other)))
    return sorted(found)


def contradicted(grouping: Grouping, measured: Mapping[Pair, float]) -> list[Pair]:
    """The pairs that are on the wrong side of the middle between near and far, as ratios go.

    One group has no far side: what is measured there says nothing, and a whole matrix has to be taken.
    """
    if grouping.remote is None or grouping.local is None:
        return []
    middle = float(np.sqrt(grouping.local * grouping.remote[0]))
    label = {vcpu: number for number, group in enumerate(grouping.groups) for vcpu in group}
    return [pair for pair, value in measured.items() if (label[pair[0]] == label[pair[1]]) != (value < middle)]


def moved(grouping: Grouping, measure: Measure, turn: int = 0) -> bool:
    """Measure a few pairs, those that contradict once more, and say whether some still do."""
    wrong = contradicted(grouping, measure(pairs(grouping, turn)))
    return bool(wrong) and bool(contradicted(grouping, measure(wrong)))


def renumbered(new: Grouping, old: Grouping) -> Grouping:
    """`new` with its groups in the order of the old ones whose vCPUs they have most of; groups without one are last."""
    shared = np.array([[len(set(one) & set(other)) for other in old.groups] for one in new.groups])
    rows, columns = linear_sum_assignment(shared, maximize=True)
    number = {int(row): int(column) for row, column in zip(rows, columns, strict=True)}
    order = sorted(range(len(new.groups)), key=lambda each: (number.get(each, len(old.groups)), each))
    return replace(new, groups=tuple(new.groups[each] for each in order))
