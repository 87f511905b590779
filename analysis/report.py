"""The report: one self-contained HTML file about a result directory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis import (
    comparison_tables,
    dataset,
    plots,
    provenance,
    reference,
    selection,
    statistics,
    style,
    summary,
    tables,
)
from analysis.comparison import Comparison
from analysis.dataset import Dataset
from analysis.frames import POINT
from analysis.placement import Group, grouped
from analysis.tables import Table
from numalab.errors import ExperimentError, UserError
from numalab.kinds import Kind
from numalab.paths import write_atomic

HERE = Path(__file__).resolve().parent
#: Counters shown in the report; all of them are in the result files and in `numalab export`.
COUNTERS = (
    "vmstat:pgfault",
    "vmstat:pgmajfault",
    "vmstat:numa_*",
    "vmstat:pgmigrate_*",
    "vmstat:thp_fault_alloc",
    "perf:*",
)
#: More panels than this in one picture and nobody sees anything.
_PANELS = 16
#: The experiment's leading metrics come first; the tables have the others.
_FORESTS = 6


@dataclass(frozen=True)
class Picture:
    """A figure and the table of its numbers."""

    svg: Markup
    caption: str
    table: Table | None = None


def write(directory: Path, out: Path | None = None) -> tuple[Path, Dataset]:
    """Write the report about `directory` to `out` (default: report.html in it); returns path and data.

    Raises:
        UserError: there are no results, or `out` cannot be written there.
        ExperimentError: all results are damaged.
    """
    data = dataset.load(directory)
    target = out or directory / "report.html"
    if target.is_dir():
        raise UserError(f"{target}: is a directory", remedy="name a file with --out")
    try:
        write_atomic(target, render(data))
    except (IsADirectoryError, NotADirectoryError, PermissionError, FileExistsError) as error:
        raise UserError(f"{target}: {error.strerror}", remedy="name another file with --out") from error
    except OSError as error:
        raise ExperimentError(f"{target}: {error.strerror}") from error
    return target, data


def render(data: Dataset) -> str:
    """Return the report as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style_sheet = Markup((HERE / "report.css").read_text())  # ours, not data
    return environment.get_template("report.html").render(
        style_sheet=style_sheet, text_columns=tables.TEXT_COLUMNS, **context(data)
    )


def context(data: Dataset) -> dict[str, Any]:
    """Return everything the template shows."""
    names = count(1)
    groups = grouped(data.placements)
    policies = _along(data, "policy")
    experiment = data.experiment or {}
    started = [str(result["started"]) for result in data.results]
    return {
        "name": experiment.get("name") or data.results[0]["cell"]["experiment"],
        "title": data.spec("title") or "",
        "directory": data.name,
        "seed": experiment.get("seed", tables.NA),
        "cells": len(data.results),
        "failed": int((~data.outcomes["ok"].astype(bool)).sum()),
        "waiting": data.waiting,
        "corrupt": data.corrupt,
        "first": _when(min(started)),
        "last": _when(max(started)),
        "host_seconds": round(sum(float(result["seconds"]) for result in data.results)),
        "made": _when(datetime.now(UTC).isoformat()),
        "axes": {axis: data.axis(axis) for axis in POINT},
        "told": {"policy": data.spec("policies") or {}, "workload": data.spec("workloads") or {}},
        "kernels": provenance.kernels(data),
        "machines": provenance.machines(data),
        "kinds": _kinds(data),
        "glance": summary.glance(groups, data),
        "pictures": list(_placement_pictures(groups, data, names)),
        "published": _published(groups, data, names),
        "comparisons": list(_comparison_parts(data, policies, names)),
        "metrics": _metrics(data),
        "counters": _counters(data),
        "outcomes": tables.outcome_table(data),
        "ended_badly": [result for result in data.results if not dataset.succeeded(result)],
        "wall_time": tables.wall_time_table(data),
        "provenance": provenance.collect(data),
        "whole_run": provenance.whole_run(data),
    }


