"""The tables of the report and of the terminal, as plain text cells; missing values are "NA"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import statistics
from analysis.dataset import Dataset
from analysis.frames import POINT, known_words
from analysis.placement import Group
from analysis.statistics import Interval
from numalab.kinds import Kind

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

NA = "NA"
#: Columns of words even where they follow numbers.
TEXT_COLUMNS = ("finding", "kind", "note")


_REPLICAS = (
    " With replicas: before is what CPUs would see if all of them walked the primary, after what a walk finds in the"
    " tree they do walk; not yet filled is the share of the primary's entries that a first touch will bring into it."
)
_LARGE = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: with the kind of its numbers and n where it has any.
        columns: headings.
        rows: cells; every row as long as `columns`.
        numbers: from this column on, cells are numbers (aligned right).
        note: what a reader must know.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    numbers: int = 1
    note: str = ""
    breaks: frozenset[int] = field(default_factory=frozenset)

    def show(self, console: Console) -> None:
        """Print it on a terminal: title, table, note."""
        console.print(self.title, style="bold", markup=False, highlight=False)
        console.print(self.to_rich())
        if self.note:
            console.print(self.note, style="italic", markup=False, highlight=False)
        console.print()

    def to_rich(self) -> RichTable:
        """Return the table alone for a terminal."""
        from rich import box
        from rich.markup import escape
        from rich.table import Table as Rich

        made = Rich(
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        for place, heading in enumerate(self.columns):
            right = place >= self.numbers and heading not in TEXT_COLUMNS
            made.add_column(
                escape(heading),
                justify="right" if right else "left",
                overflow="fold",
                no_wrap=place < self.numbers,
            )
        for number, row in enumerate(self.rows):
            made.add_row(*(escape(cell) for cell in row), end_section=number + 1 in self.breaks)
        return made


def value_text(value: float | None, unit: str = "") -> str:
    """Return a value with about four significant digits; a share in per cent; "NA" when missing."""
    if value is None or pd.isna(value):
        return NA
    if unit == "share":
        return f"{value:.1%}"
    size = abs(value)
    if size >= 1e6:
        factor, letter = next(pair for pair in _LARGE if size >= pair[0])
        text = f"{value / factor:.4g}{letter}"
    elif size >= 1000 or float(value).is_integer():
        text = f"{value:,.0f}"
    else:
        text = f"{value:.4g}"
    return f"{text} {unit}".rstrip()


def interval_text(interval: Interval, unit: str = "") -> str:
    """Return the bounds in brackets, "none" for samples without spread, "NA" when there are none."""
    if interval.method == statistics.NO_SPREAD:
        return "no spread"
    if interval.low is None or interval.high is None:
        return NA
    return f"[{value_text(interval.low, unit)}, {value_text(interval.high, unit)}]"


def kinds_text(kinds: Iterable[Kind | None]) -> str:
    """Return the labels of the kinds, each once."""
    return " / ".join(dict.fromkeys(kind.label if kind else "kind not recorded" for kind in kinds))


def count_range(counts: Iterable[int]) -> str:
    """Return "n = 3" or "n = 2 to 3"."""
    seen = sorted(set(counts))
    return f"n = {seen[0]}" if len(seen) == 1 else f"n = {seen[0]} to {seen[-1]}"


def placement_table(groups: Sequence[Group], names: Sequence[str], *, title: str) -> Table:
    """Return page-table pages per level × node and the remote share from each node, policy by policy.

    Cells are medians over the repeats, with the range where repeats differ.
    """
    nodes = groups[0].first.nodes
    rows: list[list[str]] = []
    breaks = set()
    for group, name in zip(groups, names, strict=True):
        for level in reversed(range(group.first.levels)):
            pages = group.pages[:, level, :]
            head = name if level == group.first.levels - 1 else ""
            cells = [_counts(pages[:, column]) for column in range(len(nodes))]
            rows.append([head, group.first.level_names[level], *cells, _counts(pages.sum(axis=1))])
        if group.replicated:
            of_them = group.replicas.sum(axis=1)
            cells = [_counts(of_them[:, column]) for column in range(len(nodes))]
            rows.append(["", "of them replicas", *cells, _counts(of_them.sum(axis=1))])
            rows.append(["", "remote share before", *_share_cells(group.before), ""])
            rows.append(["", "remote share after", *_share_cells(group.remote), ""])
            rows.append(["", "not yet filled", *_share_cells(group.unfilled), ""])
        else:
            rows.append(["", "remote share", *_share_cells(group.remote), ""])
        breaks.add(len(rows))
    kinds = kinds_text(group.first.kind for group in groups)
    return Table(
        f"{title}: page-table pages per level and node, and the remote share of leaf entries as seen from each node "
        f"({kinds}, {count_range(group.n for group in groups)})",
        ["policy", "level", *(f"node {node}" for node in nodes), "all"],
        rows,
        numbers=2,
        note="Medians over the runs; (smallest–largest) where runs differ."
        + (_REPLICAS if any(group.replicated for group in groups) else ""),
        breaks=frozenset(breaks),
    )


def _counts(values: Any) -> str:
    low, high = int(values.min()), int(values.max())
    middle = f"{float(np.median(values)):,g}"
    return middle if low == high else f"{middle} ({low:,}–{high:,})"


def _share_cells(shares: NDArray[np.float64]) -> list[str]:
    return [_shares(of_node) for of_node in shares.T]


def _shares(values: Any) -> str:
    known = values[~np.isnan(values)]
    if not len(known):
        return NA
    if np.ptp(known) < 5e-4:
        return f"{np.median(known):.1%}"
    return f"{np.median(known):.0%} ({100 * known.min():.0f}–{100 * known.max():.0f})"


def metric_table(data: Dataset, rows: pd.DataFrame, *, title: str) -> Table:
    """Return the median and its interval of every metric in `rows` (of `Dataset.values`), point by point."""
    axes = [axis for axis in POINT if len(data.axis(axis)) > 1] or ["policy"]
    good = rows[rows["ok"].fillna(False).astype(bool)]
    found = []
    for key, group in good.groupby(["metric", *axes, "unit", "kind"], dropna=False, sort=False):
        metric, *point, unit, kind = known_words(key)
        values = statistics.clean([None if pd.isna(value) else float(value) for value in group["value"]])
        middle = statistics.centre_interval(values)
        missing = int(group["value"].isna().sum())
        found.append(
            [
                metric,
                *point,
                value_text(middle.estimate, unit),
                interval_text(middle, unit),
                f"{len(values)}{f' (+{missing} NA)' if missing else ''}",
                kinds_text([Kind(kind) if kind else None]),
            ]
        )
    order = {name: place for place, name in enumerate(dict.fromkeys(row[0] for row in found))}
    found.sort(key=lambda row: order[row[0]])
    return Table(
        title,
        ["metric", *axes, "median", "95 % interval", "n", "kind"],
        found,
        numbers=1 + len(axes),
        note="Bootstrap intervals of the median (BCa from n = 10 on, expanded percentile below). NA: missing.",
    )


def wall_time_table(data: Dataset) -> Table | None:
    """Return what was timed in emulation, plainly labelled; None when there is nothing of the kind."""
    rows = data.values[(data.values["kind"] == Kind.EMULATION_TIME).fillna(False)]
    if rows.empty:
        return None
    axes = [axis for axis in POINT if len(data.axis(axis)) > 1] or ["policy"]
    found = []
    for key, group in rows.groupby(["metric", *axes, "unit"], dropna=False, sort=False):
        metric, *point, unit = known_words(key)
        values = group["value"].dropna().astype(float)
        span = [value_text(v) for v in (values.min(), values.median(), values.max())] if len(values) else [NA] * 3
        found.append([metric, *point, *span, unit, str(len(values))])
    return Table(
        "Wall time of the emulation",
        ["metric", *axes, "smallest", "median", "largest", "unit", "n"],
        found,
        numbers=1 + len(axes),
        note="How fast the emulator ran on this host. These numbers are not the speed of the system under study "
        "and are neither compared nor plotted.",
    )


def outcome_table(data: Dataset) -> Table:
    """Return how many cells of each point ended how."""
    frame = data.outcomes
    axes = [axis for axis in POINT if len(data.axis(axis)) > 1] or ["policy"]
    ends = (
        frame["outcome"]
        .where(frame["ok"].astype(bool), frame["outcome"].replace("exit", "exit ≠ 0"))
        .where(~frame["ok"].astype(bool), "ok")
    )
    kinds = ["ok", *sorted(set(ends) - {"ok"})]
    found = []
    for key, group in ends.groupby([frame[axis] for axis in axes], sort=False):
        counts = group.value_counts()
        found.append([*known_words(key), *(str(counts.get(kind, 0)) for kind in kinds), str(len(group))])
    return Table("How the cells ended", [*axes, *kinds, "cells"], found, numbers=len(axes))
