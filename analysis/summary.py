"""What a run comes to, in short: placement policy by policy, how the cells ended; for terminal, report and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import tables
from analysis.dataset import PLACEBO, Dataset
from analysis.frames import POINT
from analysis.placement import Group, grouped
from analysis.tables import Table


def group_names(groups: Sequence[Group], data: Dataset) -> list[str]:
    """Return what to call each group: its policy, with the kernel in front where there are several."""
    several = len(data.axis("kernel")) > 1
    return [
        f"{group.point['kernel']}: {group.point['policy']}" if several else group.point["policy"] for group in groups
    ]


def ordered(groups: Sequence[Group], data: Dataset) -> list[Group]:
    """In the order of the experiment's matrix, without the A/A repetition."""
    places = {axis: {value: place for place, value in enumerate(data.axis(axis))} for axis in POINT}
    shown = [group for group in groups if group.point["policy"] != PLACEBO]
    return sorted(shown, key=lambda group: [places[axis][group.point[axis]] for axis in POINT])


def placement_sets(groups: Sequence[Group], data: Dataset) -> list[tuple[str, list[Group]]]:
    """Return the groups that belong in one picture, with its title: they differ in kernel and policy only."""
    sets: dict[tuple[Any, ...], list[Group]] = {}
    for group in ordered(groups, data):
        first = group.first
        point = group.point
        key = (point["workload"], point["topology"], point["interference"], group.mark, first.levels, first.nodes)
        sets.setdefault(key, []).append(group)
    marks = {group.mark for group in groups}
    found = []
    for (workload, topology, interference, mark, *_), members in sets.items():
        where = f" on {topology}" if len(data.axis("topology")) > 1 else ""
        where += f", interference {interference}" if len(data.axis("interference")) > 1 else ""
        when = f', at "{mark}"' if len(marks) > 1 else ""
        found.append((f"{workload}{where}{when}", members))
    return found


def glance(groups: Sequence[Group], data: Dataset) -> Table | None:
    """Return one row per policy: how many page-table pages, how remote; None without snapshots."""
    rows = []
    shown = ordered(groups, data)
    axes = ("workload", "topology", "interference")
    varying = [axis for axis in axes if len({group.point[axis] for group in shown}) > 1]
    varying += ["mark"] * (len({group.mark for group in shown}) > 1)
    for group, name in zip(shown, group_names(shown, data), strict=True):
        known = group.remote[~np.isnan(group.remote)]
        shares = [f"{share:.0%}" for share in (known.min(), known.max())] if known.size else [tables.NA]
        pages = [f"{total:,}" for total in np.sort(group.pages.sum(axis=(1, 2)))[[0, -1]]]
        where = [{**group.point, "mark": group.mark}[axis] for axis in varying]
        rows.append([name, *where, _span(pages), _span(shares), str(group.first.trees), str(group.n)])
    if not rows:
        return None
    kinds = tables.kinds_text(group.first.kind for group in shown)
    columns = ["policy", *varying, "page-table pages", "remote share, over nodes", "trees", "n"]
    return Table(f"At a glance ({kinds})", columns, rows, numbers=1 + len(varying))


def _span(ends: Sequence[str]) -> str:
    return ends[0] if ends[0] == ends[-1] else f"{ends[0]} – {ends[-1]}"


def terminal_tables(data: Dataset) -> list[Table]:
    """Return what the terminal shows: where page tables lived, policy by policy, and how the cells ended."""
    groups = grouped(data.placements)
    found = [
        tables.placement_table(members, group_names(members, data), title=title)
        for title, members in placement_sets(groups, data)
    ]
    short = glance(groups, data)
    return [*found, *([short] if short else []), tables.outcome_table(data)]


def _medians(shares: NDArray[np.float64]) -> list[float | None]:
    """By node, over the runs; None where all of them lack it."""
    return [None if np.isnan(each).all() else float(np.nanmedian(each)) for each in shares.T]


def as_json(data: Dataset) -> dict[str, Any]:
    """Return the same as plain JSON values: medians over repeats, with n and kind."""
    groups = ordered(grouped(data.placements), data)
    return {
        "cells": len(data.results),
        "failed": int((~data.outcomes["ok"].astype(bool)).sum()),
        "waiting": data.waiting,
        "corrupt": [str(error.path) for error in data.corrupt],
        "placement": [
            {
                **group.point,
                "mark": group.mark,
                "kind": group.first.kind,
                "n": group.n,
                "trees": group.first.trees,
                "nodes": list(group.first.nodes),
                "levels": list(group.first.level_names),
                "table_pages": np.median(group.pages, axis=0).tolist(),
                "replica_pages": np.median(group.replicas, axis=0).tolist(),
                "remote_share": _medians(group.remote),
                "remote_share_of_primary": _medians(group.before),
                "unfilled_share": _medians(group.unfilled),
            }
            for group in groups
        ],
        "outcomes": data.outcomes["outcome"].value_counts().to_dict(),
    }
