"""The report's pictures: which figures there are, with what caption, and the table of their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.figure import Figure

from analysis import plots, reference, statistics, style, summary, tables
from analysis.comparison import Comparison
from analysis.dataset import Dataset
from analysis.frames import POINT
from analysis.placement import Group
from analysis.tables import Table

#: More panels than this in one picture and nobody sees anything.
_PANELS = 16
#: The experiment's leading metrics come first; the tables have the others.
_FORESTS = 6


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure and the table of its numbers; `name` is unique in a report and fit for a file."""

    name: str
    figure: Figure
    caption: str
    table: Table | None = None

    @property
    def svg(self) -> Markup:
        """The figure as an `<svg>` element; text in it is escaped by matplotlib."""
        return Markup(style.to_svg(self.figure, name=self.name, label=self.caption))


def slug(*words: str) -> str:
    """Return words as one name of letters, digits, "-", "_" and "."."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", "-".join(filter(None, words))).strip("-")


def of_placement(groups: Sequence[Group], data: Dataset) -> Iterator[Picture]:
    """Yield where page tables lived: a panel per kernel and policy, a picture per point of the other axes and mark."""
    for title, members in summary.placement_sets(groups, data):
        labels = summary.group_names(members, data)
        table = tables.placement_table(members, labels, title=title)
        for first in range(0, len(members), _PANELS):
            shown = slice(first, first + _PANELS)
            heads = [label.replace(": ", ":\n", 1) for label in labels[shown]]
            figure = plots.placement_figure(members[shown], heads, title=f"Where the page tables of {title} live")
            caption = (
                f"{title}: page-table pages per level and node (number; colour: share of its level), and the local "
                "and remote share of leaf entries as seen from each node "
                f"({tables.kinds_text(g.first.kind for g in members)}, "
                f"{tables.count_range(g.n for g in members)} per policy)."
            )
            last = first + _PANELS >= len(members)
            yield Picture(slug("placement", title, str(first or "")), figure, caption, table if last else None)


def published(groups: Sequence[Group], data: Dataset) -> Picture | None:
    """Our remote shares beside figure 4 of the Mitosis paper, for machines of as many nodes as its own."""
    known = reference.remote_shares()
    nodes = len(next(iter(known.values())))
    shown = [group for group in summary.ordered(groups, data) if len(group.first.nodes) == nodes]
    shown = [group for group in shown if group.mark == shown[0].mark][:_PANELS]
    if not shown:
        return None
    ours = {
        f"{group.point['workload']} · {name}"
        + "".join(f" · {group.point[axis]}" for axis in ("topology", "interference") if len(data.axis(axis)) > 1): group
        for group, name in zip(shown, summary.group_names(shown, data), strict=True)
    }
    here = {group.point["workload"].lower() for group in shown}
    ranked = dict(sorted(known.items(), key=lambda entry: entry[0].lower() not in here))
    figure = plots.reference_figure(ours, ranked, source=reference.MITOSIS_FIGURE_4.source)
    caption = (
        "Remote leaf page-table entries as seen from each node (four bars: nodes 0 to 3). Left, these results; right, "
        f"{reference.MITOSIS_FIGURE_4.source}. The metric is the same; sizes of machine, memory and programs are not."
    )
    return Picture("published-figure-4", figure, caption)


def of_ratios(comparisons: Sequence[Comparison], axis: str) -> list[Picture]:
    """Return a forest plot for each metric whose ratios have an interval to be seen, the first few of them."""
    return [_forest(metric, comparisons, axis) for metric in _drawn(comparisons)]


def _drawn(comparisons: Sequence[Comparison]) -> list[str]:
    """The metrics whose ratios have an interval to be seen; those without spread are plain in the table."""
    good = (
        each.metric
        for each in comparisons
        if each.kind and each.ratio.low is not None and each.ratio.method != statistics.NO_SPREAD
    )
    return list(dict.fromkeys(good))[:_FORESTS]


def _forest(metric: str, comparisons: Sequence[Comparison], axis: str) -> Picture:
    baseline = comparisons[0].a.name
    rows = [each for each in comparisons if each.metric == metric and each.kind and each.ratio.estimate is not None]
    varying = [axis for axis in POINT if len({each.point.get(axis) for each in rows}) > 1]
    labels = [" · ".join([each.b.name, *(each.point[axis] for axis in varying)]) for each in rows]
    figure = plots.ratio_figure(rows, labels, title=f"{metric}: ratio to {baseline}")
    sizes = tables.count_range([n for each in rows for n in (each.a.n, each.b.n)])
    caption = (
        f"{metric} against {baseline} ({tables.kinds_text(each.kind for each in rows)}, {sizes} per side): "
        "ratio of medians, 95 % bootstrap interval."
    )
    return Picture(slug("ratio", axis, metric), figure, caption)