def _when(text: str) -> str:
    """An ISO 8601 time for people, in UTC; text that is none stays as it is."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return text


def _svg(figure: Figure, names: Iterator[int], label: str) -> Markup:
    # Text in it is escaped by matplotlib; ids are made unique by the name.
    return Markup(style.to_svg(figure, name=f"figure{next(names)}", label=label))


def _kinds(data: Dataset) -> list[tuple[Kind, int]]:
    counts = data.values["kind"].value_counts()
    return [(kind, int(counts.get(str(kind), 0))) for kind in Kind]


def _placement_pictures(groups: Sequence[Group], data: Dataset, names: Iterator[int]) -> Iterator[Picture]:
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
            yield Picture(_svg(figure, names, caption), caption, table if last else None)


def _published(groups: Sequence[Group], data: Dataset, names: Iterator[int]) -> Picture | None:
    """Our remote shares beside figure 4 of the Mitosis paper, for machines of as many nodes as its own."""
    known = reference.remote_shares()
    nodes = len(next(iter(known.values())))
    shown = [group for group in summary.ordered(groups, data) if len(group.first.nodes) == nodes]
    shown = [group for group in shown if group.mark == shown[0].mark][:_PANELS]
    if not shown:
        return None
    ours = {
        f"{group.point['workload']} · {name}"
        + (f" · {group.point['topology']}" if len(data.axis("topology")) > 1 else ""): group
        for group, name in zip(shown, summary.group_names(shown, data), strict=True)
    }
    here = {group.point["workload"].lower() for group in shown}
    ranked = dict(sorted(known.items(), key=lambda entry: entry[0].lower() not in here))
    figure = plots.reference_figure(ours, ranked, source=reference.MITOSIS_FIGURE_4.source)
    caption = (
        "Remote leaf page-table entries as seen from each node (four bars: nodes 0 to 3). Left, these results; right, "
        f"{reference.MITOSIS_FIGURE_4.source}. The metric is the same; sizes of machine, memory and programs are not."
    )
    return Picture(_svg(figure, names, caption), caption)


def _along(data: Dataset, axis: str) -> list[Comparison]:
    """Comparisons along an axis with the experiment's baseline; none when there is nothing beside it."""
    try:
        return selection.along(data, axis)
    except UserError:
        return []


def _comparison_parts(data: Dataset, policies: list[Comparison], names: Iterator[int]) -> Iterator[dict[str, Any]]:
    """Per axis: tables and forest plots; the workloads' own metrics first, placement folded away."""
    for axis, made in (
        ("policy", policies),
        ("kernel", _along(data, "kernel") if len(data.axis("kernel")) > 1 else []),
    ):
        own = _leading(data, [each for each in made if each.source == "workload"])
        placed = [each for each in made if each.source == "placement"]
        if not made:
            continue
        baseline = made[0].a.name
        means = selection.overall(own)
        moved, unchanged = selection.split_unchanged(own)
        yield {
            "axis": axis,
            "baseline": baseline,
            "pictures": [_forest(metric, own, baseline, names) for metric in _drawn(own)],
            "own": comparison_tables.comparison_table(moved, title="Workload metrics") if moved else None,
            "unchanged": unchanged,
            "means": comparison_tables.overall_table(means) if means else None,
            "placed_short": comparison_tables.compact_tables(placed),
            "placed": comparison_tables.comparison_table(placed, title="Placement") if placed else None,
            "warnings": list(dict.fromkeys(f"{each.metric}: {line}" for each in own for line in each.warnings)),
            "repeats": selection.repeats_needed(own),
            "placebo": bool(selection.noise_floors(data)),
        }


def _leading(data: Dataset, comparisons: list[Comparison]) -> list[Comparison]:
    """Those of the metrics that the experiment leads with first, else in the order of the results."""
    lead = list((data.spec("measure") or {}).get("metrics") or [])
    return sorted(comparisons, key=lambda each: lead.index(each.metric) if each.metric in lead else len(lead))


def _drawn(comparisons: Sequence[Comparison]) -> list[str]:
    """The metrics whose ratios have an interval to be seen; those without spread are plain in the table."""
    good = (
        each.metric
        for each in comparisons
        if each.kind and each.ratio.low is not None and each.ratio.method != statistics.NO_SPREAD
    )
    return list(dict.fromkeys(good))[:_FORESTS]


def _forest(metric: str, comparisons: Sequence[Comparison], baseline: str, names: Iterator[int]) -> Picture:
    rows = [each for each in comparisons if each.metric == metric and each.kind and each.ratio.estimate is not None]
    varying = [axis for axis in POINT if len({each.point.get(axis) for each in rows}) > 1]
    labels = [" · ".join([each.b.name, *(each.point[axis] for axis in varying)]) for each in rows]
    figure = plots.ratio_figure(rows, labels, title=f"{metric}: ratio to {baseline}")
    sizes = tables.count_range([n for each in rows for n in (each.a.n, each.b.n)])
    caption = (
        f"{metric} against {baseline} ({tables.kinds_text(each.kind for each in rows)}, {sizes} per side): "
        "ratio of medians, 95 % bootstrap interval."
    )
    return Picture(_svg(figure, names, caption), caption)


def _metrics(data: Dataset) -> Table | None:
    frame = data.values
    own = (frame["source"] == "workload") & (frame["kind"] != Kind.EMULATION_TIME).fillna(True)
    return tables.metric_table(data, frame[own], title="Metrics of the workloads") if own.any() else None


def _counters(data: Dataset) -> Table | None:
    frame = data.values
    chosen = selection.matching(frame["metric"], COUNTERS)
    rows = frame[frame["metric"].isin(chosen)]
    return tables.metric_table(data, rows, title="Counters around the whole run") if len(rows) else None
