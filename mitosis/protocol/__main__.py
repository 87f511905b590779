"""`python -m mitosis.protocol [NAME...]`: check the models, print a table; `--trace NAME` shows a counterexample."""

from __future__ import annotations

import fnmatch
import sys

import click
from rich.console import Console
from rich.table import Table

from mitosis.protocol.check import Result, Verdict, check, counterexample
from mitosis.protocol.configurations import ALL, Configuration, Expect
from numalab.errors import NumalabError, UserError, nearest

#: Columns where there is no terminal to ask: tables stay whole.
_WIDTH_OF_A_PIPE = 160


def _select(names: tuple[str, ...]) -> list[Configuration]:
    if not names:
        return list(ALL)
    chosen: list[Configuration] = []
    for name in names:
        found = [configuration for configuration in ALL if fnmatch.fnmatch(configuration.name, name)]
        if not found:
            known = [configuration.name for configuration in ALL]
            raise UserError(f"no configuration is called {name!r}{nearest(name, known)}")
        chosen += [configuration for configuration in found if configuration not in chosen]
    return chosen


def _verdict(result: Result) -> str:
    if result.verdict is not Verdict.VIOLATED:
        return str(result.verdict.value)
    if result.configuration.expect is Expect.REACHED and result.as_expected:
        return "reached"
    return f"violated: {result.violated}"


def _report(results: list[Result], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("configuration", no_wrap=True)
    table.add_column("what")
    table.add_column("states", justify="right")
    table.add_column("depth", justify="right")
    table.add_column("verdict")
    table.add_column("seconds", justify="right")
    for result in results:
        style = None if result.as_expected else "bold red"
        table.add_row(
            result.configuration.name,
            result.configuration.says,
            f"{result.states:,}",
            f"{result.depth:,}",
            _verdict(result) + ("" if result.as_expected else " (NOT EXPECTED)"),
            f"{result.seconds:.1f}",
            style=style,
        )
    console.print(table)


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--trace", is_flag=True, help="Show a shortest run into the error of each NAME, step by step.")
@click.option("--fast", is_flag=True, help="Leave out the configurations that take more than a few seconds.")
def main(names: tuple[str, ...], trace: bool, fast: bool) -> None:
    """Check the configurations whose names match NAMES (patterns; default: all)."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE)
    try:
        chosen = [configuration for configuration in _select(names) if not (fast and configuration.slow)]
        if trace:
            for configuration in chosen:
                console.print(f"== {configuration.name}: {configuration.says}", markup=False)
                for line in counterexample(configuration) or ["holds: there is no counterexample"]:
                    console.print(line, markup=False, highlight=False)
            return
        results = []
        for configuration in chosen:
            with console.status(configuration.name):
                results.append(check(configuration))
        _report(results, console)
    except NumalabError as error:
        click.echo(f"error: {error}" + (f"\n  {error.remedy}" if error.remedy else ""), err=True)
        sys.exit(error.exit_status)
    sys.exit(0 if all(result.as_expected for result in results) else 1)


if __name__ == "__main__":
    main()
