"""`numalab run`: an experiment, from its file to a directory of results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from numalab.results import Json
    from numalab.run.lab import Lab
    from numalab.run.runner import Options, Summary
    from numalab.run.spec import Experiment


@click.command("run")
@click.argument("experiment", metavar="EXPERIMENT")
@click.option("--out", type=click.Path(path_type=Path), help="Result directory [default: results/NAME-DATE].")
@click.option("--resume", is_flag=True, help="Go on with a directory: skip the cells that are done.")
@click.option("--retry-failed", is_flag=True, help="Like --resume, and do failed cells again.")
@click.option("--dry-run", is_flag=True, help="Print the cells and their commands; run nothing.")
@click.option(
    "--only",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only these: kernel, policy, workload, topology, interference, repeat.",
)
@click.option("--repeat", "repeats", type=click.IntRange(min=1), help="Repeats, in place of the file's.")
@click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto", show_default=True)
@click.option(
    "--host",
    is_flag=True,
    help="On this host itself and its running kernel: no machine. Policies that set knobs need root.",
)
@click.option("--json", "as_json", is_flag=True, help="A summary (or the plan) as JSON on standard output.")
def command(experiment: str, dry_run: bool, as_json: bool, host: bool, **options: Any) -> int:
    """Run EXPERIMENT: a TOML file, or a registered name such as mitosis/quickstart.

    Exit status: 0 every cell succeeded, 1 some failed, 4 some lost their machine, 130 interrupted.
    """
    from numalab.run.check import load
    from numalab.run.lab import default_lab
    from numalab.run.on_host import lab_for
    from numalab.run.runner import Options
    from numalab.run.spec import HOST
    from numalab.run.system import find_experiment

    lab = default_lab(download=not dry_run)
    loaded = load(find_experiment(experiment), lab, host=host)
    lab = lab_for(loaded, lab)
    if loaded.running.machine == HOST:
        options["accel"] = HOST
    wanted = Options(given=experiment, **options)
    if dry_run:
        return _dry_run(loaded, lab, wanted, as_json=as_json)
    return _run(loaded, lab, wanted, as_json=as_json)


def _run(experiment: Experiment, lab: Lab, options: Options, *, as_json: bool) -> int:
    from numalab.kernel.progress import for_stream
    from numalab.run import runner

    summary = runner.run(experiment, lab, options, progress=for_stream)
    for note in summary.notes:
        click.echo(f"numalab: note: {note}", err=True)
    if as_json:
        import json

        click.echo(json.dumps(_summary_json(summary), indent=1))
    else:
        _print_summary(summary)
    again = _again(options, summary.directory, "--resume")
    if summary.interrupted:
        done = len(summary.skipped) + len(summary.done)
        click.echo(f"numalab: interrupted; {done} of {summary.planned} cells are done and kept\n  → {again}", err=True)
        return 130
    if summary.failed and not as_json:
        click.echo(f"  → to do them again: {_again(options, summary.directory, '--retry-failed')}", err=True)
    if summary.given_up:
        click.echo(
            f"numalab: {len(summary.given_up)} cells were not run: their machine failed to boot more than once\n"
            f"  → {again}",
            err=True,
        )
    return _status(summary)


def _again(options: Options, directory: Path, flag: str) -> str:
    """The command that goes on with these very cells."""
    import shlex

    words = ["numalab", "run", options.given, "--out", str(directory), flag]
    if options.accel == "host":
        words.append("--host")
    elif options.accel != "auto":
        words += ["--accel", options.accel]
    if options.repeats is not None:
        words += ["--repeat", str(options.repeats)]
    return shlex.join([*words, *(word for each in options.only for word in ("--only", each))])


def _status(summary: Summary) -> int:
    """0 every cell has succeeded, 4 some lost their machine, else 1."""
    from numalab.results import LOST

    if any(result["outcome"]["type"] in LOST for result in summary.failed):
        return 4
    return 1 if summary.failed or summary.left else 0


def _print_summary(summary: Summary) -> None:
    from numalab.results import NO_INTERFERENCE
    from numalab.run.runner import describe

    failed = summary.failed
    for result in failed:
        cell = result["cell"]
        where = " ".join(str(cell[key]) for key in ("kernel", "policy", "workload", "topology"))
        if cell["interference"] != NO_INTERFERENCE:
            where += f" beside {cell['interference']}"
        click.echo(f"  {cell['id']}  {where} #{cell['repeat']}: {describe(result)}")
    good = len(summary.skipped) + len(summary.done) - len(failed)
    words = f"{good} of {summary.planned} cells succeeded"
    if summary.skipped:
        words += f" ({len(summary.skipped)} were done before)"
    click.echo(f"{words}; results in {summary.directory}")


def _summary_json(summary: Summary) -> Json:
    def short(result: Json, *, before: bool) -> Json:
        cell = {key: value for key, value in result["cell"].items() if key != "params"}
        return {**cell, "outcome": result["outcome"], "done_before": before, "seconds": result["seconds"]}

    return {
        "directory": str(summary.directory),
        "planned": summary.planned,
        "failed": len(summary.failed),
        "left": summary.left,
        "interrupted": summary.interrupted,
        "cells": [
            *(short(result, before=True) for result in summary.skipped),
            *(short(result, before=False) for result in summary.done),
        ],
    }


def _dry_run(experiment: Experiment, lab: Lab, options: Options, *, as_json: bool) -> int:
    from numalab.run import runner
    from numalab.run.plan import commands, plan

    points = runner.select(experiment, options)
    cells, blocked = plan(experiment, points, lab, accel=options.accel)
    ids = {cell.point: cell.id for cell in cells}
    missing = {each.point: str(each.why) for each in blocked}
    lines = {cell.point: commands(cell.policy, cell.argv, cell.beside, cell.instances) for cell in cells}
    lines |= {each.point: commands(each.policy, each.argv, each.beside, each.instances) for each in blocked}
    rows = [
        {"id": ids.get(point), **point.to_json(), "commands": lines[point], "missing": missing.get(point)}
        for point in points
    ]
    if as_json:
        import json

        click.echo(json.dumps({"seed": experiment.seed, "cells": rows}, indent=1))
        return 0
    for point in points:
        click.echo(f"{ids.get(point) or '(not built yet)':16}  {point}")
        for line in lines[point]:
            click.echo(f"    # {line}")
    click.echo(f"{len(points)} cells, seed {experiment.seed}")
    for message in dict.fromkeys(f"{each.why}\n  → {each.why.remedy}" for each in blocked):
        click.echo(f"numalab: not yet possible: {message}", err=True)
    return 0
