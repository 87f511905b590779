"""`numalab report`: one self-contained HTML file about a run, and its tables in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from analysis.dataset import Dataset


@click.command("report")
@click.argument("directory", type=click.Path(path_type=Path), default=Path("results/_latest"))
@click.option("--out", type=click.Path(path_type=Path), help="The HTML file [default: DIRECTORY/report.html].")
@click.option("--figures", type=click.Path(path_type=Path), metavar="DIR", help="Every picture as PNG and PDF too.")
@click.option("--quiet", is_flag=True, help="Print the path alone.")
@click.option("--json", "as_json", is_flag=True, help="The tables as JSON on standard output.")
def command(directory: Path, out: Path | None, figures: Path | None, quiet: bool, as_json: bool) -> int:
    """Write one HTML file about the results in DIRECTORY [default: the latest run].

    The file needs nothing else: pictures and style are inside. In the terminal it shows where the
    page tables lived and how the cells ended.
    """
    from analysis import report, summary

    path, data = report.write(directory, out, figures=figures)
    if as_json:
        import json

        click.echo(json.dumps({"report": str(path), **summary.as_json(data)}, indent=1))
        return 0
    if not quiet:
        _print_tables(data)
    for error in data.corrupt:
        click.echo(f"numalab: left out: {error}", err=True)
    if data.waiting:
        click.echo(f"numalab: {data.waiting} planned cells have no result yet", err=True)
    click.echo(str(path) if quiet else f"report: {path}")
    return 0


def _print_tables(data: Dataset) -> None:
    from analysis import summary
    from numalab.cli.console import table_console

    console = table_console()
    for table in summary.terminal_tables(data):
        table.show(console)
