"""What chance alone makes of latencies: how far apart the best groups of a flat matrix look, by its size.

The part of `vmitosis.discovery` that says whether a partition can be believed. Few vCPUs have few pairs, and clustering
picks the best of many partitions: of four vCPUs, one way in five has the two nearest pairs disjoint whatever the
latencies mean. `strength` is a number without unit, the gap between groups in spreads of the latencies inside blocks;
`critical` is what it exceeds by chance in one of `1 / LEVEL` flat matrices of that many vCPUs, the best of all
partitions that are looked at taken each time. So many tests and few pairs are both in it.

    python -m vmitosis.chance        # makes the table anew

Source: the Monte Carlo reference distribution of a maximal statistic, as the gap statistic of Tibshirani, Walther and
Hastie (2001) has one, which compares clusters with those of data that have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from vmitosis.partitions import Labels, Matrix

#: A flat matrix is taken for groups once in so many, at most.
LEVEL = 0.002
#: Latencies are printed with a tenth of a nanosecond, and are some tens of them: nothing spreads less (log).
RESOLUTION = 0.005
#: Fewer residuals than this say nothing of a spread: with three vCPUs no answer is one.
LEAST_FREEDOM = 3
#: Number of vCPUs → critical strength (`table`, 4,000 flat matrices each); more vCPUs need less, and get the last.
CRITICAL: dict[int, float] = {
    4: 10.4,
    5: 4.70,
    6: 3.71,
    7: 3.25,
    8: 2.69,
    9: 2.52,
    10: 2.24,
    11: 2.13,
}
#: The table is of log-normal disturbance. Of other shapes (uniform, exponential) five vCPUs reach 5.8 in place of 4.7.
OTHER_SHAPES = 1.25


def strength(logs: Matrix, labels: Labels, siblings: Sequence[tuple[int, int]] = ()) -> float:
    """How far the nearest two groups are apart, in spreads of the latencies inside blocks.

    Args:
        logs: logarithms of latencies between vCPUs.
        labels: group of each vCPU.
        siblings: hyper-threads: pairs whose latency says nothing of nodes.

    Returns:
        Minus infinity where too little is left to estimate a spread.
    """
    groups = int(labels.max()) + 1
    one, other = np.triu_indices(len(labels), 1)
    if siblings:
        pair = np.arange(len(labels))
        for first, second in siblings:
            pair[second] = first
        apart = pair[one] != pair[other]
        one, other = one[apart], other[apart]
    values = logs[one, other]
    low, high = np.minimum(labels[one], labels[other]), np.maximum(labels[one], labels[other])
    block = low * groups + high
    middle = np.full((groups, groups), np.nan)
    residual = 0.0
    found = np.unique(block)
    for each in found:
        inside = values[block == each]
        median = float(np.median(inside))
        middle[each // groups, each % groups] = middle[each % groups, each // groups] = median
        residual += float(np.abs(inside - median).sum())
    freedom = len(values) - len(found)
    near = np.diagonal(middle).copy()
    if freedom < LEAST_FREEDOM or np.isnan(near).all():
        return -np.inf
    near[np.isnan(near)] = np.nanmedian(near)
    gaps = (middle - np.maximum(near[:, None], near[None, :]))[~np.eye(groups, dtype=bool)]
    return float(gaps.min()) / max(residual / freedom, RESOLUTION)


def critical(vcpus: int) -> float:
    """What `strength` must exceed for groups of so many vCPUs to be believed in."""
    if vcpus < min(CRITICAL):
        return np.inf
    return OTHER_SHAPES * CRITICAL[min(vcpus, max(CRITICAL))]


def table(sizes: Iterable[int], matrices: int = 4000) -> dict[int, float]:
    """Number of vCPUs → critical strength, from so many flat matrices (`vmitosis.latencies.flat`) of each size."""
    from vmitosis.discovery import strongest
    from vmitosis.latencies import flat

    made = {}
    for vcpus in sizes:
        seen = [strongest(flat(seed, vcpus, 0.3)) for seed in range(1_000_000, 1_000_000 + matrices)]
        made[vcpus] = float(np.quantile(seen, 1 - LEVEL, method="higher"))
    return made


if __name__ == "__main__":
    for size in range(4, 12):
        print(f"    {size}: {table([size])[size]:.2f},", flush=True)
