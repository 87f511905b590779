"""Partitions of units (vCPUs, or cores) by the distances between them, and what speaks for each.

The part of `vmitosis.discovery` that clusters; distances are logarithms of latencies. Pure numpy and scipy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

#: More groups than this are not looked for.
MOST_GROUPS = 16
#: Between nodes latencies are longer than inside by at least this (log of the ratio): what lies in one node differs
#: by less. Sockets differ by factors.
LEAST = float(np.log(1.16))
#: Standard deviations (of the latencies in a block) that a gap must have in large blocks, and more in small ones,
#: where the lowest of many random values come together.
_SIGMAS, _SIGMAS_SMALL = 1.2, 3.2

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Evidence:
    """How well a partition is separated.

    Attributes:
        groups: number of groups.
        gap: smallest distance between two groups beyond the width of both, log of the ratio of latencies.
        margin: what the gap must exceed.
        apart: share of the pairs of vCPUs that lie on the right side of the middle between inside and outside.
    """

    groups: int
    gap: float
    margin: float
    apart: float

    @property
    def counts(self) -> bool:
        """Whether the gap is one."""
        return self.gap > self.margin


def candidates(between: Matrix) -> list[tuple[Labels, Evidence]]:
    """The best partition into 2, 3, ... groups, with what speaks for it."""
    count = len(between)
    most = min(MOST_GROUPS, count - 1)
    if most < 2:
        return []
    upper = np.triu_indices(count, 1)
    # A single disturbed pair is to move no mean.
    clipped = np.minimum(between, np.quantile(between[upper], 0.98)) - between[upper].min()
    np.fill_diagonal(clipped, 0.0)
    tree = linkage(squareform(clipped, checks=False), "average")
    found = []
    for groups, cut in _cuts(tree, count, most):
        gap, margin = _mean_gap(clipped, cut)
        if gap < margin / 2:  # most are far from one, and medians are dear
            found.append((cut, Evidence(groups, gap, margin, 0.0)))
            continue
        labels = _settle(between, cut)
        if labels.max() + 1 == groups:
            found.append((labels, _evidence(between, labels, upper)))
    return found


def _cuts(tree: Matrix, count: int, most: int) -> Iterator[tuple[int, Labels]]:
    """The clusters of a tree of merges as labels of the units, for 2 groups, 3, ..., `most`."""
    members = [[unit] for unit in range(count)]
    children = tree[:, :2].astype(np.int64).tolist()
    for one, other in children:
        members.append(members[one] + members[other])
    labels = np.zeros(count, np.int64)
    label = {2 * count - 2: 0}
    for groups in range(2, most + 1):
        last = max(label)  # the merge that was made last is undone first
        one, other = children[last - count]
        label[one] = label.pop(last)
        label[other] = groups - 1
        labels[members[other]] = groups - 1
        yield groups, labels.copy()


def _mean_gap(between: Matrix, labels: Labels) -> tuple[float, float]:
    """The smallest gap between two groups by means, and a margin for it by the deviation inside blocks.

    The gap is minus infinity when most groups are lone units.
    """
    sizes = np.bincount(labels)
    if 2 * np.count_nonzero(sizes == 1) > len(sizes):
        return -np.inf, LEAST
    order = np.argsort(labels, kind="stable")
    starts = np.cumsum(sizes) - sizes
    blocks = between[np.ix_(order, order)]
    counts = np.maximum(sizes[:, None] * sizes[None, :] - np.diag(sizes), 1)
    mean = _block_sums(blocks, starts) / counts
    squares = (_block_sums(blocks**2, starts) - counts * mean**2).sum()
    deviation = float(np.sqrt(max(squares, 0.0) / counts.sum()))
    inside = np.where(sizes > 1, np.diag(mean), np.nan)
    inside[sizes == 1] = np.nanmedian(inside)
    gaps = mean - np.maximum(inside[:, None], inside[None, :])
    return float(gaps[~np.eye(len(sizes), dtype=bool)].min()), max(LEAST, deviation)


def _block_sums(sorted_: Matrix, starts: NDArray[np.int64]) -> Matrix:
    found: Matrix = np.add.reduceat(np.add.reduceat(sorted_, starts, axis=0), starts, axis=1)
    return found


def _settle(between: Matrix, labels: Labels) -> Labels:
    """Each unit goes to the group it is nearest to (median), until none moves."""
    count = len(between)
    for _ in range(4):
        groups = labels.max() + 1
        away = np.full((count, groups), np.inf)
        for group in range(groups):
            inside = np.flatnonzero(labels == group)
            others = between[:, inside]
            away[:, group] = np.median(others, axis=1)
            size = len(inside)
            if size > 1:  # nobody is a neighbour of itself
                rest = others[inside][~np.eye(size, dtype=bool)].reshape(size, size - 1)
                away[inside, group] = np.median(rest, axis=1)
            else:  # the lone one stays: whether it belongs there, evidence says
                away[inside, group] = -np.inf
        moved = away.argmin(axis=1).astype(np.int64)
        moved = np.unique(moved, return_inverse=True)[1].astype(np.int64)
        if (moved == labels).all() or moved.max() < labels.max():
            break
        labels = moved
    return labels


def _evidence(between: Matrix, labels: Labels, upper: tuple[NDArray[np.int64], ...]) -> Evidence:
    groups = int(labels.max()) + 1
    sizes = np.bincount(labels)
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(sizes)
    sorted_ = between[np.ix_(order, order)]
    median = np.full((groups, groups), np.nan)
    residuals = []
    for one in range(groups):
        rows = slice(ends[one] - sizes[one], ends[one])
        for other in range(one, groups):
            block = sorted_[rows, ends[other] - sizes[other] : ends[other]]
            values = block[np.triu_indices(sizes[one], 1)] if one == other else block.ravel()
            if len(values):
                median[one, other] = median[other, one] = middle = float(np.median(values))
                if len(values) > 2:
                    residuals.append(values - middle)
    inside = np.diagonal(median).copy()
    if 2 * np.count_nonzero(sizes == 1) > groups:
        return Evidence(groups, -np.inf, LEAST, 0.0)
    # A lone unit has no inside: it must be as far from a group as that group's neighbours are.
    inside[np.isnan(inside)] = np.nanmedian(inside)
    wider = np.maximum(inside[:, None], inside[None, :])
    gaps = (median - wider)[~np.eye(groups, dtype=bool)]
    below = np.concatenate(residuals) if residuals else np.zeros(1)
    # Disturbance only adds, so the lower side says how wide latencies are by themselves.
    lower = -below[below <= 0]
    sigma = 1.4826 * float(np.median(lower)) if len(lower) else 0.0
    smallest = min(int(size) * (int(size) - 1) // 2 for size in sizes if size > 1)
    wanted = sigma * (_SIGMAS + _SIGMAS_SMALL / np.sqrt(smallest))
    half = (median + wider) / 2
    first, second = labels[upper[0]], labels[upper[1]]
    values = between[upper]
    outside = first != second
    nearest_out = np.where(np.eye(groups, dtype=bool), np.inf, half).min(axis=1)
    right = np.where(outside, values > half[first, second], values < nearest_out[first])
    apart = (float(right[outside].mean()) + float(right[~outside].mean() if (~outside).any() else 1.0)) / 2
    return Evidence(groups, float(gaps.min()), max(LEAST, wanted), apart)
