"""`numalab init`: a first experiment file, with every key explained."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("init")
@click.argument("file", type=click.Path(path_type=Path), default=Path("experiment.toml"))
@click.option("--force", is_flag=True, help="Write over FILE if it exists.")
def command(file: Path, force: bool) -> int:
    """Write an experiment FILE [experiment.toml] that runs as it is, to be edited."""
    from numalab.errors import UserError
    from numalab.paths import write_atomic
    from numalab.run.scaffold import TEMPLATE

    if file.suffix != ".toml":
        raise UserError(f"{file}: an experiment file ends in .toml")
    if file.exists() and not force:
        raise UserError(f"{file}: exists already", remedy="choose another name, or --force")
    write_atomic(file, TEMPLATE)
    click.echo(f"wrote {file}\n  → numalab run {file} --dry-run")
    return 0
