"""A snapshot: where the page tables of processes lie, and what each node sees of them.

Everything here is plain data with numpy arrays; `take` makes it from a machine, `archive` keeps it.
"Table page" is a page-table page of any level; "leaf entry" is an entry that maps memory (4K, 2M, 1G).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numalab.kinds import Kind
from numalab.measure.pagetable import LEAF_LEVELS, LEAF_SIZES, Tables

#: Version of the JSON form and of the archive; readers refuse newer ones.
SCHEMA = 1


@dataclass(frozen=True)
class Root:
    """Top page of one tree of a process.

    Attributes:
        nodes: the nodes whose CPUs walk this tree.
        frame: frame number of the top page (with page-table isolation: of its kernel half).
    """

    nodes: tuple[int, ...]
    frame: int


@dataclass(frozen=True)
class ProcessPlacement:
    """Page tables of one process (one address space).

    Arrays have one column per node in the order of `nodes`.

    Attributes:
        pid: of the thread-group leader, in the initial namespace.
        comm: its name.
        nodes: numbers of the machine's nodes, ascending; memoryless ones are among them.
        levels: 4 or 5.
        roots: primary first, then replicas.
        tables: one row per table page; `tables.root` indexes `roots`, `tables.leaves` has two more
            columns, for the zero pages and for what lies in no node's memory (devices).
        table_node: int16, column of the node each table page lies on.
        deposited: int64 [nodes], PTE pages the kernel keeps ready for splitting huge pages: they are
            page tables in its accounts (VmPTE), but no entry points at them yet.
        pgtables_bytes: the kernel's own account of this address space at the same instant, in bytes;
            None when it was not read.
    """

    pid: int
    comm: str
    nodes: tuple[int, ...]
    levels: int
    roots: tuple[Root, ...]
    tables: Tables
    table_node: NDArray[np.int16]
    deposited: NDArray[np.int64]
    pgtables_bytes: int | None = None

    @cached_property
    def _distinct(self) -> NDArray[np.bool_]:
        """Rows that count when each page counts once, also one that several replicas share."""
        rows = np.zeros(len(self.tables), np.bool_)
        rows[np.unique(self.tables.frame, return_index=True)[1]] = True
        return rows

    @cached_property
    def table_pages(self) -> NDArray[np.int64]:
        """Table pages [level, node]; row 0 is level 1 (PTE), the last row the top level."""
        return self._table_pages(self._distinct)

    def table_pages_of(self, root: int) -> NDArray[np.int64]:
        """As `table_pages`, for the tree of one root."""
        return self._table_pages(self.tables.root == root)

    def _table_pages(self, rows: NDArray[np.bool_]) -> NDArray[np.int64]:
        counts = np.zeros((self.levels, len(self.nodes)), np.int64)
        np.add.at(counts, (self.tables.level[rows] - 1, self.table_node[rows]), 1)
        return counts

    @cached_property
    def leaf(self) -> NDArray[np.int64]:
        """Leaf entries [size (4K, 2M, 1G), node of the table page, node of the data page]."""
        return self._leaf(self._distinct)[:, :, :-2]

    @cached_property
    def leaf_zero(self) -> NDArray[np.int64]:
        """Leaf entries [size, node of the table page] that map a shared zero page."""
        return self._leaf(self._distinct)[:, :, -2]

    @cached_property
    def leaf_other(self) -> NDArray[np.int64]:
        """Leaf entries [size, node of the table page] that map what is no node's memory: devices."""
        return self._leaf(self._distinct)[:, :, -1]

    def leaf_of(self, root: int) -> NDArray[np.int64]:
        """Leaf entries [size, table node, data node and then zero, other] of the tree of one root."""
        return self._leaf(self.tables.root == root)

    def _leaf(self, rows: NDArray[np.bool_]) -> NDArray[np.int64]:
        counts = np.zeros((LEAF_LEVELS, len(self.nodes), len(self.nodes) + 2), np.int64)
        rows = rows & (self.tables.level <= LEAF_LEVELS)
        np.add.at(counts, (self.tables.level[rows] - 1, self.table_node[rows]), self.tables.leaves[rows])
        return counts

    def root_seen_from(self, node: int) -> int:
        """Index of the root that the CPUs of `node` walk; a node no root names walks the primary."""
        return next((index for index, root in enumerate(self.roots) if node in root.nodes), 0)

    def local_share(self, node: int) -> float | None:
        """Share of leaf entries whose table page lies on `node`, in the tree its CPUs walk.

        This is what figure 4 of the Mitosis paper plots. None when nothing is mapped.
        """
        seen = self.leaf_of(self.root_seen_from(node)).sum(axis=(0, 2))
        total = int(seen.sum())
        return float(seen[self.nodes.index(node)]) / total if total else None

    def remote_share(self, node: int) -> float | None:
        """Share of leaf entries a CPU of `node` must fetch from another node; None if nothing is mapped."""
        local = self.local_share(node)
        return None if local is None else 1.0 - local

    def accounted_bytes(self) -> int:
        """What the kernel should have accounted (`mm_pgtables_bytes()`, VmPTE), from this walk, in bytes.

        PUD, PMD and PTE pages (P4D and PGD are not accounted), once per entry that points at them,
        and the deposited PTE pages; those of the primary tree.
        """
        rows = (self.tables.root == 0) & (self.tables.level <= LEAF_LEVELS)
        return 4096 * (int(self.tables.refs[rows].sum()) + int(self.deposited.sum()))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the tables of numbers, without the single table pages."""
        return {
            "pid": self.pid,
            "comm": self.comm,
            "levels": self.levels,
            "roots": [
                {"nodes": list(root.nodes), "frame": root.frame, "table_pages": self.table_pages_of(i).tolist()}
                for i, root in enumerate(self.roots)
            ],
            "table_pages": self.table_pages.tolist(),
            "leaf": {size: self.leaf[i].tolist() for i, size in enumerate(LEAF_SIZES)},
            "leaf_zero": {size: self.leaf_zero[i].tolist() for i, size in enumerate(LEAF_SIZES)},
            "leaf_other": {size: self.leaf_other[i].tolist() for i, size in enumerate(LEAF_SIZES)},
            "deposited": self.deposited.tolist(),
            "local_share": {str(node): self.local_share(node) for node in self.nodes},
            "remote_share": {str(node): self.remote_share(node) for node in self.nodes},
            "pgtables_bytes": self.pgtables_bytes,
            "accounted_bytes": self.accounted_bytes(),
        }


@dataclass(frozen=True)
class Snapshot:
    """Page tables of some processes of a machine at one instant.

    Attributes:
        processes: in order of pid.
        nodes: numbers of the machine's nodes, ascending.
        cpu_nodes: those that have CPUs, and so can see anything.
        levels: 4 or 5.
        label: the caller's word for this instant, e.g. the mark "ready".
        kernel: release and build-id, as the kernel tells them.
        pti: page-table isolation is on: every top page has a user half beside it, on the same node,
            that is not counted.
        kind: what kind of numbers these are.
        taken: ISO 8601 time.
        seconds: host time the snapshot took, {"attach", "walk", "total"}: the laboratory's own cost,
            nothing about the system under study.
    """

    processes: tuple[ProcessPlacement, ...]
    nodes: tuple[int, ...]
    cpu_nodes: tuple[int, ...]
    levels: int
    label: str = ""
    kernel: dict[str, str] = field(default_factory=dict)
    pti: bool = False
    kind: Kind = Kind.COUNTED
    taken: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    def process(self, pid: int) -> ProcessPlacement:
        """The process with this pid.

        Raises:
            KeyError: when it is not in the snapshot.
        """
        for process in self.processes:
            if process.pid == pid:
                return process
        raise KeyError(pid)

    @cached_property
    def table_pages(self) -> NDArray[np.int64]:
        """Table pages [level, node] of all processes; one that several share (hugetlb) counts once."""
        counts = np.zeros((self.levels, len(self.nodes)), np.int64)
        if self.processes:
            frame = np.concatenate([process.tables.frame for process in self.processes])
            level = np.concatenate([process.tables.level for process in self.processes])
            node = np.concatenate([process.table_node for process in self.processes])
            rows = np.unique(frame, return_index=True)[1]
            np.add.at(counts, (level[rows] - 1, node[rows]), 1)
        return counts

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "schema": SCHEMA,
            "kind": "numalab-placement",
            "number_kind": self.kind.value,
            "label": self.label,
            "taken": self.taken,
            "kernel": dict(self.kernel),
            "levels": self.levels,
            "pti": self.pti,
            "nodes": list(self.nodes),
            "cpu_nodes": list(self.cpu_nodes),
            "table_pages": self.table_pages.tolist(),
            "processes": [process.to_json() for process in self.processes],
            "seconds": dict(self.seconds),
        }
