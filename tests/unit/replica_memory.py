"""Synthetic guest memory with replicated page tables, made as the contract wants them; tests break them one by one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from numalab.measure.nodes import NodeMap, Span
from numalab.measure.process import Replication, Root
from numalab.measure.replica_check import Replicated
from numalab.measure.rings import NO_LINK, ROOT_LEVEL
from tests.unit.guest_memory import PASSTHROUGH, PASSTHROUGH_REMOTE, PRESENT, PSE, GuestMemory

#: Four nodes of 64 MiB each.
NODES = NodeMap(range(4), [Span(node << 14, (node + 1) << 14, node) for node in range(4)])
MASK = 0x000F_FFFF_FFFF_F000
WRITE, ACCESSED, DIRTY = 1 << 1, 1 << 5, 1 << 6
REPLICA = 1 << 63


def replica_leaf(value: int) -> int:
    """What the kernel writes into a replica for a leaf of the primary: 0 when the processor has not used it."""
    if value & (PRESENT | ACCESSED) != PRESENT | ACCESSED:
        return 0
    return value if value & DIRTY else value & ~WRITE


@dataclass
class ReplicaMemory(GuestMemory):
    """Guest memory with descriptors; replicas are made by `replicate`.

    Attributes:
        next: frame → next frame in its ring.
        info: frame of a replica → its `pt_repl_info`.
        roots: domain → frame.
        copies: (frame of the primary, domain) → frame of the replica.
    """

    next: dict[int, int] = field(default_factory=dict)
    info: dict[int, int] = field(default_factory=dict)
    roots: dict[int, int] = field(default_factory=dict)
    copies: dict[tuple[int, int], int] = field(default_factory=dict)
    _free: dict[int, int] = field(default_factory=dict)

    def fresh(self, node: int) -> int:
        """An empty table page on a node."""
        frame = self._free.get(node, (node << 14) + 0x3000)
        self._free[node] = frame + 2  # a root has a second half beside it
        self.pages[frame + 1] = np.zeros(512, np.uint64)
        return self.table(frame)

    def join(self, primary: int, domain: int, level: int, frame: int) -> None:
        """Put `frame` on the ring of a table as its replica."""
        named = ROOT_LEVEL if level == self.levels else level
        self.info[frame] = REPLICA | named << 8 | domain
        self.next[frame] = self.next.get(primary, primary)
        self.next[primary] = frame
        self.copies[primary, domain] = frame

    def replicate(self, root: int, domains: Iterable[int], *, near: bool = True) -> None:
        """Replicate the tree at `root` in full; with `near`, PTE tables on the domain's node are passed through."""
        for domain in domains:
            self.roots[domain] = self._copy(root, self.levels, domain, near)

    def _copy(self, primary: int, level: int, domain: int, near: bool) -> int:
        frame = self.fresh(domain)
        self.join(primary, domain, level, frame)
        for index in np.flatnonzero(self.pages[primary]).tolist():
            if level == self.levels and index >= 256:
                continue
            value = int(self.pages[primary][index])
            if level == 1 or (level <= 3 and value & PSE):
                self.set(frame, index, replica_leaf(value))
            elif value & PRESENT:
                child = (value & MASK) >> 12
                if level == 2 and near and child >> 14 == domain:
                    self.set(frame, index, value | PASSTHROUGH)
                else:
                    self.link(frame, index, self._copy(child, level - 1, domain, near))
            if level == self.levels:
                self.set(frame + 1, index, int(self.pages[frame][index]))
        return frame

    def read_links(self, frames: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        found = [(self.next.get(frame, NO_LINK), self.info.get(frame, 0)) for frame in frames.tolist()]
        return np.array([n for n, _ in found], np.int64), np.array([i for _, i in found], np.uint64)

    def space(self, root: int, mode: str = "lazy", **more: object) -> Replicated:
        """What the checker looks at."""
        replicas = (Root((domain,), frame, domain, domain) for domain, frame in sorted(self.roots.items()))
        told = Replication(mode, active=mode != "off", domains=tuple(sorted(self.roots)))
        known: dict[str, object] = {
            "levels": self.levels,
            "roots": (Root((), root), *replicas),
            "replication": told,
            "domains": 4,
            "nodes": NODES,
            "read_pages": self.read,
            "read_links": self.read_links,
            "deposited": np.empty(0, np.int64),
        }
        return Replicated(**{**known, **more})  # type: ignore[arg-type]


#: Frames of the primary in `sample`: its top page, the tables below, and two PTE tables on nodes 0 and 1.
TOP, PUD, PMD, PTE, PTE1 = 0x10, 0x11, 0x12, 0x13, 0x4013


def sample(levels: int = 4, *, near: bool = True) -> ReplicaMemory:
    """A tree with every kind of entry, replicated on four nodes; with 5 levels one table more on top."""
    memory = ReplicaMemory(levels)
    top = TOP if levels == 4 else 0xF
    for frame in (*([0xF] if levels == 5 else []), TOP, PUD, PMD, PTE, PTE1):
        memory.table(frame)
    if levels == 5:
        memory.link(0xF, 2, TOP)
    memory.link(TOP, 1, PUD)
    memory.link(PUD, 3, PMD)
    memory.link(PMD, 4, PTE)
    memory.link(PMD, 5, PTE1)
    memory.set(PMD, 6, 0x1600 << 12 | 0x8000_0000_0000_00E7)
    memory.set(PUD, 9, 0x4_0000 << 12 | 0x8000_0000_0000_00E7)
    for index in range(8):
        memory.set(PTE, index, (0x500 + index) << 12 | 0x8000_0000_0000_0067)
        memory.set(PTE1, index, (0x4500 + index) << 12 | 0x25)  # read-only, executable, clean
    memory.set(PTE, 8, 0x600 << 12 | 0x8000_0000_0000_0027)  # writable and clean: read-only in a replica
    memory.set(PTE, 9, 0x601 << 12 | 0x8000_0000_0000_0007)  # never used: not in a replica
    memory.set(PTE, 10, 0x602 << 12 | 0x120)  # PROT_NONE: not present to the processor
    memory.set(PTE, 11, (5 << 59) | 0x07FF_0000_0000_0000)  # swapped out
    memory.replicate(top, range(4), near=near)
    return memory


__all__ = ["NODES", "PASSTHROUGH", "PASSTHROUGH_REMOTE", "PMD", "PTE", "PTE1", "PUD", "TOP", "ReplicaMemory", "sample"]
