"""Where both levels of a guest's page tables lie: the metric of figure 2 of the vMitosis paper.

A walk of a guest process ends in two leaf tables: the guest's own table page that holds the entry of the address, and
the page of the second level (NPT, EPT) that holds the entry of the guest frame it maps. Each can be on the node of the
vCPU that walks, or elsewhere: local-local, local-remote, remote-local, remote-remote (guest table first).

What is counted is a *translation*: what one TLB entry can hold, a piece of memory as large as the smaller of the two
leaf entries. A guest page of 4K is one, whatever lies behind it; one of 2M on 4K pages of the host is 512. A guest leaf
entry whose second level is not there yet (no fault has come) is *unfilled*, one translation for each missing entry at
the level where the walk stops. Entries that map no memory of the guest (devices) are left out. The node of a guest's
table page is that of the host frame behind it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numalab.kinds import Kind
from numalab.measure.kvm import Root
from numalab.measure.pagetable import LEAF_SIZES, Tables

#: Version of the JSON form.
SCHEMA = 1


#: The paper's codes, guest table first, and the fields of `Seen` they stand for.
CODES = {"LL": "local_local", "LR": "local_remote", "RL": "remote_local", "RR": "remote_remote"}


class Seen(NamedTuple):
    """Translations of a process as the vCPUs of one node find them: guest table first, then second level."""

    local_local: int
    local_remote: int
    remote_local: int
    remote_remote: int
    unfilled: int

    @property
    def found(self) -> int:
        """All but the unfilled."""
        return sum(self) - self.unfilled

    def share(self, name: str) -> float | None:
        """Share of the field `name` of what is found; None when nothing is."""
        return getattr(self, name) / self.found if self.found else None


@dataclass(frozen=True)
class View:
    """What some vCPUs see of a process: they run on one node and walk the same two trees.

    Attributes:
        node: of the host, on which they run.
        vcpus: their indices.
        guest_node: the node the guest takes theirs for.
        guest_root: index of the guest's tree they walk, 0 for the primary.
        nid: node the second-level tree is for; None for any.
        rooted: False while they have no second-level tree.
        pairs: int64 [node of the guest's table, node of the second level's], last column the unfilled.
    """

    node: int
    vcpus: tuple[int, ...]
    guest_node: int
    guest_root: int
    nid: int | None
    rooted: bool
    pairs: NDArray[np.int64]

    def seen(self, column: int) -> Seen:
        """As seen from the node of this column."""
        here, filled = self.pairs[column, :-1], self.pairs[:, :-1]
        both = int(here[column])
        own, second = int(here.sum()) - both, int(filled[:, column].sum()) - both
        return Seen(both, own, second, int(filled.sum()) - both - own - second, int(self.pairs[:, -1].sum()))


@dataclass(frozen=True)
class Process2D:
    """A process of a guest, through both levels.

    Attributes:
        pid, comm: in the guest.
        nodes: of the host, ascending: the order of rows and columns.
        views: by node.
    """

    pid: int
    comm: str
    nodes: tuple[int, ...]
    views: tuple[View, ...]

    def seen_from(self, node: int) -> Seen | None:
        """As the vCPUs on a node find it, added up over the views of them; None when none runs there."""
        column = self.nodes.index(node)
        found = [view.seen(column) for view in self.views if view.node == node]
        return Seen(*(sum(values) for values in zip(*found, strict=True))) if found else None

    def overall(self) -> Seen:
        """As all vCPUs find it, each on its own node, added up over vCPUs."""
        total = np.zeros(5, np.int64)
        for view in self.views:
            total += np.array(view.seen(self.nodes.index(view.node))) * len(view.vcpus)
        return Seen(*(int(value) for value in total))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "pid": self.pid,
            "comm": self.comm,
            "seen": {str(node): seen._asdict() for node in self.nodes if (seen := self.seen_from(node))},
            "views": [
                {
                    "node": view.node,
                    "vcpus": list(view.vcpus),
                    "guest_node": view.guest_node,
                    "guest_root": view.guest_root,
                    "nid": view.nid,
                    "rooted": view.rooted,
                    "pairs": view.pairs.tolist(),
                }
                for view in self.views
            ],
        }


@dataclass(frozen=True)
class SecondLevelTree:
    """A second-level tree.

    Attributes:
        root: what KVM says of it.
        table_pages: int64 [level, node], row 0 the lowest.
        leaf: int64 [size (4K, 2M, 1G), node of the table page, node of the mapped page and then: none].
    """

    root: Root
    table_pages: NDArray[np.int64]
    leaf: NDArray[np.int64]

    @classmethod
    def of(cls, root: Root, tables: Tables, column: NDArray[np.uint16], nodes: int) -> SecondLevelTree:
        """Count `tables`, whose pages are on the nodes of `column`."""
        pages = np.zeros((root.levels, nodes + 1), np.int64)
        place = np.minimum(column, nodes)
        np.add.at(pages, (tables.level - 1, place), 1)
        leaf = np.zeros((len(LEAF_SIZES), nodes + 1, nodes + 1), np.int64)
        low = tables.level <= len(LEAF_SIZES)
        counts = tables.leaves[low]
        merged = np.concatenate([counts[:, :nodes], counts[:, nodes:].sum(axis=1, keepdims=True)], axis=1)
        np.add.at(leaf, (tables.level[low] - 1, place[low]), merged)
        return cls(root, pages[:, :nodes], leaf[:, :nodes])

    @property
    def leaves(self) -> dict[str, int]:
        """Leaf entries by size."""
        return {size: int(self.leaf[place].sum()) for place, size in enumerate(LEAF_SIZES)}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "nid": self.root.nid,
            "frame": self.root.frame,
            "levels": self.root.levels,
            "invalid": self.root.invalid,
            "guest_mode": self.root.guest_mode,
            "smm": self.root.smm,
            "users": self.root.users,
            "table_pages": self.table_pages.tolist(),
            "leaf": {size: self.leaf[place].tolist() for place, size in enumerate(LEAF_SIZES)},
        }


@dataclass(frozen=True)
class Snapshot2D:
    """Both levels of a guest at one instant.

    Attributes:
        processes: in order of pid.
        nodes: of the host, ascending.
        vcpus: (index, node it runs on, node the guest takes that for) of each.
        trees: of the second level; those about to go are marked in `root.invalid`.
        contradictions: translations of the second level that lead elsewhere than the VMM's own page tables: must be 0.
        label: the caller's word for this instant.
        kernels: release of the host's kernel and of the guest's.
        kind: what kind of numbers these are.
        taken: ISO 8601 time.
        seconds: host time it took.
    """

    processes: tuple[Process2D, ...]
    nodes: tuple[int, ...]
    vcpus: tuple[tuple[int, int, int], ...]
    trees: tuple[SecondLevelTree, ...]
    contradictions: int
    label: str = ""
    kernels: tuple[str, str] = ("", "")
    kind: Kind = Kind.COUNTED
    taken: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    def process(self, pid: int) -> Process2D:
        """The process with this pid.

        Raises:
            KeyError: when it is not in the snapshot.
        """
        for each in self.processes:
            if each.pid == pid:
                return each
        raise KeyError(pid)

    def second_level_pages(self) -> NDArray[np.int64]:
        """Table pages of the second level [level, node], all trees together."""
        levels = max((tree.root.levels for tree in self.trees), default=0)
        total = np.zeros((levels, len(self.nodes)), np.int64)
        for tree in self.trees:
            total[: tree.root.levels] += tree.table_pages
        return total

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "schema": SCHEMA,
            "kind": "vmitosis-placement",
            "number_kind": self.kind.value,
            "label": self.label,
            "taken": self.taken,
            "kernels": {"host": self.kernels[0], "guest": self.kernels[1]},
            "nodes": list(self.nodes),
            "vcpus": [{"vcpu": vcpu, "node": node, "guest_node": guest} for vcpu, node, guest in self.vcpus],
            "trees": [tree.to_json() for tree in self.trees],
            "contradictions": self.contradictions,
            "processes": [process.to_json() for process in self.processes],
            "seconds": dict(self.seconds),
        }


def render(snapshot: Snapshot2D) -> str:
    """The snapshot as text for a terminal, one line per process and node, as the paper's tool prints them."""
    lines = []
    for process in snapshot.processes:
        lines.append(f"{process.comm}  pid {process.pid}: guest table, second-level table")
        for node in process.nodes:
            seen = process.seen_from(node)
            if seen is None:
                lines.append(f"  node {node}: no vCPU runs there")
                continue
            words = [f"{code} {count:>9,} {_share(seen, name)}" for code, name, count in _codes(seen)]
            lines.append(f"  node {node}: {'  '.join(words)}  unfilled {seen.unfilled:,}")
    for tree in snapshot.trees:
        which = "any node" if tree.root.nid is None else f"node {tree.root.nid}"
        pages = " ".join(f"{int(count)}" for count in tree.table_pages.sum(axis=0))
        lines.append(f"second level for {which}{' (going)' if tree.root.invalid else ''}: table pages by node: {pages}")
    return "\n".join(lines)


def _codes(seen: Seen) -> Iterable[tuple[str, str, int]]:
    return ((code, name, getattr(seen, name)) for code, name in CODES.items())


def _share(seen: Seen, name: str) -> str:
    share = seen.share(name)
    return "     –" if share is None else f"{100 * share:5.1f}%"
