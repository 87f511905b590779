"""`numalab compare`: two runs, or two values of one axis within one, with intervals and tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from numalab.errors import UserError

if TYPE_CHECKING:
    from analysis.comparison import Comparison


@click.command("compare")
@click.argument("directories", nargs=-1, required=True, metavar="A [B]", type=click.Path(path_type=Path))
@click.option(
    "--by",
    type=click.Choice(["policy", "kernel", "workload", "topology", "interference"]),
    help="Within one directory: compare along this axis [default: policy].",
)
@click.option("--baseline", metavar="NAME", help="With one directory: what the others are compared with.")
@click.option(
    "--metric", "metrics", multiple=True, metavar="NAME", help='Only these; patterns such as "vmstat:numa_*" work.'
)
@click.option(
    "--noise", type=click.Path(path_type=Path), metavar="DIR", help="Take the noise floor from DIR's A/A run."
)
@click.option("--json", "as_json", is_flag=True, help="Every number and every sample as JSON on standard output.")
def command(
    directories: tuple[Path, ...],
    by: str | None,
    baseline: str | None,
    metrics: tuple[str, ...],
    noise: Path | None,
    as_json: bool,
) -> int:
    """Compare run B with run A, or the policies (kernels, ...) within one run.

    Says by how much the medians differ, with a 95 % bootstrap interval, a Mann-Whitney test and n, and
    whether the difference is inside the noise floor of an A/A run.
    """
    from analysis import dataset, selection

    if len(directories) > 2:
        raise UserError("compare takes one directory or two")
    loaded = [dataset.load(each) for each in directories]
    floors = dataset.load(noise) if noise else None
    if len(loaded) == 2:
        if by or baseline:
            raise UserError("--by and --baseline compare within one directory; two were named")
        made = selection.between(loaded[0], loaded[1], metrics, noise=floors)
    else:
        made = selection.along(loaded[0], by or "policy", baseline, metrics, noise=floors)
    if not made:
        raise UserError("the two sides have no metric in common")
    if as_json:
        import json

        means = [each.to_json() for each in selection.overall(made)]
        click.echo(json.dumps({"comparisons": [each.to_json() for each in made], "overall": means}, indent=1))
    else:
        _print(made)
    return 0


def _print(made: list[Comparison]) -> None:
    from analysis import comparison_tables, selection
    from numalab.cli.console import table_console

    console = table_console()
    moved, unchanged = selection.split_unchanged(made)
    for table in comparison_tables.compact_tables(moved):
        table.show(console)
    if unchanged:
        click.echo(f"One and the same value in every run: {', '.join(unchanged)}.\n")
    means = selection.overall([each for each in made if each.source != "placement"])
    if means:
        comparison_tables.overall_table(means).show(console)
    click.echo(comparison_tables.HOW_TO_READ)
    for line in dict.fromkeys(f"{each.metric}: {line}" for each in made for line in each.warnings):
        click.echo(f"numalab: note: {line}", err=True)
    more = selection.repeats_needed(made)
    if more:
        click.echo(
            f"numalab: note: to know every mean to 1 % takes about {more} repeats: "
            f"numalab run ... --resume --repeat {more}",
            err=True,
        )
