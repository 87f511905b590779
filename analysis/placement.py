"""Snapshots of page tables as result files hold them: pages per level × node, leaf entries, shares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numalab.kinds import Kind

LEVEL_NAMES = ("PTE", "PMD", "PUD", "P4D", "PGD")
LEAF_SIZES = ("4K", "2M", "1G")
#: Bytes of a page-table page.
PAGE_SIZE = 4096
#: Leaf entries by what they map: a node's memory, a shared zero page, devices.
_LEAF_KEYS = ("leaf", "leaf_zero", "leaf_other")
_POINT = ("kernel", "topology", "workload", "interference", "policy")


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the page tables of one cell's program were at one mark; its processes are summed.

    Arrays have one column per node in the order of `nodes`.

    Attributes:
        cell: the cell's part of its result file (`result["cell"]`).
        mark: when: "init", "ready", "done".
        kind: counted in emulation or measured on hardware; None when the file does not say.
        processes: "comm (pid)" of each.
        nodes: node numbers, ascending.
        cpu_nodes: those that have CPUs, and so can see anything.
        levels: 4 or 5.
        pages: page-table pages [level, node], PTE level first; replicas included, each page once.
        leaf: leaf entries [size (4K, 2M, 1G), node of the table page, node of the data page], replicas included.
        remote: by node, the share of leaf entries that a CPU there finds on a table page of another node, in the
            tree it walks; NaN where it finds none and for nodes without CPUs.
        trees: number of trees: 1, or more with replicas.
        replicas: pages of replicas alone [level, node].
        unfilled: by node, the share of the primary's leaf entries that are not yet in the tree a CPU there walks.
        before: as `remote`, if every CPU walked the primary: without replicas.
        mode: "lazy" or "eager" when CPUs may walk replicas, else "".
        mapped: bytes of memory that the program maps; None when the file does not say.
    """

    cell: dict[str, Any]
    mark: str
    kind: Kind | None
    processes: tuple[str, ...]
    nodes: tuple[int, ...]
    cpu_nodes: tuple[int, ...]
    levels: int
    pages: NDArray[np.int64]
    leaf: NDArray[np.int64]
    remote: NDArray[np.float64]
    trees: int
    replicas: NDArray[np.int64]
    unfilled: NDArray[np.float64]
    before: NDArray[np.float64]
    mode: str = ""
    mapped: int | None = None

    @property
    def overhead(self) -> float:
        """Memory that is mapped and all page tables, over the same without replicas; NaN when that is not known."""
        if self.mapped is None:
            return float("nan")
        total = self.mapped + PAGE_SIZE * int(self.pages.sum())
        return total / (total - PAGE_SIZE * int(self.replicas.sum()))

    @property
    def level_names(self) -> tuple[str, ...]:
        """Names of the rows of `pages`; a 4-level machine has no P4D."""
        return LEVEL_NAMES if self.levels == 5 else ("PTE", "PMD", "PUD", "PGD")

    @property
    def apart(self) -> float:
        """Share of leaf entries whose table page and data page are on different nodes; NaN without entries."""
        by_node = self.leaf.sum(axis=0)
        total = int(by_node.sum())
        return 1 - float(np.trace(by_node)) / total if total else float("nan")


def placements(result: dict[str, Any], machine_kind: Kind | None) -> list[Placement]:
    """Return the snapshots of one result.

    A snapshot that could not be made (no summary, no process in it) gives none rather than zeros.
    `machine_kind` stands in where a summary does not name the kind of its numbers.
    """
    found = []
    for entry in result["placement"]:
        summary = entry.get("summary") or {}
        if summary.get("processes"):
            found.append(_read(result["cell"], str(entry.get("mark", "")), machine_kind, summary))
    return found


def _read(cell: dict[str, Any], mark: str, machine_kind: Kind | None, summary: dict[str, Any]) -> Placement:
    processes = summary["processes"]
    nodes = tuple(int(node) for node in summary["nodes"])
    cpu_nodes = tuple(int(node) for node in summary.get("cpu_nodes", nodes))
    leaves = np.stack([[each["leaf"][size] for size in LEAF_SIZES] for each in processes]).astype(np.int64)
    said = summary.get("number_kind")
    pages = np.asarray(summary["table_pages"], dtype=np.int64)
    told = [each["replication"] for each in processes if each.get("replication")]
    seen = _seen(processes, nodes, cpu_nodes)
    return Placement(
        cell=cell,
        mark=mark,
        kind=Kind(said) if said in set(Kind) else machine_kind,
        processes=tuple(f"{each.get('comm', '?')} ({each.get('pid', '?')})" for each in processes),
        nodes=nodes,
        cpu_nodes=cpu_nodes,
        levels=int(summary["levels"]),
        pages=pages,
        leaf=leaves.sum(axis=0),
        remote=seen["remote"],
        trees=max(len(each["roots"]) for each in processes),
        replicas=sum((np.asarray(each["replica_pages"], dtype=np.int64) for each in told), np.zeros_like(pages)),
        unfilled=seen["unfilled"],
        before=seen["before"],
        mode=next((str(each["mode"]) for each in told if each["active"]), ""),
        mapped=sum(int(each["mapped_bytes"]) for each in processes) if "mapped_bytes" in processes[0] else None,
    )


