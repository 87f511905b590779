"""Comparisons as tables: in full for the report, compact for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis import comparison
from analysis.comparison import Comparison
from analysis.frames import POINT
from analysis.selection import Overall
from analysis.statistics import Floats
from analysis.tables import NA, Table, kinds_text, value_text

HOW_TO_READ = (
    "Ratios (for shares: differences) of medians with 95 % bootstrap interval; p: Mann-Whitney U, two-sided, adjusted "
    "for the number of comparisons (Holm); n: runs of A, of B; noise floor: what an A/A repetition cannot exclude."
)


#: Between the mark and the node in the name of a remote share.
_SHARE = ":remote_share:"


def comparison_table(comparisons: Sequence[Comparison], *, title: str) -> Table:
    """Return comparisons, one a row: medians, effect with interval, rank test, n, noise floor, finding."""
    axes = [axis for axis in POINT if len({each.point[axis] for each in comparisons if axis in each.point}) > 1]
    sides = len({each.b.name for each in comparisons}) > 1
    found = []
    for each in comparisons:
        found.append(
            [
                f"{each.metric} ({each.unit})" if each.unit else each.metric,
                *(each.point.get(axis, "") for axis in axes),
                *([each.b.name] if sides else []),
                value_text(_median(each.a.values), _bare(each.unit)),
                value_text(_median(each.b.values), _bare(each.unit)),
                comparison.effect_text(each),
                NA if each.p_adjusted is None else f"{each.p_adjusted:.2g}",
                NA if each.delta is None else f"{each.delta:+.2f}",
                f"{each.a.n}, {each.b.n}",
                _floor_text(each),
                f"{each.finding}: {each.reason}" if each.reason else str(each.finding),
            ]
        )
    head = ["metric", *axes, *(["B"] if sides else [])]
    names = " and ".join(sorted({each.b.name for each in comparisons})) if not sides else "B"
    baseline = " and ".join(dict.fromkeys(each.a.name for each in comparisons))
    kinds = " / ".join(dict.fromkeys(each.kind_label for each in comparisons))
    return Table(
        f"{title} ({kinds}); A is {baseline}{'' if sides else f', B is {names}'}",
        [*head, "A", "value of B", "B against A", "p", "Cliff's δ", "n", "noise floor", "finding"],
        found,
        numbers=len(head),
        note=HOW_TO_READ,
    )


def compact_tables(comparisons: Sequence[Comparison]) -> list[Table]:
    """Return the same for a terminal of 80 columns: a table per metric, reasons as numbered notes.

    Remote shares, which come node by node, stand side by side.
    """
    metrics = dict.fromkeys(each.metric for each in comparisons if _SHARE not in each.metric)
    marks = dict.fromkeys(each.metric.partition(_SHARE)[0] for each in comparisons if _SHARE in each.metric)
    heads = _Heads(comparisons)
    return [
        *(_metric_table([each for each in comparisons if each.metric == metric], heads) for metric in metrics),
        *(_share_table([c for c in comparisons if c.metric.startswith(f"{mark}{_SHARE}")], heads) for mark in marks),
    ]


class _Heads:
    """The columns that say what a row compares: the axes that vary, and B where there are several."""

    def __init__(self, comparisons: Sequence[Comparison]) -> None:
        self.axes = [axis for axis in POINT if len({c.point[axis] for c in comparisons if axis in c.point}) > 1]
        names = list(dict.fromkeys(each.b.name for each in comparisons))
        self.one = names[0] if len(names) == 1 else ""
        self.columns = [*self.axes, *([] if self.one else ["B"])]

    def row(self, each: Comparison) -> list[str]:
        return [*(each.point.get(axis, "") for axis in self.axes), *([] if self.one else [each.b.name])]

    def sides(self, group: Sequence[Comparison]) -> str:
        kinds = " / ".join(dict.fromkeys(each.kind_label for each in group))
        return f"({kinds})\nA: {group[0].a.name}{f'; B: {self.one}' if self.one else ''}"


def _metric_table(group: Sequence[Comparison], heads: _Heads) -> Table:
    notes: dict[str, int] = {}
    rows = []
    for each in group:
        mark = f" [{notes.setdefault(each.reason, len(notes) + 1)}]" if each.reason else ""
        rows.append(
            [
                *heads.row(each),
                value_text(_median(each.a.values), _bare(each.unit)),
                value_text(_median(each.b.values), _bare(each.unit)),
                comparison.effect_text(each),
                NA if each.p_adjusted is None else f"{each.p_adjusted:.2g}",
                f"{each.a.n}, {each.b.n}",
                f"{each.finding}{mark}",
            ]
        )
    first = group[0]
    floors = dict.fromkeys(_floor_text(each) for each in group)
    noise = f"; noise floor {' / '.join(floors)}" if list(floors) != [NA] else ""
    unit = f" in {first.unit}" if first.unit and first.unit != "share" else ""
    effect = "B - A" if first.unit == "share" or all(each.ratio.estimate is None for each in group) else "B / A"
    return Table(
        f"{first.metric}{unit} {heads.sides(group)}{noise}",
        [*heads.columns, "median A", "median B", effect, "p", "n", "finding"],
        rows,
        numbers=len(heads.columns),
        note="\n".join(f"[{number}] {reason}" for reason, number in notes.items()),
    )


def _share_table(group: Sequence[Comparison], heads: _Heads) -> Table:
    nodes = list(dict.fromkeys(each.metric.partition(_SHARE)[2] for each in group))
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for each in group:
        ends = [_percent(side.values) for side in (each.a, each.b)]
        rows.setdefault(tuple(heads.row(each)), {})[each.metric.partition(_SHARE)[2]] = " → ".join(dict.fromkeys(ends))
    return Table(
        f"{group[0].metric.partition(':')[0]}: remote share of leaf entries, A → B {heads.sides(group)}",
        [*heads.columns, *nodes],
        [[*key, *(values.get(node, NA) for node in nodes)] for key, values in rows.items()],
        numbers=len(heads.columns),
        note="Medians over the runs; one number where both sides have the same.",
    )


def _percent(values: Floats) -> str:
    return f"{np.median(values):.0%}" if len(values) else NA


def _bare(unit: str) -> str:
    """The unit a cell needs when its row names the unit already."""
    return unit if unit == "share" else ""


def _floor_text(each: Comparison) -> str:
    if each.floor is None:
        return NA
    if each.unit == "share" or each.floor.factor is None:
        return comparison.size_text(each.floor.difference, each.unit)
    return f"×{each.floor.factor:.3g}"


def _median(values: Floats) -> float | None:
    return float(np.median(values)) if len(values) else None


def overall_table(means: Sequence[Overall]) -> Table:
    """Return the geometric means over workloads."""
    rows = [
        [each.metric, each.name, ", ".join(each.workloads), comparison.factor_text(each.ratio), each.ratio.note]
        for each in means
    ]
    kinds = kinds_text(each.kind for each in means)
    return Table(
        f"Geometric mean over workloads, 95 % interval ({kinds})",
        ["metric", "B", "workloads", "ratio to the baseline", "note"],
        rows,
        numbers=5,
    )
