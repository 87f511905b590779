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
#: Leaf entries by what they map: a node's memory, a shared zero page, devices.
_LEAF_KEYS = ("leaf", "leaf_zero", "leaf_other")
_POINT = ("kernel", "topology", "workload", "policy")


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
            tree it walks; NaN where nothing is mapped and for nodes without CPUs.
        trees: number of trees: 1, or more with replicas.
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
    return Placement(
        cell=cell,
        mark=mark,
        kind=Kind(said) if said in set(Kind) else machine_kind,
        processes=tuple(f"{each.get('comm', '?')} ({each.get('pid', '?')})" for each in processes),
        nodes=nodes,
        cpu_nodes=cpu_nodes,
        levels=int(summary["levels"]),
        pages=np.asarray(summary["table_pages"], dtype=np.int64),
        leaf=leaves.sum(axis=0),
        remote=_remote(processes, nodes, cpu_nodes),
        trees=max(len(each["roots"]) for each in processes),
    )


def _remote(processes: list[dict[str, Any]], nodes: tuple[int, ...], cpu_nodes: tuple[int, ...]) -> NDArray[np.float64]:
    """The remote share of all processes together: each weighs as many leaf entries as one of its trees has."""
    seen, remote = np.zeros(len(nodes)), np.zeros(len(nodes))
    for each in processes:
        entries = [np.sum(each[key][size]) for key in _LEAF_KEYS if key in each for size in LEAF_SIZES]
        weight = float(sum(entries)) / len(each["roots"])
        for column, node in enumerate(nodes):
            share = each["remote_share"].get(str(node))
            if share is not None and node in cpu_nodes:
                seen[column] += weight
                remote[column] += weight * float(share)
    known = seen > 0
    remote[known] /= seen[known]
    remote[~known] = np.nan
    return remote


@dataclass(frozen=True, eq=False)
class Group:
    """The snapshots of all repeats of one point at one mark.

    Attributes:
        point: kernel, topology, workload, policy.
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
