"""Synthetic guest memory with x86-64 page tables, and a naive walk to compare the vectorised one with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from numalab.measure.nodes import NodeMap

PRESENT, PSE, PROTNONE, SPECIAL, NX = 1 << 0, 1 << 7, 1 << 8, 1 << 9, 1 << 63
USER_TABLE = 0x67
#: Software bits of an entry of a replica that leads to the primary's own table: always, and when it is far away.
PASSTHROUGH, PASSTHROUGH_REMOTE = 1 << 11, 1 << 9
MASK = 0x000F_FFFF_FFFF_F000


def entry(frame: int, kind: str = "data", *, huge: bool = False) -> int:
    """An entry as Linux writes it. Kinds: data, protnone, special, split (a PMD being split), swap."""
    size = PSE if huge else 0
    if kind == "data":
        return frame << 12 | 0x8000_0000_0000_0067 | size
    if kind == "special":
        return frame << 12 | 0x225 | NX | size
    if kind == "protnone":  # the frame is stored inverted, against L1 terminal faults
        return (~(frame << 12) & MASK) | PROTNONE | 0x20 | NX | size
    if kind == "split":  # pmd_mkinvalid(): neither present nor PROTNONE, the huge bit stays
        return (~(frame << 12) & MASK) | 0x26 | PSE
    if kind == "swap":  # an inverted offset above, the type in the top bits, bits 0, 7 and 8 clear
        return (5 << 59) | (~(frame << 14) & 0x07FF_FFFF_FFFF_C000)
    raise ValueError(kind)


@dataclass
class GuestMemory:
    """Table pages by frame number; `read` is the reader that `walk` wants."""

    levels: int = 4
    pages: dict[int, NDArray[np.uint64]] = field(default_factory=dict)
    reads: int = 0

    def table(self, frame: int) -> int:
        """Make an empty table page."""
        assert frame not in self.pages
        self.pages[frame] = np.zeros(512, np.uint64)
        return frame

    def set(self, frame: int, index: int, value: int) -> None:
        self.pages[frame][index] = np.uint64(value)

    def link(self, above: int, index: int, below: int) -> None:
        self.set(above, index, below << 12 | USER_TABLE)

    def read(self, frames: NDArray[np.int64]) -> NDArray[np.uint64]:
        self.reads += 1
        return np.stack([self.pages[int(frame)] for frame in frames])


def naive_walk(
    memory: GuestMemory, roots: list[int], nodes: NodeMap, zero: int = -1, huge_zero: int = -1
) -> dict[tuple[int, int, int], tuple[int, int, Counter[int]]]:
    """(root, level, frame) → (lowest va, references, leaf entries by column), one entry at a time."""
    found: dict[tuple[int, int, int], tuple[int, int, Counter[int]]] = {}

    def visit(root: int, frame: int, level: int, va: int) -> None:
        key = (root, level, frame)
        if key in found:
            lowest, refs, leaves = found[key]
            found[key] = (min(va, lowest), refs + 1, leaves)
            return
        leaves = Counter[int]()
        found[key] = (va, 1, leaves)
        for index in range(256 if level == memory.levels else 512):
            value = int(memory.pages[frame][index])
            present, huge = value & PRESENT, value & PSE
            stored = (value if present else ~value) & MASK
            if level == 1 and value & (PRESENT | PROTNONE):
                leaves[_column(nodes, stored >> 12, zero)] += 1
            elif level in (2, 3) and huge:
                base = (stored >> 12) >> 9 * (level - 1) << 9 * (level - 1)
                leaves[_column(nodes, base, huge_zero if level == 2 else -1)] += 1
            elif level > 1 and present:
                visit(root, stored >> 12, level - 1, va + (index << 12 + 9 * (level - 1)))

    for number, frame in enumerate(roots):
        visit(number, frame, memory.levels, 0)
    return found


def _column(nodes: NodeMap, frame: int, zero: int) -> int:
    if frame == zero:
        return len(nodes.nodes)
    for span in nodes.spans:
        if span.start <= frame < span.end:
            return nodes.nodes.index(span.node)
    return len(nodes.nodes) + 1
