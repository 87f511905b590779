"""A vectorised walk over x86-64 page tables: which table pages there are, and what their entries map.

Pure numpy: guest memory comes from a reader function, so that the same walk serves a live guest, an
archive and the synthetic memory of tests. What counts as present is what Linux takes for present
(`pte_present()`, `pmd_present()`, `pmd_leaf()` and `pud_leaf()` in `arch/x86/include/asm/pgtable.h`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from numalab.errors import ExperimentError
from numalab.measure.nodes import NodeMap

PAGE_SHIFT = 12
ENTRIES = 512
#: Level 1 is the PTE page; its leaves map 4K, level 2's 2M, level 3's 1G.
LEAF_LEVELS = 3
LEAF_SIZES = ("4K", "2M", "1G")
LEVEL_NAMES = ("PTE", "PMD", "PUD", "P4D", "PGD")
#: `Tables.root` of tables that no tree reaches.
UNLINKED = -1

_PRESENT = np.uint64(1 << 0)
_HUGE = np.uint64(1 << 7)  # _PAGE_PSE; on level 1 the same bit is PAT
_PROTNONE = np.uint64(1 << 8)  # means that only when _PAGE_PRESENT is clear
_FRAME = np.uint64(0x000F_FFFF_FFFF_F000)
_ACCESSIBLE = _PRESENT | _PROTNONE
#: Table pages looked at in one go: their entries (512 KiB) stay in the processor's cache.
_CHUNK = 128

#: Reads pages of entries: frame numbers in, uint64 [len(frames), 512] out.
PageReader = Callable[[NDArray[np.int64]], NDArray[np.uint64]]


class WalkError(ExperimentError):
    """The tables contradict themselves, as those of a machine that was not paused may."""


@dataclass(frozen=True)
class Tables:
    """Table pages of one or more trees, one row each, top level first.

    A page that several entries of one tree point at has one row, with the lowest address.

    Attributes:
        root: int32, index of the tree among the roots that were walked; UNLINKED for tables that are there beside
            the trees.
        level: int8, 1 (PTE) to 5.
        frame: int64, the page's frame number.
        va: uint64, first virtual address the page translates.
        parent: int32, row of the page that points at it; -1 for a root.
        refs: int32, number of entries in the same tree that point at it; 1 for a root, 0 for UNLINKED ones.
        leaves: int32 [rows, columns], leaf entries by the column of the data page (see NodeMap).
    """

    root: NDArray[np.int32]
    level: NDArray[np.int8]
    frame: NDArray[np.int64]
    va: NDArray[np.uint64]
    parent: NDArray[np.int32]
    refs: NDArray[np.int32]
    leaves: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.frame)

    def select(self, rows: NDArray[np.bool_]) -> Tables:
        """The rows where `rows` is true; parents are renumbered, one left out becomes -1."""
        renumbered = np.full(len(self) + 1, -1, np.int32)
        renumbered[:-1][rows] = np.arange(np.count_nonzero(rows), dtype=np.int32)
        return Tables(
            self.root[rows],
            self.level[rows],
            self.frame[rows],
            self.va[rows],
            renumbered[self.parent[rows]],
            self.refs[rows],
            self.leaves[rows],
        )

    def with_unlinked(self, frame: NDArray[np.int64], level: NDArray[np.int64]) -> Tables:
        """The same, with rows for tables that no tree reaches; nobody walks their entries, so none are counted."""
        count = len(frame)
        return Tables(
            np.append(self.root, np.full(count, UNLINKED, np.int32)),
            np.append(self.level, level.astype(np.int8)),
            np.append(self.frame, frame),
            np.append(self.va, np.zeros(count, np.uint64)),
            np.append(self.parent, np.full(count, -1, np.int32)),
            np.append(self.refs, np.zeros(count, np.int32)),
            np.concatenate([self.leaves, np.zeros((count, self.leaves.shape[1]), np.int32)]),
        )

    def of_roots_from(self, first: int) -> Tables:
        """The same rows with root `first` renumbered 0, `first + 1` renumbered 1 and so on."""
        return replace(self, root=self.root - np.int32(first))


def no_tables(columns: int) -> Tables:
    """A table of no pages."""
    return Tables(
        np.empty(0, np.int32),
        np.empty(0, np.int8),
        np.empty(0, np.int64),
        np.empty(0, np.uint64),
        np.empty(0, np.int32),
        np.empty(0, np.int32),
        np.empty((0, columns), np.int32),
    )


def frames_of(entries: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Frame numbers in entries that are present to Linux; of others some number.

    Linux stores the frame of an entry that is present to Linux but not to the processor inverted
    (`__pte_needs_invert()`, against L1 terminal faults).
    """
    hidden = (entries & _PRESENT) == 0
    if hidden.any():
        # Without a branch per entry: xor with all ones where hidden.
        entries = entries ^ -hidden.astype(np.uint64)
    return ((entries & _FRAME) >> np.uint64(PAGE_SHIFT)).view(np.int64)


