"""Shapes of machines: what is accepted, what is refused and in which words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numalab.errors import UserError
from numalab.machine.topology import Node, Topology, check, uniform

MIB = 1 << 20


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    count = draw(st.integers(1, 8))
    nodes = [Node(draw(st.integers(0, 4)), draw(st.integers(0, 4)) * 64 * MIB) for _ in range(count)]
    nodes = [node if node.cpus or node.memory else Node(1, 64 * MIB) for node in nodes]
    nodes[0] = Node(1, 64 * MIB)
    distances = tuple(tuple(10 if i == j else draw(st.integers(11, 254)) for j in range(count)) for i in range(count))
    return Topology(tuple(nodes), distances, draw(st.booleans()), draw(st.sampled_from((4, 5))))


@given(topologies())
def test_json_round_trip(topology: Topology) -> None:
    assert Topology.from_json(topology.to_json()) == topology


@given(topologies())
def test_every_cpu_lies_on_one_node(topology: Topology) -> None:
    cpus = [cpu for node in range(len(topology.nodes)) for cpu in topology.cpus_of(node)]
    assert cpus == list(range(topology.cpus))


def test_uniform() -> None:
    topology = uniform(3, 2, "1G", remote=21)
    assert topology.memory == 3 << 30
    assert topology.distances == ((10, 21, 21), (21, 10, 21), (21, 21, 10))
    assert str(topology) == "3 nodes × 2 CPUs × 1 GiB, 4-level"


@pytest.mark.parametrize(
    ("nodes", "distances", "words"),
    [
        ((), (), "at least one node"),
        ((Node(0, 64 * MIB),), ((10,),), "at least one CPU"),
        ((Node(1, 0),), ((10,),), "needs memory"),
        ((Node(1, MIB + 1),), ((10,),), "whole number of MiB"),
        ((Node(1, MIB), Node(0, 0)), ((10, 20), (20, 10)), "node 1 has neither CPUs nor memory"),
        ((Node(1, MIB), Node(1, MIB)), ((10, 20),), "square of 2 × 2"),
        ((Node(1, MIB), Node(1, MIB)), ((10, 20, 30), (20, 10, 30)), r"square of 2 × 2 .* rows of \[3, 3\]"),
        ((Node(1, MIB), Node(1, MIB)), ((11, 20), (20, 10)), "node 0 to itself must be 10"),
        ((Node(1, MIB), Node(1, MIB)), ((10, 9), (20, 10)), "distance 0→1 is 9"),
        ((Node(1, MIB), Node(1, MIB)), ((10, 255), (20, 10)), "distance 0→1 is 255"),
        ((Node(-1, MIB), Node(2, MIB)), ((10, 20), (20, 10)), "negative"),
    ],
)
def test_impossible_shapes(nodes: tuple[Node, ...], distances: tuple[tuple[int, ...], ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Topology(nodes, distances)


def test_asymmetric_by_accident() -> None:
    topology = Topology((Node(1, MIB), Node(1, MIB)), ((10, 20), (21, 10)))
    with pytest.raises(UserError, match="0→1 is 20, 1→0 is 21") as caught:
        check(topology, allow_asymmetric=False)
    assert "asymmetric = true" in caught.value.remedy


def test_paging_levels() -> None:
    with pytest.raises(UserError, match="must be 4 or 5, not 3"):
        uniform(paging_levels=3)
    with pytest.raises(UserError, match="at least one node"):
        uniform(0)
