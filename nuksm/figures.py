"""Tables of a run: whose node merged pages lie on, whether that is fair, what is saved, and how soon.

    python -m nuksm.figures results/fairness-2026-11-21
    python -m nuksm.figures --check results/fairness-2026-11-21
    python -m nuksm.figures --over-time results/figure4-2026-11-21

Reads result directories only. A value that is not there is missing, never 0. Shares and savings are counts, exact in
emulation; throughput is in the table over time only, which says of what kind it is.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from rich.table import Table

from nuksm import metrics, overtime
from nuksm.promises import judge
from nuksm.runs import Run, runs_in
from numalab.cli.console import table_console
from numalab.cli.main import execute
from numalab.errors import MissingError


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


def moves_table(runs: Sequence[Run]) -> Table:
    """Return the table of processes that went to another node, one row for each."""
    made = Table(title="Pages follow a process to another node")
    for head in ("kernel", "workload", "policy", "repeat", "instance"):
        made.add_column(head)
    for head in ("passes", "seconds", "at most"):
        made.add_column(head, justify="right")
    for run in runs:
        for move in run.moves:
            made.add_row(
                *(run.kernel, run.workload, run.policy, str(run.repeat), str(move.instance)),
                "never" if move.passes is None else str(move.passes),
                "" if move.seconds is None else f"{move.seconds:.2f}",
                "" if move.bound is None else f"{move.bound:.2f}",
            )
    return made


@click.command("figures", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each run.")
@click.option("--over-time", is_flag=True, help="Throughput and local pages of each process at each of its points.")
@click.option("--check", is_flag=True, help="Hold the runs against what the patch set promises.")
def command(directory: Path, as_json: bool, over_time: bool, check: bool) -> int:
    """Print whose node merged pages lie on in the results of DIRECTORY, and what they save.

    Exit status: 0; with --check 1 when a promise is not kept, 3 when of one nobody can tell, or there is none to judge;
    with --over-time 3 when no process has printed a point.
    """
    if over_time:
        return _over_time(directory, as_json)
    runs = runs_in(directory)
    if as_json:
        click.echo(json.dumps([run.to_json() for run in runs], indent=1))
    else:
        table_console().print(table(runs))
        if any(run.moves for run in runs):
            table_console().print(moves_table(runs))
    if not check:
        return 0
    found = judge(runs)
    for line in found.broken:
        click.echo(f"not kept: {line}", err=True)
    for line in found.unknown:
        click.echo(f"not known: {line}", err=True)
    click.echo(f"{found.kept} promises kept, {len(found.broken)} not kept, {len(found.unknown)} not known", err=True)
    if found.broken:
        return 1
    return MissingError.exit_status if found.unknown or not found.kept else 0


def _over_time(directory: Path, as_json: bool) -> int:
    series = overtime.series_in(directory)
    if as_json:
        click.echo(json.dumps([each.to_json() for each in series], indent=1))
    else:
        table_console().print(overtime.table(series))
    if not series:
        click.echo("no process has printed a point: its workload has no `interval`", err=True)
    return 0 if series else MissingError.exit_status


if __name__ == "__main__":
    execute(command, None, name="python -m nuksm.figures")