def walk(
    roots: Sequence[int] | NDArray[np.int64],
    levels: int,
    read_pages: PageReader,
    nodes: NodeMap,
    *,
    zero_frame: int = -1,
    huge_zero_frame: int = -1,
    user_only: bool = True,
) -> Tables:
    """Walk the trees whose top pages have the frame numbers `roots`, all of them level by level.

    Args:
        roots: frame number of each tree's top page.
        levels: 4 or 5.
        read_pages: reads table pages.
        nodes: gives the column in which a data page is counted.
        zero_frame: frame of the shared zero page.
        huge_zero_frame: first frame of the shared huge zero page.
        user_only: look at the lower half of the top page only (the upper half is the kernel's).

    Raises:
        WalkError: when an entry of a user tree points back at a page of a higher level.
    """
    frame = np.asarray(roots, np.int64)
    tree = np.arange(len(frame), dtype=np.int32)
    va = np.zeros(len(frame), np.uint64)
    parent = np.full(len(frame), -1, np.int32)
    refs = np.ones(len(frame), np.int32)
    first_row = 0
    done: list[Tables] = []
    zero = {1: zero_frame, 2: huge_zero_frame}
    for level in range(levels, 0, -1):
        leaves = np.zeros((len(frame), nodes.columns), np.int32)
        below: list[_Below] = []
        for start in range(0, len(frame), _CHUNK):
            entries = read_pages(frame[start : start + _CHUNK])
            if level == levels and user_only:
                entries = entries[:, : ENTRIES // 2]
            here = slice(start, start + len(entries))
            if level <= LEAF_LEVELS:
                leaves[here] = _count_leaves(entries, level, nodes, zero.get(level, -1))
            if level > 1:
                below.append(_pointers(entries, level, start))
        done.append(Tables(tree, np.full(len(frame), level, np.int8), frame, va, parent, refs, leaves))
        if level > 1:
            next_first = first_row + len(frame)
            frame, tree, va, parent, refs = _children(below, level, done[-1], first_row)
            first_row = next_first
    found = Tables(
        *(
            np.concatenate([getattr(part, name) for part in done])
            for name in ("root", "level", "frame", "va", "parent", "refs", "leaves")
        )
    )
    _check_levels(found)
    return found


@dataclass(frozen=True)
class _Below:
    """Entries that point at tables: row of their page, their index in it, and the frame they name."""

    row: NDArray[np.int64]
    index: NDArray[np.int64]
    frame: NDArray[np.int64]


def _pointers(entries: NDArray[np.uint64], level: int, first_row: int) -> _Below:
    """The entries of pages of `level` that point at tables of the next lower level."""
    pointing = (entries & _PRESENT) != 0
    if level <= LEAF_LEVELS:
        pointing &= (entries & _HUGE) == 0
    row, index = np.nonzero(pointing)
    return _Below(row + first_row, index, frames_of(entries[row, index]))


def _children(
    below: list[_Below], level: int, above: Tables, first_row: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.uint64], NDArray[np.int32], NDArray[np.int32]]:
    """Rows of the next lower level: (frame, root, va, parent, refs), one per page and tree."""
    row = np.concatenate([each.row for each in below]) if below else np.empty(0, np.int64)
    index = np.concatenate([each.index for each in below]) if below else np.empty(0, np.int64)
    frame = np.concatenate([each.frame for each in below]) if below else np.empty(0, np.int64)
    tree = above.root[row]
    # A tree's entries come in order of address, so the first of equal pairs has the lowest address.
    order = np.lexsort((frame, tree))
    same = (np.diff(frame[order]) == 0) & (np.diff(tree[order]) == 0)
    begins = np.flatnonzero(np.concatenate(([True], ~same))) if len(order) else np.empty(0, np.int64)
    refs = np.diff(np.concatenate((begins, [len(order)]))).astype(np.int32)
    first = order[begins]
    # Back into the order of rows: neighbours in address space stay neighbours in the result.
    by_place = np.argsort(first, kind="stable")
    first, refs = first[by_place], refs[by_place]
    span = np.uint64(PAGE_SHIFT + 9 * (level - 1))
    va = above.va[row[first]] + (index[first].astype(np.uint64) << span)
    return frame[first], tree[first], va, (row[first] + first_row).astype(np.int32), refs


def _count_leaves(entries: NDArray[np.uint64], level: int, nodes: NodeMap, zero_frame: int) -> NDArray[np.int32]:
    """Leaf entries of each page by column of the data page: int32 [pages, columns]."""
    # Level 1: present, or made inaccessible (PROT_NONE, NUMA hints). Above: the huge bit, which no
    # swap or migration entry has, decides; pmd_present() holds even while a split clears the others.
    leaf = (entries & (_ACCESSIBLE if level == 1 else _HUGE)) != 0
    count = np.count_nonzero(leaf)
    if count * 4 < leaf.size:  # few: only the pages that have any
        some = np.flatnonzero(leaf.any(axis=1))
        counts = np.zeros((len(entries), nodes.columns), np.int32)
        if len(some) < len(entries):
            counts[some] = _count_leaves(entries[some], level, nodes, zero_frame) if len(some) else 0
            return counts
    frame = frames_of(entries)
    if level > 1:  # the low bits of a huge frame are attributes
        frame &= ~np.int64((1 << 9 * (level - 1)) - 1)
    return nodes.count(frame, None if count == leaf.size else leaf, zero_frame)


def _check_levels(found: Tables) -> None:
    """A page that is a table of two levels of one tree is a loop, or memory that changed meanwhile."""
    order = np.lexsort((found.frame, found.root))
    root, frame, level = found.root[order], found.frame[order], found.level[order]
    twice = (np.diff(root) == 0) & (np.diff(frame) == 0)
    if twice.any():
        at = int(np.flatnonzero(twice)[0])
        raise WalkError(
            f"frame {int(frame[at]):#x} is a table of level {int(level[at])} and {int(level[at + 1])} of one tree",
            remedy="take snapshots of a paused machine",
        )
