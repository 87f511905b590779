"""`numalab workloads`: what there is to run, what it takes, what it reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("workloads", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List, describe and build the workloads."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_all, as_json=False)


@command.command("list")
@_JSON
def list_all(as_json: bool) -> None:
    """One line per workload."""
    from workloads import catalogue

    known = [catalogue.get(name) for name in catalogue.names()]
    if as_json:
        _print_json([workload.to_json() for workload in known])
        return
    _print_table({workload.name: workload.summary for workload in known}, indent="")


@command.command()
@click.argument("name")
@_JSON
def describe(name: str, as_json: bool) -> None:
    """Say what NAME takes and what it reports.

    Parameters are options of the program (`--size 1G`) and keys of experiment files (`size = "1G"`).
    """
    from workloads import catalogue

    workload = catalogue.get(name)
    if as_json:
        _print_json(workload.to_json())
        return
    click.echo(f"{workload.name}: {workload.summary}\n\nParameters:")
    _print_table(
        {key: f"{param.help}{_default(param.default, param.choices)}" for key, param in workload.params.items()}
    )
    click.echo("\nMetrics:")
    _print_table(
        {
            key: f"{metric.help}{f' [{metric.unit}]' if metric.unit else ''} ({metric.quantity.value})"
            for key, metric in workload.metrics.items()
        }
    )
    click.echo("\nA count is exact, in emulation too; a time or rate of an emulated machine is not its speed.")


@command.command()
@_JSON
def build(as_json: bool) -> None:
    """Compile the static programs, unless the cache has them; print where they are."""
    from workloads.build import binaries

    found = {name: str(path) for name, path in binaries().items()}
    if as_json:
        _print_json(found)
    else:
        _print_table(found, indent="")


def _default(value: object, choices: tuple[str, ...]) -> str:
    words = [f"one of {', '.join(choices)}"] if choices else []
    words += [f"default {value}"] if value not in (None, False) else []
    return f" ({'; '.join(words)})" if words else ""


def _print_table(rows: Mapping[str, str], *, indent: str = "  ") -> None:
    width = max(map(len, rows))
    for key, text in rows.items():
        click.echo(f"{indent}{key:{width}}  {text}")


def _print_json(value: Any) -> None:
    import json

    click.echo(json.dumps(value, indent=1))
