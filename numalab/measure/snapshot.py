"""A snapshot: the page tables of some processes of a machine at one instant.

`take` makes it from a machine, `archive` keeps it; `process` says what there is to know of one process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numalab.kinds import Kind
from numalab.measure.process import ProcessPlacement, Replication, Root, Seen

__all__ = ["SCHEMA", "ProcessPlacement", "Replication", "Root", "Seen", "Snapshot"]

#: Version of the JSON form and of the archive; readers refuse newer ones. 2: replicas.
SCHEMA = 2


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
