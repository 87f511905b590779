"""Bars of local and remote leaf entries, node by node: the lower half of the picture of where page tables live.

Without replicas a node has one bar. With replicas it has two: pale and narrow what its CPUs would see if they walked
the primary like all others, beside it what they find in the tree they walk, and on top what is not yet in that tree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy.typing import NDArray

from analysis import style
from analysis.placement import Group

#: A range of shares narrower than this is no more than a speck in a picture; the tables have it.
_VISIBLE = 0.02
_PALE = 0.4
_HATCH = "////"


def draw(axes: Axes, group: Group, *, names: bool) -> None:
    """Draw the bars of one group; `names` labels the vertical axis."""
    after, before, unfilled = (_medians(shares) for shares in (group.remote, group.before, group.unfilled))
    for node in range(len(after)):
        if not group.replicated:
            _bar(axes, node, 0.8, after[node], 0.0)
        else:
            _bar(axes, node - 0.24, 0.26, before[node], 0.0, alpha=_PALE)
            _bar(axes, node + 0.14, 0.46, after[node], unfilled[node])
        _number(axes, node + 0.14 * group.replicated, after[node], unfilled[node])
        _range(axes, node, group)
    axes.set_ylim(0, 1.16)
    axes.set_xlim(-0.55, len(after) - 0.45)
    axes.set_yticks([0, 0.5, 1], ["0", "50%", "100%"] if names else [])
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
    node_axis(axes, group.first.nodes)
    axes.set_xlabel("node", fontsize=8)
    if names:
        axes.set_ylabel("leaf entries")


def keys(groups: Sequence[Group]) -> list[Artist]:
    """What the colours mean, for a legend."""
    found: list[Artist] = [
        Patch(color=style.LOCAL, label="local"),
        Patch(color=style.REMOTE, label="remote (the number above)"),
    ]
    if any(group.replicated for group in groups):
        found += [
            Patch(color=style.REMOTE, alpha=_PALE, label="pale: before, of the primary alone"),
            Patch(facecolor="none", edgecolor=style.FAINT, hatch=_HATCH, label="not yet in the replica"),
        ]
    return found


def node_axis(axes: Axes, nodes: Sequence[int]) -> None:
    """Number the columns of an axis by node."""
    axes.set_xticks(range(len(nodes)), [str(node) for node in nodes])


def _medians(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """By node, over the runs; NaN where all of them lack it."""
    known = ~np.isnan(shares).all(axis=0)
    middle = np.full(shares.shape[1], np.nan)
    middle[known] = np.nanmedian(shares[:, known], axis=0)
    return middle


def _bar(axes: Axes, at: float, width: float, remote: float, unfilled: float, *, alpha: float = 1.0) -> None:
    """One bar: `remote` of what is there, less `unfilled` of the whole; nothing where neither is known."""
    there = 1 - (0.0 if np.isnan(unfilled) else unfilled)
    if not np.isnan(remote):
        axes.bar(at, (1 - remote) * there, width, color=style.LOCAL, alpha=alpha)
        axes.bar(at, remote * there, width, bottom=(1 - remote) * there, color=style.REMOTE, alpha=alpha)
    if there < 1:
        axes.bar(at, 1 - there, width, bottom=there, facecolor="none", edgecolor=style.FAINT, hatch=_HATCH, linewidth=0)


def _number(axes: Axes, at: float, remote: float, unfilled: float) -> None:
    if not np.isnan(remote):
        axes.text(at, 1.03, f"{remote:.0%}", ha="center", va="bottom", fontsize=7.5)
    elif unfilled > 0:  # a walk finds nothing, but there is something to be found
        axes.text(at, 1.03, "NA", ha="center", va="bottom", fontsize=7.5, color=style.FAINT)
    else:
        axes.text(at, 0.5, "NA", ha="center", va="center", color=style.FAINT)


def _range(axes: Axes, node: int, group: Group) -> None:
    """A line from the smallest to the largest share of the runs, where all bars have the same height."""
    remote = group.remote[:, node]
    if group.replicated or np.isnan(remote).all():
        return
    low, high = 1 - np.nanmax(remote), 1 - np.nanmin(remote)
    if high - low > _VISIBLE:
        axes.vlines(node, low, high, color="white", linewidth=2.5)
        axes.vlines(node, low, high, color="black", linewidth=1)
