"""The report: one self-contained HTML file about a result directory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from analysis import comparison_tables, dataset, pictures, provenance, selection, style, summary, tables
from analysis.comparison import Comparison
from analysis.dataset import Dataset
from analysis.files import write_file
from analysis.frames import POINT
from analysis.placement import grouped
from analysis.tables import Table
from numalab.errors import UserError
from numalab.kinds import Kind

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


def write(directory: Path, out: Path | None = None, *, figures: Path | None = None) -> tuple[Path, Dataset]:
    """Write the report about `directory` to `out` (default: report.html in it); returns path and data.

    With `figures`, every picture goes there as well, as PNG and as PDF.

    Raises:
        UserError: there are no results, or `out` cannot be written there.
        ExperimentError: all results are damaged, or the disk is full.
    """
    data = dataset.load(directory)
    target = out or directory / "report.html"
    if target.is_dir():
        raise UserError(f"{target}: is a directory", remedy="name a file with --out")
    shown = context(data)
    write_file(target, _render(shown))
    if figures:
        parts = [
            *shown["pictures"],
            shown["published"],
            *(p for part in shown["comparisons"] for p in part["pictures"]),
        ]
        for picture in (part for part in parts if part):
            write_file(figures / f"{picture.name}.png", style.to_png(picture.figure))
            write_file(figures / f"{picture.name}.pdf", style.to_pdf(picture.figure))
    return target, data


def render(data: Dataset) -> str:
    """Return the report as HTML."""
    return _render(context(data))


def _render(shown: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style_sheet = Markup((HERE / "report.css").read_text())  # ours, not data
    return environment.get_template("report.html").render(
        style_sheet=style_sheet, text_columns=tables.TEXT_COLUMNS, **shown
    )


def context(data: Dataset) -> dict[str, Any]:
    """Return everything the template shows."""
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
        "told": {
            "policy": data.spec("policies") or {},
            "workload": data.spec("workloads") or {},
            "interference": data.spec("interference") or {},
        },
        "kernels": provenance.kernels(data),
        "machines": provenance.machines(data),
        "kinds": _kinds(data),
        "glance": summary.glance(groups, data),
        "pictures": list(pictures.of_placement(groups, data)),
        "published": pictures.published(groups, data),
        "comparisons": list(_comparison_parts(data, policies)),
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


def _kinds(data: Dataset) -> list[tuple[Kind, int]]:
    counts = data.values["kind"].value_counts()
    return [(kind, int(counts.get(str(kind), 0))) for kind in Kind]


def _along(data: Dataset, axis: str) -> list[Comparison]:
    """Comparisons along an axis with the experiment's baseline; none when there is nothing beside it."""
    try:
        return selection.along(data, axis)
    except UserError:
        return []


def _comparison_parts(data: Dataset, policies: list[Comparison]) -> Iterator[dict[str, Any]]:
    """Per axis: tables and forest plots; the workloads' own metrics first, placement folded away."""
    for axis, made in (
        ("policy", policies),
        ("kernel", _along(data, "kernel") if len(data.axis("kernel")) > 1 else []),
    ):
        lead = selection.leading(data)
        own = _leading(lead, [each for each in made if each.source == "workload" or each.metric in lead])
        placed = [each for each in made if each.source == "placement" and each.metric not in lead]
        if not made:
            continue
        baseline = made[0].a.name
        means = selection.overall(own)
        moved, unchanged = selection.split_unchanged(own)
        yield {
            "axis": axis,
            "baseline": baseline,
            "pictures": pictures.of_ratios(own, axis),
            "own": comparison_tables.comparison_table(moved, title="Workload metrics") if moved else None,
            "unchanged": unchanged,
            "means": comparison_tables.overall_table(means) if means else None,
            "placed_short": comparison_tables.compact_tables(placed),
            "placed": comparison_tables.comparison_table(placed, title="Placement") if placed else None,
            "warnings": list(dict.fromkeys(f"{each.metric}: {line}" for each in own for line in each.warnings)),
            "repeats": selection.repeats_needed(own),
            "placebo": selection.has_placebo(data),
        }


def _leading(lead: list[str], comparisons: list[Comparison]) -> list[Comparison]:
    """Those of the metrics that the experiment leads with first, else in the order of the results."""
    return sorted(comparisons, key=lambda each: lead.index(each.metric) if each.metric in lead else len(lead))


def _metrics(data: Dataset) -> Table | None:
    frame = data.values
    own = (frame["source"] == "workload") & (frame["kind"] != Kind.EMULATION_TIME).fillna(True)
    own |= frame["metric"].isin(selection.leading(data))
    return tables.metric_table(data, frame[own], title="Metrics of the workloads") if own.any() else None


def _counters(data: Dataset) -> Table | None:
    frame = data.values
    chosen = selection.matching(frame["metric"], COUNTERS)
    rows = frame[frame["metric"].isin(chosen)]
    return tables.metric_table(data, rows, title="Counters around the whole run") if len(rows) else None
