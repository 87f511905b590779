"""Runs over time: what each process has done, and what part of its pages lay on its node, from the points it printed.

Throughput has the kind of the machine it was seen on: in emulation it is wall time of the emulation, the shape of a
curve at best. Where pages lie is exact for the pages that were sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from nuksm import points
from numalab.errors import ExperimentError
from numalab.kinds import Kind
from numalab.results import CELLS, Json, load_results, succeeded


@dataclass(frozen=True)
class Series:
    """One process over time.

    Attributes:
        kernel, workload, policy, repeat: the place of its cell in the matrix.
        instance, node, nice: which process it is, where it runs, and its priority.
        kind: of its throughput.
        throughput: (seconds, work per second since the point before).
        local: (seconds, share of its sampled pages on its node).
    """

    kernel: str
    workload: str
    policy: str
    repeat: int
    instance: int
    node: int
    nice: int
    kind: Kind
    throughput: tuple[tuple[float, float], ...]
    local: tuple[tuple[float, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "kind": self.kind.value}

    def rows(self) -> list[tuple[float, float | None, float | None]]:
        """(seconds, work per second, local share) of each moment; None: not known then."""
        work, local = dict(self.throughput), dict(self.local)
        return [(at, work.get(at), local.get(at)) for at in sorted(work.keys() | local.keys())]


def series_in(directory: Path) -> list[Series]:
    """Return the processes of a result directory that have printed points.

    Raises:
        ExperimentError: a point that is none.
        UserError: there are no results in it.
    """
    found = []
    for result in load_results(directory).results:
        for one in result.get("instances", []) if succeeded(result) else []:
            try:
                seen = points.of_cell(directory / CELLS / result["cell"]["id"], one["instance"])
            except OSError:
                continue
            if seen:
                found.append(_series(result["cell"], one, seen))
    return sorted(found, key=lambda each: (each.kernel, each.workload, each.policy, each.repeat, each.instance))


def _series(cell: Json, one: Json, seen: Sequence[points.Point]) -> Series:
    return Series(
        cell["kernel"],
        cell["workload"],
        cell["policy"],
        cell["repeat"],
        one["instance"],
        one["node"],
        one["nice"],
        _kind(one),
        tuple(points.throughput(seen)),
        tuple(points.share_on(seen, one["node"])),
    )


def _kind(one: Json) -> Kind:
    """The kind of its times, by that of those it reports itself."""
    kinds = {sample["kind"] for sample in one["samples"]}
    timed = [kind for kind in (Kind.EMULATION_TIME, Kind.MEASURED) if kind.value in kinds]
    if not timed:
        raise ExperimentError(f"instance {one['instance']} does not say of what kind its times are")
    return timed[0]


def table(series: Sequence[Series]) -> Table:
    """Return the table people read: one row for each process and moment."""
    kinds = ", ".join(sorted({each.kind.label for each in series}))
    made = Table(title=f"Over time; throughput: {kinds or 'no points'}")
    for head in ("kernel", "workload", "policy", "repeat", "instance", "nice"):
        made.add_column(head)
    for head in ("seconds", "work per second", "pages on its node"):
        made.add_column(head, justify="right")
    for each in series:
        for seconds, work, local in each.rows():
            made.add_row(
                *(each.kernel, each.workload, each.policy, str(each.repeat)),
                f"{each.instance} on node {each.node}",
                str(each.nice),
                f"{seconds:.2f}",
                "missing" if work is None else f"{work:,.0f}",
                "missing" if local is None else f"{local:.2f}",
            )
    return made
