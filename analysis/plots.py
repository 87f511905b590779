"""The plots: where page tables live, how remote they are, how far policies differ.

Every figure says in its own text what kind of numbers it shows and how many runs stand behind them. Wall time
of an emulation is never drawn.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from analysis import share_bars, style
from analysis.comparison import Comparison
from analysis.placement import Group
from numalab.errors import ExperimentError
from numalab.kinds import Kind

_PAGE = 11.6  # inches that the panels of a row may take
_PANEL = 1.9  # inches, at least
_LETTERS = 26


def kind_words(kind: Kind | None) -> str:
    """Return the label of a kind, or what to say when there is none."""
    return kind.label if kind else "kind not recorded"


def runs(n: int) -> str:
    """Return "1 run" or "3 runs"."""
    return f"{n} run{'s' * (n != 1)}"


def arrange(panels: int, width: float) -> tuple[int, int]:
    """Return columns and rows for so many panels, each `width` inches wide: few rows, and those of equal length."""
    most = max(1, int(_PAGE // width))
    rows = math.ceil(panels / most)
    return math.ceil(panels / rows), rows


def placement_figure(groups: Sequence[Group], labels: Sequence[str], *, title: str) -> Figure:
    """Return the picture of where page tables live: a panel per policy.

    Above, page-table pages per level × node (number, and in colour the share of its level's pages); below, on the
    same axis, the local and remote share of leaf entries as seen from each node (the metric of figure 4 of the Mitosis
    paper); with replicas, before and after.
    """
    with style.styled():
        nodes = max(len(group.first.nodes) for group in groups)
        panel = max(_PANEL, 0.5 * nodes + 0.3)
        columns, bands = arrange(len(groups), panel)
        width = columns * panel + 0.9
        figure = Figure(figsize=(width, bands * 3.9 + 0.8), layout=ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.08))
        heights = [1.25, 1.0] * bands
        axes = figure.subplots(2 * bands, columns, squeeze=False, height_ratios=heights)
        for number in range(bands * columns):
            band, column = divmod(number, columns)
            above, below = axes[2 * band][column], axes[2 * band + 1][column]
            if number >= len(groups):
                above.set_axis_off()
                below.set_axis_off()
                continue
            _heatmap(above, groups[number], labels[number], names=column == 0)
            share_bars.draw(below, groups[number], names=column == 0)
        _headline(figure, title, groups)
        legend = "leaf entries as seen from the node"
        if any(group.n > 1 for group in groups):
            legend += "\nmedians; in brackets, and as a line, smallest to largest where runs differ"
        figure.legend(
            handles=share_bars.keys(groups), loc="outside lower center", ncols=2, title=legend, title_fontsize=8
        )
    return figure


def _headline(figure: Figure, title: str, groups: Sequence[Group]) -> None:
    counts = sorted({group.n for group in groups})
    n = runs(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]} runs"
    kinds = " / ".join(dict.fromkeys(kind_words(group.first.kind) for group in groups))
    figure.suptitle(f"{title}\n{kinds}, {n} per policy", fontsize=10, fontweight="bold")


def _heatmap(axes: Axes, group: Group, label: str, *, names: bool) -> None:
    middle = np.median(group.pages, axis=0)[::-1]
    low, high = group.pages.min(axis=0)[::-1], group.pages.max(axis=0)[::-1]
    totals = middle.sum(axis=1, keepdims=True)
    share = np.divide(middle, totals, out=np.zeros_like(middle), where=totals > 0)
    colours = _page_colours()
    for (row, column), pages in np.ndenumerate(middle):
        colour = colours(0.08 + 0.72 * share[row, column]) if pages else "none"
        axes.add_patch(
            Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, facecolor=colour, edgecolor=style.FAINT, linewidth=0.4)
        )
        text = count_text(pages, low[row, column], high[row, column])
        ink = style.FAINT if not pages else _readable(colour)
        size = 8 if len(text) < 6 else 6.5
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=ink)
    axes.set_xlim(-0.55, middle.shape[1] - 0.45)
    axes.set_ylim(middle.shape[0] - 0.45, -0.55)
    share_bars.node_axis(axes, group.first.nodes)
    axes.set_yticks(range(middle.shape[0]), group.first.level_names[::-1] if names else [])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    trees = f" · {group.first.trees} trees" if group.first.trees > 1 else ""
    axes.set_title(f"{_short(label)}{trees}", fontsize=9)
    if names:
        axes.set_ylabel("page-table pages")


def _short(label: str) -> str:
    """A name cut to the width of a panel, its end kept: that is where names differ."""
    return "\n".join(line if len(line) <= _LETTERS else f"…{line[1 - _LETTERS :]}" for line in label.split("\n"))


def count_text(middle: float, low: float, high: float) -> str:
    """Return the median count, and its range when repeats differ: "12", "12 (11–13)" on two lines."""
    text = f"{middle:g}" if middle < 100_000 else f"{middle / 1000:.0f}k"
    return text if low == high else f"{text}\n({low:g}–{high:g})"


def _page_colours() -> LinearSegmentedColormap:
    return matplotlib.colormaps[style.PAGES]  # type: ignore[return-value]


def _readable(colour: Any) -> str:
    red, green, blue = colour[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "white"


def reference_figure(ours: Mapping[str, Group], published: Mapping[str, Sequence[float]], *, source: str) -> Figure:
    """Return our remote shares beside the published ones, node by node, on one scale."""
    with style.styled():
        with warnings.catch_warnings():  # a node from which nothing was seen in any run has no median, and no bar
            warnings.simplefilter("ignore", RuntimeWarning)
            rows = [(name, np.nanmedian(group.remote, axis=0), style.REMOTE) for name, group in ours.items()]
        theirs = [(name, np.asarray(shares), style.FAINT) for name, shares in published.items()]
        count = max(len(rows), len(theirs))
        figure = Figure(figsize=(8.2, 0.52 * count + 1.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        kinds = " / ".join(dict.fromkeys(kind_words(group.first.kind) for group in ours.values()))
        n = "/".join(str(number) for number in sorted({group.n for group in ours.values()}))
        _bars(left, rows, count, f"here: {kinds}\nn = {n}")
        _bars(right, theirs, count, "published: measured on hardware\nspread not given")
        figure.suptitle("Remote leaf page-table entries as seen from each node", fontsize=10, fontweight="bold")
        figure.supxlabel(source, fontsize=7)
    return figure


def _bars(axes: Axes, rows: Sequence[tuple[str, NDArray[np.float64], str]], count: int, title: str) -> None:
    for row, (_, shares, colour) in enumerate(rows):
        height = 0.8 / len(shares)
        for node, share in enumerate(shares):
            y = row - 0.4 + height * (node + 0.5)
            if np.isnan(share):
                axes.text(0.01, y, "NA", va="center", fontsize=6, color=style.FAINT)
                continue
            axes.barh(y, share, height * 0.86, color=colour)
            axes.text(share + 0.01, y, f"{share:.0%}", va="center", fontsize=6)
    axes.set_ylim(count - 0.45, -0.55)
    axes.set_xlim(0, 1.12)
    axes.set_xticks([0, 0.5, 1], ["0", "50%", "100%"])
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_title(title, fontsize=9)


def ratio_figure(comparisons: Sequence[Comparison], labels: Sequence[str], *, title: str) -> Figure:
    """Return a forest plot: the ratio to the baseline with its interval, the noise floor shaded.

    Raises:
        ExperimentError: one of them is wall time of an emulation, which is not drawn.
    """
    if any(each.kind is Kind.EMULATION_TIME for each in comparisons):
        raise ExperimentError("wall time of an emulation is not drawn as if it were a speed")
    with style.styled():
        figure = Figure(figsize=(7.2, 0.42 * len(comparisons) + 1.3), layout="constrained")
        axes = figure.subplots()
        for row, each in enumerate(comparisons):
            _ratio(axes, row, each)
        axes.axvline(1, color=style.INK, linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_ylim(len(comparisons) - 0.4, -0.6)
        axes.set_yticks(range(len(comparisons)), labels)
        axes.tick_params(axis="y", length=0)
        _ratio_ticks(axes, comparisons)
        axes.set_xlabel(
            "ratio of medians to the baseline, 95 % interval (grey: noise floor of the A/A run)", fontsize=8
        )
        kinds = " / ".join(dict.fromkeys(kind_words(each.kind) for each in comparisons))
        axes.set_title(f"{title}\n{kinds}", fontsize=10)
    return figure


def _ratio(axes: Axes, row: int, each: Comparison) -> None:
    ratio = each.ratio
    if each.floor is not None and each.floor.factor is not None:
        width = each.floor.factor - 1 / each.floor.factor
        axes.add_patch(
            Rectangle((1 / each.floor.factor, row - 0.4), width, 0.8, color=style.FAINT, alpha=0.3, linewidth=0)
        )
    if ratio.estimate is None or ratio.estimate <= 0:
        axes.text(1, row, "  NA", va="center", fontsize=8, color=style.FAINT)
        return
    if ratio.low is not None and ratio.high is not None and ratio.low > 0:
        axes.hlines(row, ratio.low, ratio.high, color=style.LOCAL, linewidth=2)
    axes.plot(ratio.estimate, row, "o", color=style.LOCAL, markersize=5)
    axes.annotate(
        f"n = {each.a.n}, {each.b.n}",
        (1, row),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=7,
        xytext=(4, 0),
        textcoords="offset points",
        annotation_clip=False,
    )


def _ratio_ticks(axes: Axes, comparisons: Sequence[Comparison]) -> None:
    numbers = [1.0]
    for each in comparisons:
        numbers += [v for v in (each.ratio.estimate, each.ratio.low, each.ratio.high) if v is not None and v > 0]
    low, high = min(numbers) / 1.08, max(numbers) * 1.08
    candidates = [
        0.01,
        0.02,
        0.05,
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
        1,
        1.1,
        1.2,
        1.3,
        1.5,
        1.75,
        2,
        2.5,
        3,
        4,
        5,
        7,
        10,
        20,
        50,
        100,
    ]
    ticks = [tick for tick in candidates if low <= tick <= high]
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [f"×{tick:g}" for tick in ticks])
    axes.minorticks_off()
