"""`numalab selftest`: the kernel's own test programs, run in a machine and held against a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from numalab.cli.selftest_matrix import command as matrix

if TYPE_CHECKING:
    from numalab.selftest.build import Programs
    from numalab.selftest.compare import Difference
    from numalab.selftest.lab import OnResult, Setting
    from numalab.selftest.record import Run

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_SOURCE = click.option("--source", metavar="DEB|TREE|TARBALL", help="6.12.y source instead of Debian's package.")
_EXPLAIN = click.option(
    "--explain",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML with [[explained]] test = PATTERN, why = TEXT.",
)
_COLOURS = {"pass": "green", "xfail": "green", "skip": "yellow"}


def _files(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Pairs of path and value."""
    found = []
    for each in given:
        file, equals, value = each.partition("=")
        if not (file.startswith("/") and equals and value):
            raise click.BadParameter(f"{each!r}: write FILE=VALUE, FILE beginning with a slash")
        found.append((file, value))
    return tuple(found)


@click.group("selftest")
def command() -> None:
    """Build, run and compare the kernel's own test programs.

    They are built from the kernel's source with the patch series applied, and run on the kernel
    under test and, several times, on the one it is compared with.
    """


command.add_command(matrix)


@command.command("list")
@_JSON
def list_groups(as_json: bool) -> None:
    """List the groups and their programs."""
    from numalab.selftest import catalogue

    known = catalogue.groups().values()
    if as_json:
        _print_json([{"name": g.name, "summary": g.summary, "programs": [p.name for p in g.programs]} for g in known])
        return
    for group in known:
        click.echo(f"{group.name}: {group.summary}")
        for program in group.programs:
            click.echo(f"    {program.name}")


@command.command()
@_SOURCE
@_JSON
def build(source: str | None, as_json: bool) -> None:
    """Build the test programs, unless the cache has them; say which could not be built, and why."""
    from numalab.selftest.build import describe, missing_libraries

    programs = built_programs(source)
    if as_json:
        _print_json(describe(programs))
        return
    static = sum(linkage == "static" for linkage in programs.built.values())
    click.echo(f"{len(programs.built)} programs ({static} static) in {programs.top}")
    for name, error in programs.failed.items():
        click.echo(f"not built: {name}: {error}")
    if programs.failed and missing_libraries():
        click.echo(f"some may need: apt-get install {' '.join(missing_libraries())}")


@command.command()
@click.argument("group")
@click.option("--program", "-p", "names", multiple=True, help="Only this program of the group; may be repeated.")
@click.option("--kernel", default="patched", show_default=True, metavar="NAME", help="The kernel under test.")
@click.option("--against", default="stock", show_default=True, metavar="NAME", help="The kernel it is compared with.")
@click.option(
    "--repeat", type=click.IntRange(1), default=1, show_default=True, help="Repeats on the kernel under test."
)
@click.option(
    "--baseline-repeat", type=click.IntRange(1), default=3, show_default=True, help="Repeats of the baseline."
)
@click.option("--no-baseline", is_flag=True, help="Compare with nothing.")
@click.option("--fresh-baseline", is_flag=True, help="Run the baseline even if the cache has it.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where results go; default: results/selftest-GROUP-KERNEL."
)
@click.option("--nodes", type=click.IntRange(1), help="NUMA nodes; default: the group's.")
@click.option("--cpus-per-node", type=click.IntRange(0), help="Default: the group's.")
@click.option("--node-memory", metavar="SIZE", help="Default: the group's.")
@click.option("--levels", type=click.Choice(["4", "5"]), default="4", show_default=True, help="Paging.")
@click.option("--accel", default="auto", show_default=True, metavar="auto|kvm|tcg")
@click.option("--append", default="", help="Words added to the kernel's command line, of both kernels.")
@click.option(
    "--append-own", "own", default="", help="Words for the kernel under test alone; the other knows them not."
)
@click.option(
    "--own-set",
    "files",
    multiple=True,
    metavar="FILE=VALUE",
    callback=_files,
    help="Set a file of the kernel under test before each program, and back after it; may be repeated.",
)
@click.option("--patience", type=float, default=1.0, show_default=True, help="Factor on every program's time-out.")
@_SOURCE
@_EXPLAIN
@_JSON
def run(
    group: str,
    names: tuple[str, ...],
    kernel: str,
    against: str,
    repeat: int,
    baseline_repeat: int,
    no_baseline: bool,
    fresh_baseline: bool,
    out: Path | None,
    source: str | None,
    explain: Path | None,
    own: str,
    files: tuple[tuple[str, str], ...],
    as_json: bool,
    **machine: Any,
) -> int:
    """Run GROUP on a kernel, and compare with repeated runs on another.

    Status 1: a test fails, or the kernel complains, and the baseline does not explain it.
    """
    from dataclasses import replace

    from numalab.kernel.images import resolve
    from numalab.selftest import lab
    from numalab.selftest.compare import compare as differences_of
    from numalab.selftest.compare import read_explanations

    explanations = read_explanations(explain) if explain else {}
    both = _setting(group, names, kernel, source, machine)
    setting = replace(both, append=f"{both.append} {own}".strip(), files=files)
    out = out or Path("results", f"selftest-{group}-{kernel.replace('/', '_')}")
    out.mkdir(parents=True, exist_ok=True)
    if no_baseline or kernel == against:
        found = lab.run(setting, repeat, out, on_result=show_results(kernel, as_json))
        if as_json:
            _print_json(_summary(found))
        return int(any(verdict.bad for history in found.programs().values() for verdict in history.verdicts))
    other = replace(both, kernel=resolve(against, build=True))
    before, place = lab.baseline(
        other, baseline_repeat, fresh=fresh_baseline, on_result=show_results(f"{against} (baseline)", as_json)
    )
    before.save(out / "baseline.json")
    found = lab.run(setting, repeat, out, on_result=show_results(kernel, as_json))
    differences = differences_of(found, before, explanations)
    _record_differences(out, differences, str(place))
    _report(differences, found, before, as_json)
    return int(any(difference.blames for difference in differences))


