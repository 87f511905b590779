"""What is promised: scenarios, each with the greatest ratio to the kernel without patches that an operation may have.

A scenario is a state of replication on the kernel under test. The kernel it is compared with has none of it, does the
same operations, and the same CPUs have touched the region before each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: The operations of memops; a fault is one page, populated by hand.
OPS = ("mmap", "mprotect", "munmap", "fault", "forkexit")
MAPPINGS = ("private", "shared")
#: Size of a region → how often each operation is counted. Operations below 4 million instructions are the same each
#: time, but for forks, of which it takes thousands; those above have timer interrupts in them, a few (8M) or so many
#: that it does not matter (512M).
SIZES: Mapping[str, int] = {"4K": 2000, "8M": 40, "512M": 3}
#: Where CPUs of all nodes touch a region, they are given time to sleep before each operation: not so often.
MOST_WITH_ALL = 200
#: What both kernels run under when nothing is replicated: no NUMA balancing, page tables by first touch.
PLAIN_POLICY = "first-touch"

_FULL = {"mmap": 1.1, "mprotect": 2.0, "munmap": 1.3}


@dataclass(frozen=True)
class Scenario:
    """One state of replication, and what it may cost.

    Attributes:
        name, summary: for people.
        policy: what the kernel under test runs under.
        touchers: who touches a region before an operation, on both kernels (parameter of memops).
        bounds: operation → greatest ratio of instructions; others are reported only.
    """

    name: str
    summary: str
    policy: str
    touchers: str
    bounds: Mapping[str, float]


SCENARIOS = {
    each.name: each
    for each in (
        Scenario("off", "replication is there and off", PLAIN_POLICY, "none", dict.fromkeys(OPS, 1.005)),
        Scenario(
            "lazy",
            "lazy replication on all nodes, one node touches",
            "lazy",
            "one",
            {"mmap": 1.02, "mprotect": 1.1, "munmap": 1.1},
        ),
        Scenario("lazy-full", "lazy replication, every node has touched everything", "lazy", "all", _FULL),
        Scenario("full", "eager replication: full replicas on every node", "eager", "all", _FULL),
    )
}


@dataclass(frozen=True)
class Count:
    """Instructions of one operation on a region of one kind, over the repeats.

    Attributes:
        low: mean of the lower half of the repeats; what is compared.
        least, median: of the repeats.
    """

    op: str
    size: str
    mapping: str
    pages: int
    repeats: int
    low: float
    least: int
    median: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; counts are instructions of one operation."""
        return {
            "op": self.op,
            "size": self.size,
            "mapping": self.mapping,
            "pages": self.pages,
            "repeats": self.repeats,
            "low": round(self.low, 1),
            "min": self.least,
            "median": self.median,
            "low_per_page": round(self.low / self.pages, 2),
        }


Key = tuple[str, str, str]
Counts = Mapping[Key, Count]


def by_key(counts: Sequence[Count]) -> dict[Key, Count]:
    """Return counts by what they are of: operation, size, mapping."""
    return {(count.op, count.size, count.mapping): count for count in counts}


@dataclass(frozen=True)
class Row:
    """One operation on both kernels.

    Attributes:
        count, base: instructions on the kernel under test and on the one it is compared with.
        bound: greatest ratio that was promised, None: nothing was.
        debian: instructions on Debian's own kernel, None when it was not asked; never a reason to fail.
    """

    count: Count
    base: Count
    bound: float | None
    debian: Count | None = None

    @property
    def ratio(self) -> float:
        """Of the means of the lower halves: two runs of one kernel differ by 0.1 % or less.

        Fewest would do for most, but no fork is like another; medians of a few large regions have interrupts in them.
        """
        return self.count.low / self.base.low

    @property
    def exceeded(self) -> bool:
        """Whether it costs more than was promised."""
        return self.bound is not None and self.ratio > self.bound

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = {
            **self.count.to_json(),
            "base": self.base.to_json(),
            "ratio": round(self.ratio, 5),
            "ratio_of_fewest": round(self.count.least / self.base.least, 5),
            "ratio_of_medians": round(self.count.median / self.base.median, 5),
            "bound": self.bound,
            "exceeded": self.exceeded,
        }
        return found | ({"debian": self.debian.to_json()} if self.debian else {})


def rows(scenario: Scenario, counts: Counts, base: Counts, debian: Counts | None = None) -> list[Row]:
    """Return a row per operation, size and mapping that both kernels have counts of, in the order of `OPS`."""
    found = [
        Row(count, base[key], scenario.bounds.get(count.op), (debian or {}).get(key))
        for key, count in counts.items()
        if key in base
    ]
    return sorted(found, key=lambda row: OPS.index(row.count.op))
