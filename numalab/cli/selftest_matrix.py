"""`numalab selftest matrix`: all groups under all boot options, with and without the patches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from numalab.errors import UserError

if TYPE_CHECKING:
    from numalab.selftest.lab import OnResult
    from numalab.selftest.matrix import Matrix, Outcome, Point, Rig


@click.command("matrix")
@click.option("--file", type=click.Path(path_type=Path), help="Another matrix than numalab/selftest/matrix.toml.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("results/selftests"),
    show_default=True,
    help="Where results go, and where those that stand are found.",
)
@click.option("--table", type=click.Path(path_type=Path), metavar="FILE.md", help="Write the results there as a page.")
@click.option("--only", multiple=True, metavar="KEY=VALUE", help="Only these: group, levels, or an axis of the matrix.")
@click.option(
    "--share",
    "shared",
    metavar="K/N",
    help="Only the K-th of N shares: for N processes at once, with the same --out.",
    callback=lambda _, __, value: _share(value),
)
@click.option("--dry-run", is_flag=True, help="Print the points and their boot options; run nothing.")
@click.option("--no-run", is_flag=True, help="Run nothing: the table of what is done.")
@click.option("--accel", default="auto", show_default=True, metavar="auto|kvm|tcg")
@click.option("--patience", type=float, default=1.0, show_default=True, help="Factor on every program's time-out.")
@click.option("--source", metavar="DEB|TREE|TARBALL", help="6.12.y source instead of Debian's package.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    file: Path | None,
    out: Path,
    table: Path | None,
    only: tuple[str, ...],
    shared: tuple[int, int],
    dry_run: bool,
    no_run: bool,
    accel: str,
    patience: float,
    source: str | None,
    as_json: bool,
) -> int:
    """Run the kernel's own tests on stock and patched kernel, page-table levels and boot options.

    Takes hours in emulation. It can be interrupted at any moment: run again, it goes on with what is not done.
    Status 1: something differs, or a machine was lost, and nobody explains it.
    """
    from numalab.selftest import matrix

    described = matrix.load(file or matrix.FILE)
    points = matrix.share(matrix.points(described, only), *shared)
    if dry_run:
        _show_points(points, as_json=as_json)
        return 0
    rig = _rig(described, source, accel, patience, build=not no_run)
    outcomes = []
    for number, point in enumerate(points, 1):
        done = matrix.standing(point, rig, out)
        if done is None and not no_run:
            click.echo(f"numalab: {number}/{len(points)} {point.name}", err=True)
            done = matrix.run(point, rig, out, on_result=_told)
            if table:
                _write(table, described, rig, out)
        if done is not None:
            outcomes.append(done)
    if table:
        _write(table, described, rig, out)
    _report(points, outcomes, as_json=as_json)
    return int(any(outcome.blames for outcome in outcomes))


def _share(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    which, _, of = text.partition("/")
    if not (which.isdecimal() and of.isdecimal() and 1 <= int(which) <= int(of)):
        raise UserError(f"--share {text}: write K/N with K from 1 to N, such as 1/2 and 2/2")
    return int(which), int(of)


def _rig(described: Matrix, source: str | None, accel: str, patience: float, *, build: bool) -> Rig:
    from numalab.cli import selftest
    from numalab.kernel.images import resolve
    from numalab.machine.accel import choose
    from numalab.selftest.matrix import Rig

    kernels = [resolve(name, build=build) for name in (described.kernel, described.against)]
    return Rig(kernels[0], kernels[1], selftest.built_programs(source), choose(accel), patience)


def _told(kernel: str) -> OnResult:
    """Each result as it comes, on stderr."""
    from numalab.cli import selftest

    return selftest.show_results(kernel, True)


def _write(table: Path, described: Matrix, rig: Rig, out: Path) -> None:
    """Write the page about all points of the matrix, whichever were asked for now."""
    from numalab.paths import write_atomic
    from numalab.selftest import matrix, report

    points = matrix.points(described)
    known = [done for point in points if (done := matrix.standing(point, rig, out)) is not None]
    write_atomic(table, report.page(described, points, known))


def _show_points(points: list[Point], *, as_json: bool) -> None:
    if as_json:
        rows = [{**each.values, "append": each.words(own=True), "against": each.words(own=False)} for each in points]
        click.echo(json.dumps(rows, indent=1))
        return
    for point in points:
        click.echo(f"{point.name}: {point.words(own=True) or '(no boot options)'}")
    click.echo(f"{len(points)} points")


def _report(points: list[Point], outcomes: list[Outcome], *, as_json: bool) -> None:
    if as_json:
        rows = [
            {
                **each.point.values,
                "blames": each.blames,
                "lost": each.lost,
                "differences": [difference.to_json() for difference in each.differences],
            }
            for each in outcomes
        ]
        click.echo(json.dumps({"points": len(points), "done": rows}, indent=1))
        return
    for outcome in outcomes:
        if outcome.lost:
            click.echo(f"{outcome.point.name}: machine lost: {outcome.lost.partition(chr(10))[0]}")
        for each in outcome.differences:
            mark = click.style(each.judgement.value, fg="red" if each.blames else "yellow")
            click.echo(f"{outcome.point.name}: {mark}: {each.name}: {each.explained or each.explanation}")
    blamed = sum(outcome.blames for outcome in outcomes)
    click.echo(f"{len(outcomes)} of {len(points)} points are done; {blamed} of them blame the kernel under test")
