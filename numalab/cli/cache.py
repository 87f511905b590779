"""`numalab cache`: what the cache holds, and removing what is not needed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numalab.kernel.cache import CacheEntry

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("cache", short_help="List and prune what numalab keeps.")
def command() -> None:
    """List and prune what numalab keeps: kernels, source trees, builds, programs.

    It lies in $XDG_CACHE_HOME/numalab (~/.cache/numalab). Everything in it can be made again.
    """


@command.command("list")
@_JSON
def list_cache(as_json: bool) -> None:
    """List the entries, the biggest first."""
    from numalab.kernel.cache import entries
    from numalab.paths import cache_dir
    from numalab.units import format_size

    found = entries()
    total = sum(entry.bytes for entry in found)
    if as_json:
        _print_json({"directory": str(cache_dir()), "bytes": total, "entries": [_row(entry) for entry in found]})
        return
    if found:
        _table(found)
    click.echo(f"{format_size(total)} in {len(found)} entries in {cache_dir()}")


@command.command()
@click.option(
    "--older-than",
    metavar="DAYS",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Remove what was not used for DAYS days.",
)
@click.option("--all", "everything", is_flag=True, help="Remove everything that nobody uses now.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@_JSON
def prune(older_than: float, everything: bool, dry_run: bool, as_json: bool) -> None:
    """Remove old entries; never one that a running numalab uses."""
    from numalab.kernel.cache import prune as prune_cache
    from numalab.units import format_size

    done = prune_cache(older_than_days=None if everything else older_than, dry_run=dry_run)
    if as_json:
        _print_json(
            {
                "dry_run": dry_run,
                "bytes": done.bytes,
                "removed": [_row(entry) for entry in done.removed],
                "in_use": [_row(entry) for entry in done.in_use],
            }
        )
        return
    if done.removed:
        _table(done.removed)
    click.echo(f"{'would free' if dry_run else 'freed'} {format_size(done.bytes)}")
    for entry in done.in_use:
        click.echo(f"kept, in use: {entry.kind} {entry.id}")


def _table(entries: Iterable[CacheEntry]) -> None:
    from datetime import datetime

    from rich.table import Table

    from numalab.cli.console import table_console
    from numalab.units import format_size

    table = Table(box=None, pad_edge=False)
    for title in ("kind", "size", "last used", "", "id"):
        table.add_column(title, justify="right" if title == "size" else "left", overflow="fold")
    for entry in entries:
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        table.add_row(entry.kind, format_size(entry.bytes), used, "in use" if entry.in_use else "", entry.id)
    table_console().print(table)


def _row(entry: CacheEntry) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(entry)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, default=str))
