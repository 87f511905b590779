"""Snapshots made by hand for tests."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from numalab.kinds import Kind
from numalab.measure.nodes import NodeMap, Span
from numalab.measure.pagetable import walk
from numalab.measure.snapshot import ProcessPlacement, Replication, Root, Snapshot
from tests.unit.guest_memory import PASSTHROUGH, USER_TABLE, GuestMemory, entry

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
    """The primary on node 0, walked by its CPUs and those of node 2, and a full replica on node 1."""
    memory = GuestMemory(4)
    first = tree(memory, [0x10, 0x11, 0x12, 0x13])
    second = tree(memory, [0x1010, 0x1011, 0x1012, 0x1013])
    made = placement(memory, [Root((0, 2), first), Root((1,), second, domain=1, home=1)], pid=43)
    return replace(made, replication=Replication("eager", True, (1,)), pgtables_bytes=(3 + 3 + 1) * 4096)


def lazily_replicated() -> ProcessPlacement:
    """The primary on node 0; on node 1 a replica with 3 of its 8 entries of 4K and a pass-through to the rest of it.

    A second PTE page of the primary, on node 1, has two entries. Node 2 has an empty replica. One replica of a PTE
    page is in memory, on node 1, and no tree reaches it.
    """
    memory = GuestMemory(4)
    first = tree(memory, [0x10, 0x11, 0x12, 0x13])
    memory.link(0x12, 2, memory.table(0x1019))
    for index in range(2):
        memory.set(0x1019, index, entry(0x530 + index))
    second = [memory.table(frame) for frame in (0x1010, 0x1011, 0x1012, 0x1013)]
    for above, below in pairwise(second):
        memory.link(above, 1, below)
    memory.pages[0x1013][:3] = memory.pages[0x13][:3]
    memory.set(0x1012, 2, 0x1019 << 12 | USER_TABLE | PASSTHROUGH)
    third = memory.table(0x1020)
    roots = [Root((0,), first), Root((1,), second[0], domain=1, home=1), Root((2,), third, domain=2, home=1)]
    made = placement(memory, roots, pid=44)
    tables = made.tables.with_unlinked(np.array([0x1021]), np.array([1]))
    node = NODES.column(tables.frame).astype(np.int16)
    told = Replication("lazy", True, (1, 2))
    return replace(made, tables=tables, table_node=node, replication=told, pgtables_bytes=(4 + 4 + 1) * 4096)


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
