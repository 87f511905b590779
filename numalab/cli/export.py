"""`numalab export`: results as CSV, JSON or Parquet."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from numalab.errors import UserError


@click.command("export")
@click.argument("directory", type=click.Path(path_type=Path), default=Path("results/_latest"))
@click.option(
    "--what",
    type=click.Choice(["values", "cells", "table-pages", "leaf-entries", "remote-shares"]),
    default="values",
    show_default=True,
    help="Every value; one row per cell; or placement.",
)
@click.option("--format", "form", type=click.Choice(["csv", "json", "parquet"]), help="[default: by --out, else csv]")
@click.option("--out", type=click.Path(path_type=Path), help="A file; without it, standard output.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def command(directory: Path, what: str, form: str | None, out: Path | None, as_json: bool) -> int:
    """Write the results in DIRECTORY [default: the latest run] as one tidy table, one value a row.

    Every row names its cell and the kind of its number; what is missing is NA (null in JSON).
    """
    if as_json and form not in (None, "json"):
        raise UserError(f"--json and --format {form} contradict each other")
    chosen = "json" if as_json else form or _by_name(out)
    if chosen == "parquet" and out is None:
        raise UserError("Parquet is binary: name a file with --out")

    from analysis import dataset, export
    from analysis.files import write_file

    data = dataset.load(directory)
    frame = export.TABLES[what](data)
    for error in data.corrupt:
        click.echo(f"numalab: left out: {error}", err=True)
    if out is None:
        sys.stdout.buffer.write(export.to_bytes(frame, chosen))
    else:
        write_file(out, export.to_bytes(frame, chosen))
        click.echo(f"{len(frame)} rows: {out}", err=True)
    return 0


def _by_name(out: Path | None) -> str:
    suffix = out.suffix.lstrip(".").lower() if out else ""
    return suffix if suffix in ("csv", "json", "parquet") else "csv"
