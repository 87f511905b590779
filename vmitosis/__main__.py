"""`python -m vmitosis`: experiments whose programs run in a guest of the machine, and tables of what came of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from numalab.cli.main import execute
from numalab.results import CELLS, Json, load_results, succeeded
from vmitosis.series import around, rates
from vmitosis.twodim import CODES


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Both levels of a virtual machine's page tables, moved and replicated."""


@command.command("run")
@click.argument("experiment", metavar="EXPERIMENT")
@click.option("--out", type=click.Path(path_type=Path), help="Result directory [default: results/NAME-DATE].")
@click.option("--resume", is_flag=True, help="Go on with a directory: skip the cells that are done.")
@click.option("--retry-failed", is_flag=True, help="Like --resume, and do failed cells again.")
@click.option("--only", multiple=True, metavar="KEY=VALUE", help="Only these; see `numalab run`.")
@click.option("--repeat", "repeats", type=click.IntRange(min=1), help="Repeats, in place of the file's.")
@click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto", show_default=True)
@click.option(
    "--probe",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="pgrepl-probe (tools/mm of the patched kernel, static): what OFMF measures latencies with.",
)
def run(experiment: str, probe: Path | None, **options: Any) -> int:
    """Run EXPERIMENT (a file, or a name such as vmitosis/figure1), its programs in a guest of the machine.

    As `numalab run`, which plans it (`--dry-run` there shows the cells). Exit status: 0 every cell succeeded, 1 some
    failed, 130 interrupted.
    """
    from numalab.kernel.progress import for_stream
    from numalab.run import runner
    from numalab.run.check import load
    from numalab.run.lab import default_lab
    from numalab.run.system import find_experiment
    from vmitosis.lab import lab

    two = lab(default_lab(), probe)
    loaded = load(find_experiment(experiment), two)
    summary = runner.run(loaded, two, runner.Options(given=experiment, **options), progress=for_stream)
    for note in summary.notes:
        click.echo(f"vmitosis: note: {note}", err=True)
    for result in summary.failed:
        click.echo(f"  {result['cell']['id']}  {_name(result)}: {runner.describe(result)}")
    good = len(summary.skipped) + len(summary.done) - len(summary.failed)
    click.echo(f"{good} of {summary.planned} cells succeeded; results in {summary.directory}")
    if summary.interrupted:
        return 130
    return 1 if summary.failed or summary.left else 0


@command.command("shares")
@click.argument("directory", type=click.Path(path_type=Path))
def shares(directory: Path) -> int:
    """Print, for each snapshot of a run, the shares of local and remote tables of both levels, by node."""
    click.echo(f"{'policy':<16} {'workload':<8} #  {'mark':<6} node " + "".join(f"{code:>8}" for code in CODES))
    for result in load_results(directory).results:
        for entry in result["placement"]:
            both = (entry.get("summary") or {}).get("both_levels")
            for process in both["processes"] if both else ():
                for node, seen in process["seen"].items():
                    found = sum(seen[name] for name in CODES.values())
                    words = "".join(
                        f"{100 * seen[name] / found:7.1f}%" if found else "      –" for name in CODES.values()
                    )
                    click.echo(f"{_name(result)}  {entry['mark']:<6} {node:>4} {words}  unfilled {seen['unfilled']:,}")
    return 0


@command.command("rates")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--moved", type=float, help="Seconds of the measured phase at which something moved.")
def series(directory: Path, moved: float | None) -> int:
    """Print work per second over time of each cell of a run, and its means before and after a move.

    Wall time of an emulation says nothing about hardware: the header says which it is.
    """
    for result in load_results(directory).results:
        output = directory / CELLS / result["cell"]["id"] / "stdout.txt"
        found = rates(output.read_text()) if output.exists() else []
        machine = result["provenance"].get("machine") or {}
        emulated = machine.get("accel") == "tcg"
        click.echo(f"{_name(result)}  ({'wall time of an emulation' if emulated else 'measured'})")
        for rate in found:
            click.echo(f"  {rate.begin:8.1f} – {rate.end:8.1f} s {rate.rate:14,.0f} /s")
        if moved is not None:
            before, after = around(found, moved)
            words = ["–" if value is None else f"{value:,.0f} /s" for value in (before, after)]
            click.echo(f"  before {words[0]}, after {words[1]}")
    return 0


def _name(result: Json) -> str:
    cell = result["cell"]
    mark = "" if succeeded(result) else " (failed)"
    return f"{cell['policy']:<16} {cell['workload']:<8} {cell['repeat']}{mark}"


if __name__ == "__main__":
    execute(command, None, name="python -m vmitosis")
