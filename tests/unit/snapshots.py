"""Snapshots made by hand for tests."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from numalab.kinds import Kind
from numalab.measure.nodes import NodeMap, Span
from numalab.measure.pagetable import walk
from numalab.measure.snapshot import ProcessPlacement, Root, Snapshot
from tests.unit.guest_memory import GuestMemory, entry

#: Nodes 0 and 1 with frames below 0x1000 and 0x2000; node 2 has CPUs and no memory.
NODES = NodeMap([0, 1, 2], [Span(0, 0x1000, 0), Span(0x1000, 0x2000, 1)])
ZERO = 0x501


def tree(memory: GuestMemory, frames: list[int]) -> int:
    """A 4-level tree of table pages at `frames`; the last one is a PTE page with 4 leaves on node 0, 2 on
    node 1, one of the zero page and one of a device."""
    for frame in frames:
        memory.table(frame)
    for above, below in pairwise(frames):
        memory.link(above, 1, below)
    for index in range(4):
        memory.set(frames[3], index, entry(0x510 + index))
    memory.set(frames[3], 100, entry(0x1500))
    memory.set(frames[3], 101, entry(0x1501, "protnone"))
    memory.set(frames[3], 102, entry(ZERO, "special"))
    memory.set(frames[3], 103, entry(0xFEE00))
    memory.set(frames[2], 7, entry(0x1600, huge=True))
    return frames[0]


def placement(memory: GuestMemory, roots: list[Root], pid: int = 42, comm: str = "gups") -> ProcessPlacement:
    tables = walk([root.frame for root in roots], 4, memory.read, NODES, zero_frame=ZERO)
    return ProcessPlacement(
        pid=pid,
        comm=comm,
        nodes=NODES.nodes,
        levels=4,
        roots=tuple(roots),
        tables=tables,
        table_node=NODES.column(tables.frame).astype(np.int16),
        deposited=np.array([0, 1, 0]),
        pgtables_bytes=4 * 4096,
    )


def unreplicated() -> ProcessPlacement:
    """PGD and PUD on node 0, PMD and PTE on node 1."""
    memory = GuestMemory(4)
    return placement(memory, [Root((0, 1, 2), tree(memory, [0x10, 0x11, 0x1010, 0x1011]))])


def replicated() -> ProcessPlacement:
    """A tree on node 0 for its CPUs and those of node 2, and one on node 1."""
    memory = GuestMemory(4)
    first = tree(memory, [0x10, 0x11, 0x12, 0x13])
    second = tree(memory, [0x1010, 0x1011, 0x1012, 0x1013])
    return placement(memory, [Root((0, 2), first), Root((1,), second)], pid=43)


def snapshot(*processes: ProcessPlacement) -> Snapshot:
    return Snapshot(
        processes=processes,
        nodes=(0, 1, 2),
        cpu_nodes=(0, 1, 2),
        levels=4,
        label="ready",
        kernel={"release": "6.12.117", "build_id": "ab12"},
        kind=Kind.COUNTED,
        taken="2026-11-21T03:48:09.393+00:00",
        seconds={"attach": 0.1, "walk": 0.02, "total": 0.12},
    )