@command.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.argument("baseline", type=click.Path(path_type=Path))
@_EXPLAIN
@_JSON
def compare(results: Path, baseline: Path, explain: Path | None, as_json: bool) -> int:
    """Compare RESULTS with BASELINE: directories of `selftest run`, or their JSON files.

    Status 1: a difference blames the kernel of RESULTS.
    """
    from numalab.selftest import record
    from numalab.selftest.compare import compare as differences_of
    from numalab.selftest.compare import read_explanations

    found, before = record.load(results), record.load(baseline)
    differences = differences_of(found, before, read_explanations(explain) if explain else {})
    _report(differences, found, before, as_json)
    return int(any(difference.blames for difference in differences))


def built_programs(source: str | None) -> Programs:
    """Return the built test programs; builds them when the cache has none of this source."""
    from numalab.kernel.progress import for_stream
    from numalab.selftest import sources

    with for_stream() as progress:
        return sources.built_programs(source, progress=progress)


def _setting(name: str, names: tuple[str, ...], kernel: str, source: str | None, machine: dict[str, Any]) -> Setting:
    from numalab.kernel.images import resolve
    from numalab.machine import accel
    from numalab.machine.topology import uniform
    from numalab.selftest import catalogue
    from numalab.selftest.build import check_any
    from numalab.selftest.lab import Setting

    group = catalogue.group(name)
    programs = group.select(names)
    topology = uniform(
        machine["nodes"] or group.nodes,
        group.cpus_per_node if machine["cpus_per_node"] is None else machine["cpus_per_node"],
        machine["node_memory"] or group.node_memory,
        paging_levels=int(machine["levels"]),
    )
    chosen = accel.choose(machine["accel"])
    built = built_programs(source)
    check_any(built, group)
    image = resolve(kernel, build=True)
    return Setting(group, programs, image, topology, chosen, built, machine["append"], machine["patience"])


def show_results(what: str, quiet: bool) -> OnResult:
    """Print each result as it comes; on stderr when stdout is for JSON."""
    from numalab.selftest.runner import Result

    def show(number: int, repeats: int, result: Result) -> None:
        verdict = click.style(f"{result.verdict.value:10}", fg=_COLOURS.get(result.verdict.value, "red"))
        which = f"{what} {number}/{repeats}" if repeats > 1 else what
        tests = f" [{len(result.tests)} tests]" if result.tests else ""
        reason = f": {result.reason}" if result.reason else ""
        click.echo(f"{which}: {verdict} {result.program}{tests}{reason}", err=quiet)
        for line in result.complaints:
            click.echo(f"    the kernel said: {line}", err=quiet)

    return show


def _report(differences: list[Difference], found: Run, before: Run, as_json: bool) -> None:
    if as_json:
        summary = {"run": _summary(found), "baseline": _summary(before)}
        _print_json({**summary, "differences": [difference.to_json() for difference in differences]})
        return
    names = [f"{run.kernel['release']} ({run.kernel['name']})" for run in (found, before)]
    repeats = [f"{len(run.repeats)} repeat{'s' * (len(run.repeats) != 1)}" for run in (found, before)]
    click.echo(f"\n{found.group} on {names[0]}, {repeats[0]}, against {names[1]}, {repeats[1]}:")
    if not differences:
        click.echo("no difference")
    for difference in differences:
        colour = (
            "red" if difference.blames else "green" if difference.judgement.value in ("fixed", "runs") else "yellow"
        )
        click.echo(f"{click.style(difference.judgement.value, fg=colour)}: {difference.name}")
        if difference.baseline or difference.now:
            click.echo(
                f"    baseline: {difference.baseline or 'not reported'}; now: {difference.now or 'not reported'}"
            )
        click.echo(f"    {difference.explanation}")
        if difference.explained:
            click.echo(f"    explained: {difference.explained}")


def _summary(run: Run) -> dict[str, Any]:
    return {
        "group": run.group,
        "kernel": {"name": run.kernel["name"], "release": run.kernel["release"]},
        "repeats": len(run.repeats),
        "programs": {
            name: {"standing": history.standing.value, "verdicts": list(history.verdicts), "reason": history.reason}
            for name, history in run.programs().items()
        },
    }


def _record_differences(out: Path, differences: list[Difference], place: str) -> None:
    from numalab.paths import write_json

    rows = [difference.to_json() for difference in differences]
    write_json(out / "comparison.json", {"schema": 1, "baseline_logs": place, "differences": rows})


def _print_json(value: Any) -> None:
    import json

    click.echo(json.dumps(value, indent=1))
