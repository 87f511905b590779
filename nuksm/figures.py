"""Tables of a run: whose node merged pages lie on, whether that is fair, what is saved, and how soon.

    python -m nuksm.figures results/orders-2026-11-21

Reads result directories only. A value that is not there is missing, never 0. Shares and savings are counts, exact in
emulation; throughput is in no table, because there it is none.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from nuksm import metrics, points
from nuksm.metrics import Savings
from numalab.cli.console import table_console
from numalab.cli.main import execute
from numalab.errors import ExperimentError
from numalab.results import CELLS, Json, load_results, succeeded

#: The metric of a workload that says what part of its shared pages is on its node.
LOCAL = "local_share"


@dataclass(frozen=True)
class Run:
    """One cell with instances, as far as it says something of merging.

    Attributes:
        policy, workload, kernel, repeat: its place in the matrix.
        order: numbers of the instances in the order in which they began.
        shares: local share of each instance's pages, by number.
        used: local share of each instance's accesses that the kernel has sampled (ksm_stat); None: it samples none.
        weights: of their priorities.
        savings: as the last to end saw it; None: not counted.
        passes: after which 90 % of the final savings were there, by the points of the first instance; None: not known.
    """

    policy: str
    workload: str
    kernel: str
    repeat: int
    order: tuple[int, ...]
    shares: tuple[float, ...]
    used: tuple[float | None, ...]
    weights: tuple[int, ...]
    savings: Savings | None
    passes: float | None

    @property
    def spread(self) -> float:
        """By how many points of a hundred the local shares differ."""
        return metrics.spread(self.shares)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        saved = self.savings
        return {
            "policy": self.policy,
            "workload": self.workload,
            "kernel": self.kernel,
            "repeat": self.repeat,
            "order": list(self.order),
            "local_shares": list(self.shares),
            "local_shares_of_use": list(self.used),
            "weights": list(self.weights),
            "spread_points": self.spread,
            "jain": metrics.jain(self.shares),
            "tax": metrics.numa_tax(self.shares),
            "weighted_tax": metrics.numa_tax(self.shares, self.weights),
            "ordered_by_weight": metrics.ordered_by_weight(self.shares, self.weights),
            "pages_shared": saved.shared if saved else None,
            "pages_sharing": saved.sharing if saved else None,
            "copies": saved.copies if saved else None,
            "given_up": saved.given_up if saved else None,
            "passes_to_90_percent": self.passes,
        }


def nodes_of(samples: Iterable[Json], prefix: str) -> dict[int, int]:
    """Return pages by node from samples such as `same_pages_node0` (prefix "same_pages")."""
    start = f"{prefix}_node"
    return {
        int(sample["metric"].removeprefix(start)): int(sample["value"])
        for sample in samples
        if sample["metric"].startswith(start) and sample["value"] is not None
    }


def nodes_of_snapshot(process: Json, nodes: Sequence[int]) -> dict[int, int]:
    """Return mapped pages of 4K by the node they lie on, from a process of a snapshot's summary.

    Everything that is mapped counts, program and stack too: some two hundred pages, on whose node they happen to be.
    """
    return {node: sum(int(row[column]) for row in process["leaf"]["4K"]) for column, node in enumerate(nodes)}


def share_of(instance: Json) -> float | None:
    """Return an instance's local share: as it says itself, or by the sampled pages of its region."""
    values = {sample["metric"]: sample["value"] for sample in instance["samples"]}
    if values.get(LOCAL) is not None:
        return float(values[LOCAL])
    return metrics.local_share(nodes_of(instance["samples"], "sampled_pages"), instance["node"])


def used_share_of(instance: Json) -> float | None:
    """Return the share of an instance's accesses to merged pages that was local, as the kernel has sampled them."""
    values = {sample["metric"]: sample["value"] for sample in instance["samples"]}
    local, remote = values.get("numa_local"), values.get("numa_remote")
    return None if local is None or remote is None else metrics.local_share({0: local, 1: remote}, 0)


