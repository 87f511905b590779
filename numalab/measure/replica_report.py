"""What a check of replicas found: broken rules, and counts to compare with the kernel's own."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Violation:
    """Entries, or tables, that break one rule.

    Attributes:
        rule: its name (`replica_rules.entry_rules` and `replica_check`).
        domain: of the replica; -1 where none can be told.
        level: of the table, 1 to 5.
        va: first virtual address that is concerned.
        count: how many.
        text: the first of them.
    """

    rule: str
    domain: int
    level: int
    va: int
    count: int
    text: str

    def __str__(self) -> str:
        more = f" ({self.count} such)" if self.count > 1 else ""
        return f"{self.rule}: domain {self.domain}, level {self.level}, address {self.va:#x}: {self.text}{more}"


@dataclass
class Report:
    """What a check found.

    Attributes:
        primary: int64 [level, node], table pages of the primary, once per entry that leads to them.
        replica: int64 [level, node], those of replicas, whether a tree reaches them or not.
        spare: int64 [node], replicas of PTE tables that are deposited; not among `replica`.
        local, remote: pass-through entries to a table on the replica's own node, and elsewhere.
        entries: entries of replicas that are not zero.
        violations: [] when all is well.
    """

    primary: NDArray[np.int64]
    replica: NDArray[np.int64]
    spare: NDArray[np.int64]
    local: int = 0
    remote: int = 0
    entries: int = 0
    violations: list[Violation] = field(default_factory=list)
