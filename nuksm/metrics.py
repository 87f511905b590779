"""What is asked of KSM on NUMA machines: who has merged pages on his node, is that fair, and what is saved.

Pure functions of numbers that were read elsewhere. A share is a number from 0 to 1, or None where there is nothing it
could be a share of; shares of several processes stand in the order of the processes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

#: What two equal processes may differ in, in points of a hundred (issue of the patch set).
FAIR_POINTS = 5.0
#: By how much savings may differ from those of stock KSM without copies.
SAME_SAVINGS = 0.01
#: Looks at a page after which it is where it is used, once its use has moved for good (documented by the patch set).
FOLLOW_LOOKS = 8
#: Seconds that noticing it may take: whoever looks is a process of the machine too.
FOLLOW_SLACK = 1.0
#: Seconds that a look takes at most, however long KSM's passes are: otherwise eight passes would be in time always.
FOLLOW_LOOK = 1.0
#: The share of the final savings that counts as having found what there is.
FOUND = 0.9


def local_share(pages: Mapping[int, float], node: int) -> float | None:
    """Return the share of `pages` (by node: pages, or accesses) that lies on `node`.

    Raises:
        ValueError: a negative number of pages.
    """
    if any(count < 0 for count in pages.values()):
        raise ValueError(f"a negative number of pages: {dict(pages)}")
    total = sum(pages.values())
    return pages.get(node, 0) / total if total else None


def spread(shares: Sequence[float]) -> float:
    """Return by how many points of a hundred the shares differ at most; 0 for fewer than two."""
    return 100 * (max(shares) - min(shares)) if shares else 0.0


def jain(values: Sequence[float]) -> float | None:
    """Return Jain's index of fairness (Jain, Chiu, Hawe 1984): 1 when all are equal, 1/n when one has everything.

    Values that are all 0 are equal: 1. None for no values.

    Raises:
        ValueError: a negative value.
    """
    if not values:
        return None
    if any(value < 0 for value in values):
        raise ValueError(f"the index is of values from 0 up, not of {list(values)}")
    largest = max(values)
    if largest == 0:
        return 1.0
    # By the largest: squares of very small or large numbers would leave the range of floats.
    scaled = [value / largest for value in values]
    return sum(scaled) ** 2 / (len(scaled) * sum(value * value for value in scaled))


def weights_of(nices: Sequence[int]) -> list[int]:
    """Return the weights of processes by their priorities, relative to the lowest: (difference of nice) + 1.

    So (-20, -11) is 10:1 and (-20, -16) is 5:1, as the paper labels them.
    """
    return [max(nices) - nice + 1 for nice in nices]


def weights_with_cgroups(weights: Sequence[int], cgroups: Sequence[int]) -> list[int]:
    """Return weights by priority times the cpu.weight of each one's cgroup, without a common divisor."""
    products = [weight * cgroup for weight, cgroup in zip(weights, cgroups, strict=True)]
    return [product // math.gcd(*products) for product in products]


def numa_tax(shares: Sequence[float], weights: Sequence[float] | None = None) -> float | None:
    """Return the share of uses that is remote, over all processes, each counted by its weight (default: alike).

    Raises:
        ValueError: not as many weights as shares, or one that is not above 0.
    """
    if not shares:
        return None
    by = [1.0] * len(shares) if weights is None else list(weights)
    if len(by) != len(shares) or any(weight <= 0 for weight in by):
        raise ValueError(f"{len(shares)} shares take as many weights above 0, not {by}")
    return sum(weight * (1 - share) for share, weight in zip(shares, by, strict=True)) / sum(by)


def ordered_by_weight(shares: Sequence[float], weights: Sequence[float], points: float = FAIR_POINTS) -> bool:
    """Whether who has more weight has more on his node, by more than `points`; equals may differ by that much.

    Shares that are alike at unequal weights are no order: whatever knows nothing of weights would have it.

    Raises:
        ValueError: not as many weights as shares.
    """
    if len(shares) != len(weights):
        raise ValueError(f"{len(shares)} shares and {len(weights)} weights")
    both = list(zip(shares, weights, strict=True))
    return all(
        100 * abs(share - other) <= points + 1e-9
        if weight == its
        else 100 * (share - other) > points + 1e-9 or weight < its
        for share, weight in both
        for other, its in both
    )


def monotone(shares: Sequence[tuple[float, float]]) -> bool:
    """Whether more weight always has the larger share; each pair is (weight relative to the others', local share).

    Pairs of one weight are repeats, whose median counts: at unequal weights no two medians may be the same.
    """
    by_weight: dict[float, list[float]] = {}
    for weight, share in shares:
        by_weight.setdefault(weight, []).append(share)
    medians = [statistics.median(by_weight[weight]) for weight in sorted(by_weight)]
    return all(less < more for less, more in pairwise(medians))


def follow_bound(sample: float, seconds: float, passes: int, pages: int, rate: float) -> float:
    """Return the seconds within which `pages` pages have to be where their use has moved to.

    Args:
        sample: seconds between two looks at a page.
        seconds, passes: how long so many passes of KSM have taken meanwhile: a page is looked at once in one. A pass
            counts as FOLLOW_LOOK seconds at most, or as `sample` where that is longer.
        pages: that had to move.
        rate: pages that may move to one node per second; 0: none ever.
    """
    longest = max(sample, min(seconds / max(passes, 1), FOLLOW_LOOK))
    return FOLLOW_LOOKS * longest + (pages / rate if rate else float("inf")) + FOLLOW_SLACK


@dataclass(frozen=True)
class Savings:
    """What merging saves, in pages.

    Attributes:
        shared: pages that stand for others (pages_shared); copies are among them.
        sharing: pages that are saved (pages_sharing).
        copies: copies of hot pages on other nodes (numa_copies).
    """

    shared: int
    sharing: int
    copies: int = 0

    @property
    def without_copies(self) -> int:
        """What would be saved without copies: each takes one page that merging had saved."""
        return self.sharing + self.copies

    @property
    def given_up(self) -> float:
        """The share of this that copies give up."""
        return self.copies / self.without_copies if self.without_copies else 0.0

    def relative_to(self, other: Savings) -> float | None:
        """Pages saved, as a part of those that `other` saves; None when it saves none."""
        return self.sharing / other.sharing if other.sharing else None

    def same_as(self, other: Savings, within: float = SAME_SAVINGS) -> bool:
        """Whether both save the same, but for a share of `within`."""
        return abs(self.sharing - other.sharing) <= within * other.sharing


def passes_to(points: Sequence[tuple[float, float]], share: float = FOUND) -> float | None:
    """Return the pass after which `share` of the final savings was there and stayed.

    `points` are (passes, pages saved) over time, as they were seen: the answer is the first of their passes, so it is
    late by the distance of two points at most. None when nothing was saved in the end.

    Raises:
        ValueError: passes that go backwards.
    """
    if any(later[0] < earlier[0] for earlier, later in pairwise(points)):
        raise ValueError("passes go backwards")
    if not points or points[-1][1] <= 0:
        return None
    enough = share * points[-1][1]
    reached = None
    for passes, saved in points:
        if saved < enough:
            reached = None
        elif reached is None:
            reached = passes
    return reached


@dataclass(frozen=True)
class Worker:
    """One thread of a scan: pages it has looked at, and what that took it.

    `cost` is in ns; on a machine that counts instructions a nanosecond is one of them.
    """

    number: int
    node: int
    scanned: int
    cost: int


@dataclass(frozen=True)
class Scan:
    """A scan by several workers in front of one merger; costs as in `Worker`.

    Attributes:
        workers: the threads that walk and compare checksums.
        handed: pages that were handed to the merger.
        merger: what it took.
    """

    workers: tuple[Worker, ...]
    handed: int
    merger: int

    @property
    def scanned(self) -> int:
        """Pages that all workers together have scanned."""
        return sum(worker.scanned for worker in self.workers)

    @property
    def longest(self) -> int:
        """What the worker took that took longest, or the merger, if it took longer: the time of a pass."""
        return max([*(worker.cost for worker in self.workers), self.merger])

    @property
    def merger_share(self) -> float | None:
        """The merger's share of all that was done."""
        total = sum(worker.cost for worker in self.workers) + self.merger
        return self.merger / total if total else None

    def since(self, before: Scan) -> Scan:
        """Return what was done between `before` and this.

        Raises:
            ValueError: other workers.
        """
        if [worker.number for worker in self.workers] != [worker.number for worker in before.workers]:
            raise ValueError("the workers are others than before")
        workers = (
            Worker(now.number, now.node, now.scanned - then.scanned, now.cost - then.cost)
            for now, then in zip(self.workers, before.workers, strict=True)
        )
        return Scan(tuple(workers), self.handed - before.handed, self.merger - before.merger)


def speedup(several: Scan, one: Scan) -> float | None:
    """Return how many times the pages per unit of time `several` scan that `one` does; None when one did nothing."""
    if not (several.longest and one.scanned and one.longest):
        return None
    return (several.scanned / several.longest) / (one.scanned / one.longest)
