"""Where a walk through page tables ends, for many addresses at once.

`pagetable.walk` lists all tables of a tree; this looks single addresses up, as the processor does: through the tables
of processes, and through those KVM makes for its guests (second-level tables: NPT, EPT). Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from numalab.measure.nodes import NodeMap
from numalab.measure.pagetable import ENTRIES, LEAF_LEVELS, PAGE_SHIFT, PageReader, Tables, frames_of

#: Table pages looked at in one go.
_CHUNK = 1024
_FRAME = np.uint64(0x000F_FFFF_FFFF_F000)
_PRESENT, _HUGE, _PROTNONE = np.uint64(1 << 0), np.uint64(1 << 7), np.uint64(1 << 8)
_MMU_PRESENT, _NONE = np.uint64(1 << 11), np.uint64(0)

Frames = NDArray[np.int64]
Entries = NDArray[np.uint64]


def _any(entries: Entries, bits: np.uint64) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (entries & bits) != 0
    return found


class LinuxFormat:
    """Entries of Linux's own tables, those of processes: present as Linux sees it."""

    def present(self, entries: Entries, level: int) -> NDArray[np.bool_]:
        """Whether entries of tables of `level` map memory or lead to a table."""
        return _any(entries, _PRESENT | (_PROTNONE if level == 1 else _HUGE))

    def huge(self, entries: Entries, level: int) -> NDArray[np.bool_]:
        """Whether present entries of `level` (2 and up) map memory themselves."""
        return _any(entries, _HUGE if level <= LEAF_LEVELS else _NONE)

    def frames(self, entries: Entries) -> Frames:
        """Frame numbers in present entries."""
        return frames_of(entries)


class KvmFormat(LinuxFormat):
    """Entries of the tables KVM makes (SPTEs), for AMD and Intel alike.

    Bit 11 says that KVM holds the entry for present (SPTE_MMU_PRESENT_MASK, arch/x86/kvm/mmu/spte.h), also where
    hardware would fault to have the access noted; entries for emulated devices and removed ones do not have it.
    """

    def present(self, entries: Entries, level: int) -> NDArray[np.bool_]:
        """See `LinuxFormat`."""
        return _any(entries, _MMU_PRESENT)

    def frames(self, entries: Entries) -> Frames:
        """See `LinuxFormat`."""
        return ((entries & _FRAME) >> np.uint64(PAGE_SHIFT)).view(np.int64)


LINUX, KVM = LinuxFormat(), KvmFormat()


@dataclass(frozen=True)
class Ends:
    """Where walks end, one row per address.

    Attributes:
        level: of the last entry that was read: 1 to 3 for what is mapped, any for what is not.
        table: frame of the table page that holds it.
        present: whether it maps the address.
        frame: what the address is mapped to: the frame of the very address, also inside a huge page; -1 when nothing.
    """

    level: NDArray[np.int8]
    table: Frames
    present: NDArray[np.bool_]
    frame: Frames

    def __len__(self) -> int:
        return len(self.table)


def lookup(root: int, levels: int, pages: Frames, read_pages: PageReader, form: LinuxFormat) -> Ends:
    """Walk the tree at frame `root` for page numbers (addresses >> 12).

    Args:
        root: frame of the top table.
        levels: of the tree.
        pages: page numbers, in any order.
        read_pages: reads table pages.
        form: of entries.

    Raises:
        GuestMemoryError: a table is not in memory.
    """
    count = len(pages)
    level_of = np.full(count, levels, np.int8)
    table_of = np.full(count, root, np.int64)
    present = np.zeros(count, np.bool_)
    frame = np.full(count, -1, np.int64)
    going = np.arange(count)
    for level in range(levels, 0, -1):
        if not len(going):
            break
        span = 9 * (level - 1)
        entry = _entries(table_of[going], pages[going] >> span & ENTRIES - 1, read_pages)
        level_of[going] = level
        there = form.present(entry, level)
        going, entry = going[there], entry[there]
        leaf = form.huge(entry, level) if level > 1 else np.ones(len(going), np.bool_)
        ends = going[leaf]
        inside = np.int64((1 << span) - 1)
        present[ends] = True
        frame[ends] = form.frames(entry[leaf]) & ~inside | pages[ends] & inside
        going = going[~leaf]
        table_of[going] = form.frames(entry[~leaf])
    return Ends(level_of, table_of, present, frame)


