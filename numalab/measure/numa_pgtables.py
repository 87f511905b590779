"""`/proc/PID/numa_pgtables`, the kernel's own walk (patch set `common`), parsed and compared.

The format is described in Documentation/filesystems/proc.rst of the patched kernel, section 3.14:

    tables pmd N0=3
    tables deposited N1=16
    leaves 4096 N0: N0=417 N1=2 zero=5 other=4
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from numalab.errors import ExperimentError
from numalab.measure.counters import GuestFiles
from numalab.measure.pagetable import LEVEL_NAMES, PAGE_SHIFT
from numalab.measure.snapshot import ProcessPlacement

DEPOSITED = "deposited"
ZERO, OTHER = "zero", "other"
_TABLES = (*(name.lower() for name in LEVEL_NAMES), DEPOSITED)
#: Bytes mapped by a leaf entry of level 1, 2 and 3.
_LEAF_BYTES = tuple(1 << PAGE_SHIFT + 9 * level for level in range(3))


@dataclass(frozen=True)
class NumaPgtables:
    """What the kernel counted; counts of zero are left out.

    Attributes:
        tables: {"pgd", "p4d", "pud", "pmd", "pte", "deposited"} → node → table pages.
        leaves: (bytes a leaf maps, node of its table page) → node, "zero" or "other" → leaf entries.
    """

    tables: Mapping[str, Mapping[int, int]]
    leaves: Mapping[tuple[int, int], Mapping[int | str, int]]


def parse(text: str) -> NumaPgtables:
    """Parse the content of the file.

    Raises:
        ExperimentError: for a line of another form; names it.
    """
    tables: dict[str, dict[int, int]] = {}
    leaves: dict[tuple[int, int], dict[int | str, int]] = {}
    for line in text.splitlines():
        words = line.split()
        try:
            if words[0] == "tables" and words[1] in _TABLES and words[1] not in tables:
                tables[words[1]] = {_node(where): count for where, count in _counts(words[2:])}
            elif words[0] == "leaves" and words[2].endswith(":") and int(words[1]) in _LEAF_BYTES:
                leaves[int(words[1]), _node(words[2][:-1])] = {
                    where if where in (ZERO, OTHER) else _node(where): count for where, count in _counts(words[3:])
                }
            else:
                raise ValueError
        except (ValueError, IndexError):
            raise ExperimentError(f"not a line of numa_pgtables: {line!r}") from None
    return NumaPgtables(tables, leaves)


def _counts(words: Iterable[str]) -> Iterator[tuple[str, int]]:
    for word in words:
        where, _, count = word.partition("=")
        yield where, int(count)


def _node(word: str) -> int:
    if not word.startswith("N"):
        raise ValueError(word)
    return int(word[1:])


def read(machine: GuestFiles, pid: int) -> NumaPgtables:
    """Read and parse the file of a process now."""
    return parse(machine.read_file(f"/proc/{pid}/numa_pgtables").decode())


def of(process: ProcessPlacement) -> NumaPgtables:
    """The same account made from a snapshot, of the primary tree.

    The kernel goes by addresses: a table that two entries point at counts twice.
    """
    top = len(LEVEL_NAMES)
    mine = process.tables.select(process.tables.root == 0)
    node = process.table_node[process.tables.root == 0]
    tables: dict[str, dict[int, int]] = {}
    leaves: dict[tuple[int, int], dict[int | str, int]] = {}
    columns: list[int | str] = [*process.nodes, ZERO, OTHER]
    for level in range(1, process.levels + 1):
        name = LEVEL_NAMES[(top if level == process.levels else level) - 1].lower()
        tables[name] = {}
        for column, table_node in enumerate(process.nodes):
            rows = (mine.level == level) & (node == column)
            refs = mine.refs[rows]
            if rows.any():
                tables[name][table_node] = int(refs.sum())
            counts = (mine.leaves[rows] * refs[:, np.newaxis]).sum(axis=0)
            if counts.any():
                leaves[_LEAF_BYTES[level - 1], table_node] = {
                    where: int(count) for where, count in zip(columns, counts, strict=True) if count
                }
    tables[DEPOSITED] = {
        table_node: int(count) for table_node, count in zip(process.nodes, process.deposited, strict=True) if count
    }
    return NumaPgtables(tables, leaves)
