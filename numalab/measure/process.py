"""Where the page tables of one process lie, and what each node sees of them.

Plain data with numpy arrays. "Table page" is a page-table page of any level; "leaf entry" is an entry that maps
memory (4K, 2M, 1G). With replicas, an entry counts by the node of the table page in which a CPU finds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numalab.measure.pagetable import LEAF_LEVELS, LEAF_SIZES, PAGE_SHIFT, UNLINKED, Tables


@dataclass(frozen=True)
class Root:
    """Top page of one tree of a process.

    Attributes:
        nodes: the nodes whose CPUs walk this tree; none for a replica that is not in use.
        frame: frame number of the top page (with page-table isolation: of its kernel half).
        domain: number of the domain (the CPUs that share it) whose replica it is; None for the primary.
        home: node on which the tables of that domain belong; None for the primary.
    """

    nodes: tuple[int, ...]
    frame: int
    domain: int | None = None
    home: int | None = None


@dataclass(frozen=True)
class Replication:
    """What the kernel was told about the replicas of a process.

    Attributes:
        mode: "off", "lazy" or "eager".
        active: CPUs may walk replicas now.
        domains: numbers of the domains that may have one; a domain's number is that of its node.
    """

    mode: str
    active: bool
    domains: tuple[int, ...]


class Seen(NamedTuple):
    """Leaf entries of a process as the CPUs of one node see them; the sum is what the primary has.

    Attributes:
        local: found on a table page of the node itself.
        remote: found on a table page of another node.
        unfilled: not yet in the replica that these CPUs walk: the next touch takes a fault and copies the entry.
    """

    local: int
    remote: int
    unfilled: int

    @property
    def entries(self) -> int:
        """All of them."""
        return sum(self)


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
        tables: one row per table page and tree that reaches it; `tables.root` indexes `roots`, and is UNLINKED for
            replicas that no tree reaches at the moment (they hold memory, nobody walks them); `tables.leaves` has
            two more columns, for the zero pages and for what lies in no node's memory (devices).
        table_node: int16, column of the node each table page lies on.
        deposited: int64 [nodes], PTE pages the kernel keeps ready for splitting huge pages: they are
            page tables in its accounts (VmPTE), but no entry points at them yet.
        pgtables_bytes: the kernel's own account of this address space at the same instant, in bytes;
            None when it was not read.
        replication: None when the kernel cannot replicate, or was never asked to for this process.
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
    replication: Replication | None = None

    @cached_property
    def _distinct(self) -> NDArray[np.bool_]:
        """Rows that count when each page counts once, also one that several replicas share."""
        rows = np.zeros(len(self.tables), np.bool_)
        rows[np.unique(self.tables.frame, return_index=True)[1]] = True
        return rows

    @cached_property
    def _of_primary(self) -> NDArray[np.bool_]:
        """Rows whose page is one of the primary's tables, whichever tree reaches it."""
        return np.isin(self.tables.frame, self.tables.frame[self.tables.root == 0])

    @cached_property
    def table_pages(self) -> NDArray[np.int64]:
        """Table pages [level, node], replicas included; row 0 is level 1 (PTE), the last row the top level."""
        return self._table_pages(self._distinct)

    @cached_property
    def replica_pages(self) -> NDArray[np.int64]:
        """As `table_pages`, replicas alone, reached or not."""
        return self._table_pages(self._distinct & ~self._of_primary)

    @cached_property
    def passthrough(self) -> tuple[int, int]:
        """Entries of replicas that lead to the primary: to a PTE table on the replica's own node, and to other tables.

        Those to a table of a higher level are for want of memory, wherever it lies.
        """
        parent = self.tables.parent
        entered = (parent >= 0) & ~self._of_primary[parent]
        rows = self._of_primary & (self.tables.root > 0) & entered
        homes = np.array([-1 if root.home is None else root.home for root in self.roots])
        nodes = np.array(self.nodes)[self.table_node[rows]]
        own = (nodes == homes[self.tables.root[rows]]) & (self.tables.level[rows] == 1)
        refs = self.tables.refs[rows]
        return int(refs[own].sum()), int(refs[~own].sum())

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

    @cached_property
    def mapped_bytes(self) -> int:
        """Memory of nodes that the primary maps, by its leaf entries; zero pages and devices are not among it."""
        by_size = self.leaf_of(0)[:, :, :-2].sum(axis=(1, 2))
        return sum(int(entries) << PAGE_SHIFT + 9 * level for level, entries in enumerate(by_size))

    @cached_property
    def _found(self) -> NDArray[np.int64]:
        """Leaf entries that a walk finds [root, node of the table page]."""
        counts = np.zeros((len(self.roots), len(self.nodes)), np.int64)
        rows = self.tables.root >= 0
        np.add.at(counts, (self.tables.root[rows], self.table_node[rows]), self.tables.leaves[rows].sum(axis=1))
        return counts

    def root_seen_from(self, node: int) -> int:
        """Index of the root that the CPUs of `node` walk; a node no root names walks the primary."""
        return next((index for index, root in enumerate(self.roots) if node in root.nodes), 0)

    def seen_from(self, node: int) -> Seen:
        """Leaf entries as a CPU of `node` finds them in the tree it walks, by the node of their table page.

        Entries below a table of the primary that a replica leads to count by the node of that table.
        """
        found = self._found[self.root_seen_from(node)]
        local, every = int(found[self.nodes.index(node)]), int(found.sum())
        return Seen(local, every - local, max(int(self._found[0].sum()) - every, 0))

    def local_share(self, node: int) -> float | None:
        """Share of the primary's leaf entries that a CPU of `node` finds on a table page of `node`.

        None when nothing is mapped.
        """
        seen = self.seen_from(node)
        return seen.local / seen.entries if seen.entries else None

    def unfilled_share(self, node: int) -> float | None:
        """Share of the primary's leaf entries that are not in the tree the CPUs of `node` walk; None as above."""
        seen = self.seen_from(node)
        return seen.unfilled / seen.entries if seen.entries else None

    def remote_share(self, node: int) -> float | None:
        """Share of the leaf entries a CPU of `node` finds that it fetches from another node.

        This is what figure 4 of the Mitosis paper plots. None when it finds none: nothing is mapped, or its
        replica is still empty.
        """
        seen = self.seen_from(node)
        return seen.remote / (seen.local + seen.remote) if seen.local + seen.remote else None

    def remote_share_of_primary(self, node: int) -> float | None:
        """As `remote_share`, if all CPUs walked the primary: what it would be without replicas."""
        total = int(self._found[0].sum())
        return 1.0 - float(self._found[0, self.nodes.index(node)]) / total if total else None

    def accounted_bytes(self) -> int:
        """What the kernel should have accounted (`mm_pgtables_bytes()`, VmPTE), from this walk, in bytes.

        PUD, PMD and PTE pages (P4D and PGD are not accounted): those of the primary once per entry that
        points at them, replicas once, and the deposited PTE pages.
        """
        rows = (self.tables.root == 0) & (self.tables.level <= LEAF_LEVELS)
        pages = int(self.tables.refs[rows].sum()) + int(self.replica_pages[:LEAF_LEVELS].sum())
        return 4096 * (pages + int(self.deposited.sum()))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the tables of numbers, without the single table pages."""
        return {
            "pid": self.pid,
            "comm": self.comm,
            "levels": self.levels,
            "roots": [
                {
                    "nodes": list(root.nodes),
                    "frame": root.frame,
                    "domain": root.domain,
                    "home": root.home,
                    "table_pages": self.table_pages_of(i).tolist(),
                }
                for i, root in enumerate(self.roots)
            ],
            "table_pages": self.table_pages.tolist(),
            "replication": self._replication_json(),
            "leaf": {size: self.leaf[i].tolist() for i, size in enumerate(LEAF_SIZES)},
            "leaf_zero": {size: self.leaf_zero[i].tolist() for i, size in enumerate(LEAF_SIZES)},
            "leaf_other": {size: self.leaf_other[i].tolist() for i, size in enumerate(LEAF_SIZES)},
            "deposited": self.deposited.tolist(),
            "seen": {str(node): self.seen_from(node)._asdict() for node in self.nodes},
            "local_share": {str(node): self.local_share(node) for node in self.nodes},
            "unfilled_share": {str(node): self.unfilled_share(node) for node in self.nodes},
            "remote_share": {str(node): self.remote_share(node) for node in self.nodes},
            "remote_share_of_primary": {str(node): self.remote_share_of_primary(node) for node in self.nodes},
            "mapped_bytes": self.mapped_bytes,
            "pgtables_bytes": self.pgtables_bytes,
            "accounted_bytes": self.accounted_bytes(),
        }

    def _replication_json(self) -> dict[str, Any] | None:
        if self.replication is None:
            return None
        local, remote = self.passthrough
        return {
            "mode": self.replication.mode,
            "active": self.replication.active,
            "domains": list(self.replication.domains),
            "primary_pages": self.table_pages_of(0).tolist(),
            "replica_pages": self.replica_pages.tolist(),
            "unlinked_pages": self.table_pages_of(UNLINKED).tolist(),
            "passthrough": {"local": local, "remote": remote},
        }