def _seen(
    processes: list[dict[str, Any]], nodes: tuple[int, ...], cpu_nodes: tuple[int, ...]
) -> dict[str, NDArray[np.float64]]:
    """Shares of all processes together, by node: each process weighs as many leaf entries as it has there."""
    names = ("remote", "unfilled", "before")
    sums = {name: np.zeros((2, len(nodes))) for name in names}  # of entries, and of those that count
    for each in processes:
        for column, node in enumerate(nodes):
            if node not in cpu_nodes:
                continue
            for name, (entries, share) in zip(names, _of_process(each, str(node)), strict=True):
                if share is not None:
                    sums[name][:, column] += entries, entries * float(share)
    return {
        name: np.divide(counted, entries, out=np.full(len(nodes), np.nan), where=entries > 0)
        for name, (entries, counted) in sums.items()
    }


def _of_process(each: dict[str, Any], node: str) -> tuple[tuple[float, float | None], ...]:
    """Entries and share of them: remote among those found, unfilled and remote among those of the primary."""
    if "seen" in each:
        seen = each["seen"][node]
        every = sum(seen.values())
        found = every - seen["unfilled"]
        return (
            (found, each["remote_share"][node]),
            (every, each["unfilled_share"][node]),
            (every, each["remote_share_of_primary"][node]),
        )
    # Snapshots of schema 1 were taken where nothing was replicated: every tree has all entries.
    entries = [np.sum(each[key][size]) for key in _LEAF_KEYS if key in each for size in LEAF_SIZES]
    weight, share = float(sum(entries)) / len(each["roots"]), each["remote_share"].get(node)
    return (weight, share), (weight, None if share is None else 0.0), (weight, share)


@dataclass(frozen=True, eq=False)
class Group:
    """The snapshots of all repeats of one point at one mark.

    Attributes:
        point: kernel, topology, workload, interference, policy.
        members: one per repeat, all of one shape.
    """

    point: dict[str, str]
    mark: str
    members: tuple[Placement, ...]

    @property
    def n(self) -> int:
        """Number of snapshots."""
        return len(self.members)

    @property
    def first(self) -> Placement:
        """One of them, for what all have in common."""
        return self.members[0]

    @property
    def pages(self) -> NDArray[np.int64]:
        """Page-table pages, [snapshot, level, node]."""
        return np.stack([member.pages for member in self.members])

    @property
    def remote(self) -> NDArray[np.float64]:
        """Remote share of leaf entries as seen from each node, [snapshot, node]."""
        return np.stack([member.remote for member in self.members])

    @property
    def before(self) -> NDArray[np.float64]:
        """As `remote`, of the primary alone."""
        return np.stack([member.before for member in self.members])

    @property
    def unfilled(self) -> NDArray[np.float64]:
        """Share of leaf entries that are not yet in the tree that each node's CPUs walk, [snapshot, node]."""
        return np.stack([member.unfilled for member in self.members])

    @property
    def replicas(self) -> NDArray[np.int64]:
        """Page-table pages of replicas, [snapshot, level, node]."""
        return np.stack([member.replicas for member in self.members])

    @property
    def replicated(self) -> bool:
        """Whether any of its snapshots has replicas."""
        return any(member.mode or member.replicas.any() for member in self.members)


def grouped(found: Iterable[Placement]) -> list[Group]:
    """Return the snapshots grouped by point and mark, in the order in which they first appear."""
    members: dict[tuple[str, ...], list[Placement]] = {}
    for each in found:
        shape = (str(each.levels), str(each.nodes), str(each.kind))
        key = (*(str(each.cell[axis]) for axis in _POINT), each.mark, *shape)
        members.setdefault(key, []).append(each)
    return [
        Group(dict(zip(_POINT, key, strict=False)), key[len(_POINT)], tuple(group)) for key, group in members.items()
    ]
