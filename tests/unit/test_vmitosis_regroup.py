"""NO-F after the host has moved vCPUs: a few pairs say so, and groups keep their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from vmitosis.discovery import discover
from vmitosis.latencies import flat
from vmitosis.regroup import Pair, contradicted, moved, pairs, renumbered


class Probe:
    """vCPUs on nodes, which may be moved; counts the pairs it has measured."""

    def __init__(self, nodes: Sequence[int]) -> None:
        self.nodes = list(nodes)
        self.rng = np.random.default_rng(1)
        self.measured = 0

    def matrix(self) -> np.ndarray:
        node = np.array(self.nodes)
        exact = np.where(node[:, None] == node[None, :], 50.0, 110.0)
        return exact * np.exp(np.abs(self.rng.normal(0, 0.04, exact.shape)))

    def some(self, wanted: Sequence[Pair]) -> Mapping[Pair, float]:
        self.measured += len(wanted)
        now = self.matrix()
        # One look in ten is disturbed.
        return {pair: float(now[pair] * (8 if self.rng.random() < 0.1 else 1)) for pair in wanted}


NODES = [0] * 4 + [1] * 4 + [2] * 4


def test_nothing_moved_nothing_said() -> None:
    """Disturbed looks alone do not make anybody measure all: they are looked at again."""
    probe = Probe(NODES)
    known = discover(probe.matrix())
    said = [moved(known, probe.some, turn) for turn in range(50)]
    assert sum(said) <= 10
    assert probe.measured < 50 * len(NODES) * (len(NODES) - 1) / 4, "far fewer than all pairs each time"


@pytest.mark.parametrize("places", [(0, 4), (3, 11), (5, 8)])
def test_two_vcpus_that_changed_places_are_seen(places: tuple[int, int]) -> None:
    probe = Probe(NODES)
    known = discover(probe.matrix())
    one, other = places
    probe.nodes[one], probe.nodes[other] = probe.nodes[other], probe.nodes[one]
    assert moved(known, probe.some)
    new = renumbered(discover(probe.matrix()), known)
    # Group i is still where most of its vCPUs were.
    assert [set(group) for group in new.groups] == [
        {vcpu for vcpu, node in enumerate(probe.nodes) if node == number} for number in range(3)
    ]


def test_groups_keep_their_numbers_when_the_lowest_vcpu_moves() -> None:
    """By lowest vCPU the numbers would be the other way round, and each group would have the other's pool."""
    probe = Probe([0, 0, 0, 0, 1, 1, 1, 1])
    known = discover(probe.matrix())
    probe.nodes = [1, 0, 0, 0, 1, 1, 1, 0]
    new = discover(probe.matrix())
    assert new.groups[0] == (0, 4, 5, 6)
    assert renumbered(new, known).groups == ((1, 2, 3, 7), (0, 4, 5, 6))


def test_more_groups_than_there_were_come_last() -> None:
    known = discover(Probe(NODES[:8]).matrix())
    probe = Probe([0, 0, 2, 2, 1, 1, 1, 1])
    probe.nodes = [2, 2, 2, 0, 0, 0, 1, 1, 1]
    new = discover(probe.matrix())
    assert len(new.groups) == 3
    assert len(renumbered(new, known).groups) == 3
    assert renumbered(known, known) == known


def test_one_group_has_nothing_to_contradict() -> None:
    known = discover(flat(1, 8, 0.1))
    assert len(known.groups) == 1
    assert contradicted(known, dict.fromkeys(pairs(known), 1e6)) == []
