"""One pass of KSM: what it has scanned and saved, and what that took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nuksm.metrics import Scan, Worker

#: The most of a pass that one of several workers may have scanned, in even parts.
EVEN = 1.5


@dataclass(frozen=True)
class Pass:
    """One pass.

    Attributes:
        number: from 1.
        scanned: pages it has scanned.
        cost: instructions by thread, such as {"ksmd": 1000}.
        sharing: pages saved after it.
        workers: what the kernel says of its workers, None where it does not.
    """

    number: int
    scanned: int
    cost: Mapping[str, int]
    sharing: int
    workers: Scan | None = None

    @property
    def instructions(self) -> int:
        """Of all threads together."""
        return sum(self.cost.values())

    @property
    def per_page(self) -> float:
        """Instructions for each page."""
        return self.instructions / self.scanned

    @property
    def longest(self) -> int:
        """Instructions of the thread that took most: what the pass takes where each thread has a CPU."""
        return max(self.cost.values())

    @property
    def merger_per_page(self) -> float:
        """Of the merger, for each page; 0 where one thread does everything."""
        return (self.workers.merger if self.workers else 0) / self.scanned

    @property
    def front_per_page(self) -> float:
        """Of all others together, for each page."""
        return self.per_page - self.merger_per_page

    @property
    def spread(self) -> bool:
        """Whether several workers have shared the pages as they would on CPUs of their own.

        On one CPU they take turns of some milliseconds: in a short pass the first to run scans everything.
        """
        if self.workers is None or len(self.workers.workers) < 2:
            return False
        most = max(worker.scanned for worker in self.workers.workers)
        return most <= EVEN * self.workers.scanned / len(self.workers.workers)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Pass:
        """Return what `to_json` was made of.

        Raises:
            KeyError, TypeError, ValueError: it was made of something else.
        """
        said = value["workers"]
        workers = said and Scan(
            tuple(
                Worker(number, node, scanned, cost)
                for number, (node, scanned, cost) in enumerate(
                    zip(said["nodes"], said["scanned"], said["time_ns"], strict=True)
                )
            ),
            said["handed"],
            said["merger_ns"],
        )
        return cls(value["pass"], value["scanned"], value["threads"], value["pages_sharing"], workers or None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; costs are instructions."""
        workers = self.workers
        return {
            "pass": self.number,
            "scanned": self.scanned,
            "instructions": self.instructions,
            "per_page": round(self.per_page, 2),
            "longest": self.longest,
            "threads": dict(self.cost),
            "pages_sharing": self.sharing,
            "workers": None
            if workers is None
            else {
                "nodes": [worker.node for worker in workers.workers],
                "scanned": [worker.scanned for worker in workers.workers],
                "time_ns": [worker.cost for worker in workers.workers],
                "merger_ns": workers.merger,
                "handed": workers.handed,
                "merger_share": workers.merger_share,
            },
        }