def _entries(table: Frames, index: Frames, read_pages: PageReader) -> Entries:
    """One entry of each table; a table is read once for all that want of it."""
    found = np.empty(len(table), np.uint64)
    tables, which = np.unique(table, return_inverse=True)
    if len(tables) <= _CHUNK:
        return read_pages(tables)[which, index]
    order = np.argsort(which, kind="stable")
    bounds = np.searchsorted(which[order], np.arange(0, len(tables) + _CHUNK, _CHUNK))
    for number, (start, end) in enumerate(pairwise(bounds.tolist())):
        rows = order[start:end]
        if len(rows):
            first = number * _CHUNK
            found[rows] = read_pages(tables[first : first + _CHUNK])[which[rows] - first, index[rows]]
    return found


@dataclass(frozen=True)
class Leaves:
    """Entries that map memory, one row each.

    Attributes:
        row: of the table that holds it, in the `Tables` they come from.
        level: 1 (4K), 2 (2M) or 3 (1G).
        page: page number of the first address it maps.
        frame: first frame it maps.
    """

    row: NDArray[np.int64]
    level: NDArray[np.int8]
    page: Frames
    frame: Frames

    def __len__(self) -> int:
        return len(self.row)


def leaves(tables: Tables, read_pages: PageReader, form: LinuxFormat = LINUX, *, chunk: int = _CHUNK) -> Leaves:
    """Every entry that maps memory in `tables`; of the user half alone in a top table of a process (`LINUX`)."""
    rows, levels, pages, frames = [], [], [], []
    top = int(tables.level.max()) if len(tables) else 0
    for level in range(1, LEAF_LEVELS + 1):
        mine = np.flatnonzero((tables.level == level) & (tables.root >= 0))
        span = 9 * (level - 1)
        for start in range(0, len(mine), chunk):
            part = mine[start : start + chunk]
            entries = read_pages(tables.frame[part])
            if level == top and form is LINUX:
                entries = entries[:, : ENTRIES // 2]
            there = form.present(entries, level)
            if level > 1:
                there &= form.huge(entries, level)
            at, index = np.nonzero(there)
            first = (tables.va[part] >> np.uint64(PAGE_SHIFT)).astype(np.int64)
            rows.append(part[at])
            levels.append(np.full(len(at), level, np.int8))
            pages.append(first[at] + (index << span))
            frames.append(form.frames(entries[at, index]) & ~np.int64((1 << span) - 1))
    return Leaves(
        np.concatenate([np.empty(0, np.int64), *rows]),
        np.concatenate([np.empty(0, np.int8), *levels]),
        np.concatenate([np.empty(0, np.int64), *pages]),
        np.concatenate([np.empty(0, np.int64), *frames]),
    )


def tree(root: int, levels: int, read_pages: PageReader, form: LinuxFormat, nodes: NodeMap) -> Tables:
    """All tables of one tree whose entries are of `form` and in which no table has two parents.

    Args:
        root: frame of the top table.
        levels: of the tree.
        read_pages: reads table pages.
        form: of entries.
        nodes: gives the column in which a mapped frame is counted.
    """
    frame, base = np.array([root], np.int64), np.zeros(1, np.int64)
    parent = np.full(1, -1, np.int32)
    done: list[Tables] = []
    first_row = 0
    for level in range(levels, 0, -1):
        span = 9 * (level - 1)
        count = len(frame)
        counts = np.zeros((count, nodes.columns), np.int32)
        below: list[tuple[Frames, Frames, NDArray[np.int32]]] = []
        for start in range(0, count, _CHUNK):
            entries = read_pages(frame[start : start + _CHUNK])
            there = form.present(entries, level)
            leaf = there & form.huge(entries, level) if level > 1 else there
            frames = form.frames(entries)
            if level <= LEAF_LEVELS:
                counts[start : start + len(entries)] = nodes.count(np.where(leaf, frames, 0), leaf)
            at, index = np.nonzero(there & ~leaf)
            rows = at + start
            below.append((frames[at, index], base[rows] + (index << span), (rows + first_row).astype(np.int32)))
        done.append(_rows(level, frame, base, parent, counts))
        first_row += count
        frame, base, parent = (np.concatenate(column) for column in zip(*below, strict=True)) if below else _nothing()
    return Tables(*(np.concatenate([getattr(part, name) for part in done]) for name in _COLUMNS))


_COLUMNS = ("root", "level", "frame", "va", "parent", "refs", "leaves")


def _nothing() -> tuple[Frames, Frames, NDArray[np.int32]]:
    return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32)


def _rows(level: int, frame: Frames, base: Frames, parent: NDArray[np.int32], counts: NDArray[np.int32]) -> Tables:
    count = len(frame)
    return Tables(
        np.zeros(count, np.int32),
        np.full(count, level, np.int8),
        frame,
        base.astype(np.uint64) << np.uint64(PAGE_SHIFT),
        parent,
        np.ones(count, np.int32),
        counts,
    )
