"""Topology of a machine: NUMA nodes, their CPUs and memory, distances, paging levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numalab.errors import UserError
from numalab.units import format_size, parse_size

LOCAL_DISTANCE = 10
#: Between nodes, unless said otherwise.
REMOTE_DISTANCE = 20
#: ACPI SLIT: 255 means "unreachable"; anything from 10 is a distance.
MAX_DISTANCE = 254


@dataclass(frozen=True)
class Node:
    """One NUMA node: number of CPUs (0: CPU-less) and bytes of memory (0: memoryless)."""

    cpus: int
    memory: int


@dataclass(frozen=True)
class Topology:
    """A machine's shape.

    Attributes:
        nodes: in order of node number; CPUs are numbered through, node by node.
        distances: `distances[i][j]` is the SLIT distance from node i to node j; the diagonal is 10.
        visible: False hides NUMA from the guest (NUMA-oblivious: one node is presented).
        paging_levels: 4 or 5.
        cpu_numbers: the numbers of each node's CPUs, where they are not numbered through (a real machine); else empty.
    """

    nodes: tuple[Node, ...]
    distances: tuple[tuple[int, ...], ...]
    visible: bool = True
    paging_levels: int = 4
    cpu_numbers: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        check(self)

    @property
    def cpus(self) -> int:
        """Number of CPUs."""
        return sum(node.cpus for node in self.nodes)

    @property
    def memory(self) -> int:
        """Bytes of memory in all nodes."""
        return sum(node.memory for node in self.nodes)

    def cpus_of(self, node: int) -> Sequence[int]:
        """Numbers of the CPUs of `node`, ascending."""
        if self.cpu_numbers:
            return self.cpu_numbers[node]
        first = sum(other.cpus for other in self.nodes[:node])
        return range(first, first + self.nodes[node].cpus)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return {
            "nodes": [{"cpus": node.cpus, "memory": node.memory} for node in self.nodes],
            "distances": [list(row) for row in self.distances],
            "visible": self.visible,
            "paging_levels": self.paging_levels,
            **({"cpu_numbers": [list(cpus) for cpus in self.cpu_numbers]} if self.cpu_numbers else {}),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Topology:
        """Read what `to_json` wrote."""
        return cls(
            tuple(Node(node["cpus"], node["memory"]) for node in value["nodes"]),
            tuple(tuple(row) for row in value["distances"]),
            value["visible"],
            value["paging_levels"],
            tuple(tuple(cpus) for cpus in value.get("cpu_numbers", ())),
        )

    def __str__(self) -> str:
        """One line for people, e.g. "4 nodes × 1 CPU × 512 MiB, 4-level"."""
        shapes = {(node.cpus, node.memory) for node in self.nodes}
        if len(shapes) == 1:
            cpus, memory = shapes.pop()
            each = f"{cpus} CPU{'s' * (cpus != 1)} × {format_size(memory)}"
            text = f"{len(self.nodes)} node{'s' * (len(self.nodes) != 1)} × {each}"
        else:
            text = " + ".join(f"{node.cpus} CPU × {format_size(node.memory)}" for node in self.nodes)
        return f"{text}, {self.paging_levels}-level{'' if self.visible else ', NUMA-oblivious'}"


def equal_distances(count: int, remote: int = REMOTE_DISTANCE) -> tuple[tuple[int, ...], ...]:
    """Return SLIT distances of `count` nodes of which every two are `remote` apart."""
    span = range(count)
    return tuple(tuple(LOCAL_DISTANCE if i == j else remote for j in span) for i in span)


def uniform(
    nodes: int = 4,
    cpus_per_node: int = 1,
    node_memory: int | str = "512M",
    *,
    remote: int = REMOTE_DISTANCE,
    visible: bool = True,
    paging_levels: int = 4,
) -> Topology:
    """Return a symmetric machine: every node alike, every pair of nodes `remote` apart."""
    if nodes < 1:
        raise UserError(f"a machine needs at least one node, not {nodes}")
    size = parse_size(node_memory, what="node memory")
    return Topology((Node(cpus_per_node, size),) * nodes, equal_distances(nodes, remote), visible, paging_levels)


def check(topology: Topology, *, allow_asymmetric: bool = True) -> None:
    """Raise UserError when no machine can have this shape; says which node or which pair is wrong."""
    count = len(topology.nodes)
    if count == 0:
        raise UserError("a machine needs at least one node")
    if topology.cpus < 1:
        raise UserError("a machine needs at least one CPU; all its nodes have 0")
    if topology.memory == 0:
        raise UserError("a machine needs memory; all its nodes have 0")
    for number, node in enumerate(topology.nodes):
        if node.cpus < 0 or node.memory < 0:
            raise UserError(f"node {number}: CPUs and memory cannot be negative")
        if node.memory % (1 << 20):
            raise UserError(f"node {number}: memory must be a whole number of MiB, not {node.memory} bytes")
        if node.cpus == 0 and node.memory == 0:
            raise UserError(f"node {number} has neither CPUs nor memory")
    rows = topology.distances
    if len(rows) != count or any(len(row) != count for row in rows):
        lengths = [len(row) for row in rows]
        raise UserError(f"distances must be a square of {count} × {count} (one row per node), got rows of {lengths}")
    for i, row in enumerate(rows):
        for j, distance in enumerate(row):
            if i == j and distance != LOCAL_DISTANCE:
                raise UserError(f"distance of node {i} to itself must be {LOCAL_DISTANCE}, not {distance}")
            if i != j and not LOCAL_DISTANCE < distance <= MAX_DISTANCE:
                raise UserError(
                    f"distance {i}→{j} is {distance}: remote distances lie in {LOCAL_DISTANCE + 1}–{MAX_DISTANCE}"
                )
            if not allow_asymmetric and distance != rows[j][i]:
                raise UserError(
                    f"distances are not symmetric: {i}→{j} is {distance}, {j}→{i} is {rows[j][i]}",
                    remedy="set asymmetric = true (--asymmetric) if that is meant",
                )
    if topology.paging_levels not in (4, 5):
        raise UserError(f"paging_levels must be 4 or 5, not {topology.paging_levels}")
