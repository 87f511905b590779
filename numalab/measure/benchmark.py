"""How fast the walk is: what `make bench` measures of this room."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from numalab.measure.nodes import NodeMap, Span
from numalab.measure.pagetable import ENTRIES, PAGE_SHIFT, Tables, walk
from numalab.measure.take import Observable, detach, take

_TABLE = 0x67  # present, writable, user, accessed, dirty
_NO_EXECUTE = 1 << 63


class SyntheticTree:
    """A 4-level tree in numpy memory, its data pages spread at random over four nodes of 1 GiB.

    Attributes:
        entries: number of page-table entries a walk looks at.
    """

    def __init__(self, pte_pages: int, *, filled: float = 1.0, seed: int = 1) -> None:
        """Make a tree with `pte_pages` PTE pages (at most 2¹⁸), the share `filled` of their entries present."""
        rng = np.random.default_rng(seed)
        pmd_pages = -(-pte_pages // ENTRIES)
        first_pte = 2 + pmd_pages
        self._pages: NDArray[np.uint64] = np.zeros((first_pte + pte_pages, ENTRIES), np.uint64)
        self._pages[0, 0] = 1 << PAGE_SHIFT | _TABLE
        self._pages[1, :pmd_pages] = (np.arange(2, first_pte) << PAGE_SHIFT) | _TABLE
        pmd_entries = self._pages[2:first_pte].reshape(-1)
        pmd_entries[:pte_pages] = (np.arange(first_pte, len(self._pages)) << PAGE_SHIFT) | _TABLE
        frames = rng.integers(0, 1 << 20, (pte_pages, ENTRIES), np.uint64)
        leaves = (frames << np.uint64(PAGE_SHIFT)) | np.uint64(_NO_EXECUTE | _TABLE)
        self._pages[first_pte:] = leaves * (rng.random((pte_pages, ENTRIES)) < filled)
        self._nodes = NodeMap(range(4), [Span(node << 18, (node + 1) << 18, node) for node in range(4)])
        self.entries = len(self._pages) * ENTRIES - ENTRIES // 2

    def walk(self) -> Tables:
        """Walk it once."""
        return walk([0], 4, self._pages.__getitem__, self._nodes, zero_frame=0)


def parse_rate(tree: SyntheticTree, repeats: int = 5) -> float:
    """Entries parsed per second of processor time, the best of `repeats`."""
    tree.walk()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        tree.walk()
        seconds.append(time.process_time() - start)
    return tree.entries / min(seconds)


def snapshot_seconds(machine: Observable, pid: int, *, attach: bool) -> float:
    """Wall seconds for a snapshot of one process, attaching anew included when `attach`."""
    if attach:
        detach(machine)
    start = time.perf_counter()
    take(machine, [pid])
    return time.perf_counter() - start
