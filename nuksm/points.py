"""A run over time: the lines that a workload prints with `interval` (workloads/common/watch.h)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from numalab.errors import ExperimentError

PREFIX = "numalab-point: "

Point = dict[str, float]


def parse(stdout: str) -> list[Point]:
    """Return the points in a program's output, in their order; what a kernel does not count is not in them.

    Raises:
        ExperimentError: a point that is none.
    """
    return [_point(line) for line in stdout.splitlines() if line.startswith(PREFIX)]


def _point(line: str) -> Point:
    try:
        value: Any = json.loads(line.removeprefix(PREFIX))
        return {str(key): float(each) for key, each in value.items()}
    except (ValueError, TypeError, AttributeError):
        raise ExperimentError(f"not a point: {line!r}") from None


def of_cell(directory: Path, instance: int | None = None) -> list[Point]:
    """Return the points of a cell's program, or of one of its instances."""
    name = "stdout.txt" if instance is None else f"stdout-{instance}.txt"
    return parse((directory / name).read_text(errors="replace"))


def throughput(points: Sequence[Point]) -> list[tuple[float, float]]:
    """Return (seconds, work per second since the point before) for each point after the first.

    In emulation this is wall time of the emulation: the shape of a curve at best, never a speed.
    """
    return [
        (now["seconds"], (now["work"] - then["work"]) / (now["seconds"] - then["seconds"]))
        for then, now in pairwise(points)
        if now["seconds"] > then["seconds"]
    ]


def saved(points: Sequence[Point]) -> list[tuple[float, float]]:
    """Return (passes, pages saved) for each point that has both; see `nuksm.metrics.passes_to`."""
    return [
        (point["passes"], point["pages_sharing"]) for point in points if {"passes", "pages_sharing"} <= point.keys()
    ]


def share_on(points: Sequence[Point], node: int) -> list[tuple[float, float]]:
    """Return (seconds, share of the sampled pages on `node`) for each point with samples."""
    found = []
    for point in points:
        pages = {key: count for key, count in point.items() if key.startswith("node")}
        if total := sum(pages.values()):
            found.append((point["seconds"], pages.get(f"node{node}", 0.0) / total))
    return found