def run_of(result: Json, directory: Path) -> Run | None:
    """Return what a result says; None for a cell that failed, or has no instances whose pages' nodes are known.

    `directory` is the cell's own, for the points of its programs.
    """
    if not succeeded(result) or len(result.get("instances", [])) < 2:
        return None
    instances = result["instances"]
    shares = [share_of(one) for one in instances]
    if any(share is None for share in shares):
        return None
    cell = result["cell"]
    return Run(
        cell["policy"],
        cell["workload"],
        cell["kernel"],
        cell["repeat"],
        tuple(one["instance"] for one in sorted(instances, key=lambda one: one["begun"])),
        tuple(share for share in shares if share is not None),
        tuple(used_share_of(one) for one in instances),
        tuple(metrics.weights_of([one["nice"] for one in instances])),
        _savings(instances),
        _passes(directory),
    )


def _savings(instances: Sequence[Json]) -> Savings | None:
    """What was saved in the end: each instance has looked just before it was done, the last when most was merged."""
    seen = []
    for one in instances:
        values = {sample["metric"]: sample["value"] for sample in one["samples"]}
        if values.get("ksm_pages_sharing") is not None:
            copies = values.get("ksm_numa_copies") or 0
            seen.append(Savings(int(values["ksm_pages_shared"]), int(values["ksm_pages_sharing"]), int(copies)))
    return max(seen, key=lambda saved: saved.sharing, default=None)


def _passes(directory: Path) -> float | None:
    try:
        return metrics.passes_to(points.saved(points.of_cell(directory, 0)))
    except (OSError, ExperimentError):
        return None


def runs_in(directory: Path) -> list[Run]:
    """Return the runs of a result directory.

    Raises:
        UserError: there are no results in it.
    """
    found = (run_of(result, directory / CELLS / result["cell"]["id"]) for result in load_results(directory).results)
    known = [run for run in found if run]
    return sorted(known, key=lambda run: (run.kernel, run.workload, run.policy, run.repeat))


def _groups(runs: Iterable[Run]) -> dict[tuple[str, str, str], list[Run]]:
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.kernel, run.workload, run.policy), []).append(run)
    return groups


def table(runs: Sequence[Run]) -> Table:
    """Return the table people read: one row per kernel, workload and policy, over the repeats."""
    made = Table(title="Merged pages: on whose node, and what they save")
    for head in ("kernel", "workload", "policy", "n"):
        made.add_column(head)
    for head in ("local shares", "differ by", "Jain", "weighted tax", "saved pages", "90 % after"):
        made.add_column(head, justify="right")
    for (kernel, workload, policy), group in _groups(runs).items():
        shares = zip(*(run.shares for run in group), strict=True)
        tax = [metrics.numa_tax(run.shares, run.weights) or 0.0 for run in group]
        saved = [run.savings.sharing for run in group if run.savings]
        passes = [run.passes for run in group if run.passes is not None]
        made.add_row(
            kernel,
            workload,
            policy,
            str(len(group)),
            "  ".join(_range(each, ".2f") for each in shares),
            f"{_range([run.spread for run in group], '.1f')} points",
            _range([metrics.jain(run.shares) or 0.0 for run in group], ".3f"),
            f"{statistics.mean(tax):.2f}",
            f"{statistics.median(saved):,.0f}" if saved else "missing",
            f"{statistics.median(passes):g} passes" if passes else "missing",
        )
    return made


def _range(values: Sequence[float], shown: str) -> str:
    """The median, and least and most where they differ from it as shown."""
    middle, least, most = (format(each, shown) for each in (statistics.median(values), min(values), max(values)))
    return middle if least == most else f"{middle} ({least}–{most})"


@click.command("figures", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each run.")
def command(directory: Path, as_json: bool) -> int:
    """Print whose node merged pages lie on in the results of DIRECTORY, and what they save."""
    runs = runs_in(directory)
    if as_json:
        click.echo(json.dumps([run.to_json() for run in runs], indent=1))
    else:
        table_console().print(table(runs))
    return 0


if __name__ == "__main__":
    execute(command, None, name="python -m nuksm.figures")
