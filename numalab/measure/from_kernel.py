"""Where page tables live by the kernel's own account, in the form that snapshots have in result files.

On a real machine nobody can look from outside: there is `/proc/PID/numa_pgtables` (patch set `common`) or nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numalab.kinds import Kind
from numalab.machine.topology import Topology
from numalab.measure.numa_pgtables import DEPOSITED, OTHER, ZERO, NumaPgtables
from numalab.measure.pagetable import LEAF_SIZES

#: Bytes that leaves of `LEAF_SIZES` map.
_BYTES = (1 << 12, 1 << 21, 1 << 30)


@dataclass(frozen=True)
class Told:
    """What the kernel told about one process."""

    pid: int
    comm: str
    account: NumaPgtables


def summary(told: Sequence[Told], topology: Topology, *, label: str) -> dict[str, Any]:
    """Return the account of some processes as a snapshot's summary; the numbers are measured.

    What only an observer from outside can know (frames of the top pages, the kernel's other accounts) is not in it.
    """
    nodes = range(len(topology.nodes))
    rows = ("pte", "pmd", "pud", *(("p4d",) if topology.paging_levels == 5 else ()), "pgd")
    pages = [np.array([[each.account.tables.get(row, {}).get(n, 0) for n in nodes] for row in rows]) for each in told]
    return {
        "schema": 1,
        "kind": "numalab-placement",
        "source": "numa_pgtables",
        "number_kind": Kind.MEASURED.value,
        "label": label,
        "taken": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "levels": topology.paging_levels,
        "nodes": list(nodes),
        "cpu_nodes": [number for number, node in enumerate(topology.nodes) if node.cpus],
        "table_pages": sum(pages, np.zeros((len(rows), len(nodes)), np.int64)).tolist(),
        "processes": [_process(each, len(nodes), table) for each, table in zip(told, pages, strict=True)],
    }


def _process(told: Told, count: int, pages: NDArray[np.int64]) -> dict[str, Any]:
    leaves = told.account.leaves

    def entries(size: int, table: int, where: int | str) -> int:
        return int(leaves.get((_BYTES[size], table), {}).get(where, 0))

    def column(size: int, where: str) -> list[int]:
        return [entries(size, table, where) for table in range(count)]

    leaf = {
        name: [[entries(size, table, data) for data in range(count)] for table in range(count)]
        for size, name in enumerate(LEAF_SIZES)
    }
    zero = {name: column(size, ZERO) for size, name in enumerate(LEAF_SIZES)}
    other = {name: column(size, OTHER) for size, name in enumerate(LEAF_SIZES)}
    on = np.array(
        [sum(sum(row.values()) for (_, node), row in leaves.items() if node == table) for table in range(count)]
    )
    total = int(on.sum())
    local = {str(node): float(on[node]) / total if total else None for node in range(count)}
    return {
        "pid": told.pid,
        "comm": told.comm,
        "levels": len(pages),
        "roots": [{"nodes": list(range(count)), "table_pages": pages.tolist()}],
        "table_pages": pages.tolist(),
        "leaf": leaf,
        "leaf_zero": zero,
        "leaf_other": other,
        "deposited": [told.account.tables.get(DEPOSITED, {}).get(node, 0) for node in range(count)],
        "local_share": local,
        "remote_share": {node: None if share is None else 1 - share for node, share in local.items()},
    }
