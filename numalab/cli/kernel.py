"""`numalab kernel`: build, find, list and check kernels."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from numalab.kernel.each import Tried

_SOURCE = click.option(
    "--source",
    metavar="DEB|TREE|TARBALL",
    help="6.12.y source instead of Debian's package: a .deb, a directory (only read) or a tarball.",
)
_SETS = click.option("--sets", metavar="A,B", help="Only these patch sets ('none': no patch at all); default: all.")
_DEBUG = click.option(
    "--debug", "flavour", flag_value="debug", help="The debug flavour: KASAN, lockdep and more; slow."
)
_RACES = click.option(
    "--races", "flavour", flag_value="races", help="The flavour that reports data races: KCSAN; slow."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("kernel", short_help="Build, find, list and check kernels.")
def command() -> None:
    """Build, find, list and check kernels.

    Kernels have names: "stock" (Debian's prebuilt one), "patched", "debug" and "races" (built here from
    Debian's source and the patch series), "patched:SETS" with some patch sets only, the id of a
    cached one, or a path to a bzImage.
    """


@command.command()
@_SETS
@_DEBUG
@_RACES
@_SOURCE
@click.option("--jobs", "-j", type=click.IntRange(1), help="Of make; default: CPUs + 1.")
@_JSON
def build(sets: str | None, flavour: str | None, source: str | None, jobs: int | None, as_json: bool) -> None:
    """Build the patched kernel, unless the cache has it. Interrupted, it resumes."""
    from numalab.kernel.build import build as build_kernel
    from numalab.kernel.plan import PATCHED
    from numalab.kernel.progress import for_stream
    from numalab.kernel.series import parse_sets
    from numalab.units import format_size

    with for_stream() as progress:
        image = build_kernel(flavour or PATCHED, sets=parse_sets(sets), request=source, jobs=jobs, progress=progress)
    if as_json:
        _print_json({**image.provenance, "path": str(image.path)})
        return
    sizes = image.provenance["bytes"]
    click.echo(f"{image.name}  {image.release}  id {image.provenance['id']}  build-id {image.build_id}")
    click.echo(f"{image.path}  ({format_size(sizes['bzImage'])}; vmlinux {format_size(sizes['vmlinux'])})")


@command.command()
@click.option("--kernel", default="patched", show_default=True, metavar="NAME", help="Which kernel.")
@_JSON
def path(kernel: str, as_json: bool) -> None:
    """Print the path of a kernel image; downloads "stock" when needed, builds nothing."""
    from dataclasses import asdict

    from numalab.kernel.images import resolve
    from numalab.kernel.progress import for_stream

    with for_stream() as progress:
        image = resolve(kernel, progress=progress)
    if as_json:
        _print_json(asdict(image))
    else:
        click.echo(image.path)


@command.command("list")
@_JSON
def list_kernels(as_json: bool) -> None:
    """List the kernels that have names, and whether they are there."""
    from numalab.kernel.images import available

    rows = available()
    if as_json:
        _print_json(rows)
        return
    from rich.table import Table

    from numalab.cli.console import table_console
    from numalab.units import format_size

    table = Table(box=None, pad_edge=False)
    for title in ("name", "state", "release", "sets", "size", "built", "id"):
        table.add_column(title, justify="right" if title == "size" else "left", overflow="fold")
    for row in rows:
        size = format_size(row["bytes"]) if row["bytes"] is not None else "-"
        sets = ",".join(row["sets"]) or "-"
        table.add_row(
            row["name"], row["state"], row["release"] or "-", sets, size, row["built"] or "-", row["id"] or "-"
        )
    table_console().print(table)


@command.command()
@_SETS
@_SOURCE
@_JSON
def check(sets: str | None, source: str | None, as_json: bool) -> None:
    """Apply the series to a source in a scratch directory; report offsets, or what does not apply."""
    from numalab.errors import ExperimentError
    from numalab.kernel.build import check as check_series
    from numalab.kernel.progress import for_stream
    from numalab.kernel.series import parse_sets

    try:
        with for_stream() as progress:
            done = check_series(source, sets=parse_sets(sets), progress=progress)
    except ExperimentError as error:
        if as_json:
            _print_json({"applies": False, "error": str(error)})
        raise
    if as_json:
        _print_json({"applies": True, "source": done.source.to_json(), **done.overlay.to_json()})
        return
    for offset in done.overlay.offsets:
        click.echo(str(offset))
    count = len(done.overlay.patches)
    moved = len(done.overlay.offsets)
    where = f"{moved} hunk{'s' * (moved != 1)} with an offset" if moved else "every hunk where it says"
    if count:
        click.echo(f"{count} patch{' applies' if count == 1 else 'es apply'} to {done.source}, {where}")
    else:
        click.echo(f"no patch is selected; the source is {done.source}")


@command.command("each")
@_SETS
@_SOURCE
@click.option("--jobs", "-j", type=click.IntRange(1), help="Of make; default: CPUs + 1.")
@click.option("--again", is_flag=True, help="Try also what was fine before.")
@click.option("--accel", default="tcg", show_default=True, metavar="auto|kvm|tcg")
@_JSON
def each_patch(sets: str | None, source: str | None, jobs: int | None, again: bool, accel: str, as_json: bool) -> int:
    """Build and boot the kernel after each patch of the series.

    One kept tree is built incrementally; every kernel is booted on an emulated machine of four nodes, where its
    log must hold no warning. What was fine is not tried again until a patch, the configuration, the source or
    the compiler changes. Status 1: a patch does not apply, build or boot, or its kernel complains.
    """
    from numalab.kernel import each
    from numalab.kernel.progress import for_stream
    from numalab.kernel.series import parse_sets
    from numalab.machine.accel import choose

    found = []
    with for_stream() as progress:
        answers = each.each(
            each.boot_on_four_nodes(choose(accel)),
            sets=parse_sets(sets),
            request=source,
            jobs=jobs,
            again=again,
            progress=progress,
        )
        for done in answers:
            found.append(done)
            if not done.stood:
                progress.note(f"{done.patch}: {done.state}")
    if as_json:
        _print_json([done.to_json() for done in found])
    else:
        _print_each(found)
    return int(any(done.state is not each.State.OK for done in found))


def _print_each(found: list[Tried]) -> None:
    """A row per patch, then what went wrong with each that is not fine."""
    from rich.table import Table

    from numalab.cli.console import table_console
    from numalab.kernel.each import State

    table = Table(box=None, pad_edge=False)
    for title in ("patch", "kernel", "built in", "warnings", "boot", "state"):
        table.add_column(title, overflow="fold")
    for done in found:
        built = "-" if done.build_seconds is None else f"{done.build_seconds:.0f} s"
        boot = "-" if done.boot_seconds is None else f"{done.boot_seconds:.1f} s"
        state = f"{done.state}, as on {done.when[:10]}" if done.stood else str(done.state)
        table.add_row(done.patch, done.release or "-", built, str(len(done.warnings)), boot, state)
    table_console().print(table)
    good = sum(done.state is State.OK for done in found)
    click.echo(f"{good} of {len(found)} patches build and boot")
    for done in found:
        for line in done.warnings:
            click.echo(f"{done.patch}: {line}", err=True)
        if done.detail:
            click.echo(f"{done.patch}: {done.state}: {done.detail}\n  → logs: {done.logs}", err=True)


@command.command("source")
@_SOURCE
def source_path(source: str | None) -> None:
    """Print the directory of the unpacked source; fetches Debian's package when it is not there yet."""
    from numalab.kernel.progress import for_stream
    from numalab.kernel.source import locate, read_base

    with for_stream() as progress:
        click.echo(locate(source, read_base(), progress).src)


@command.command()
@_SETS
@_DEBUG
@_RACES
@_SOURCE
@click.option("--full", is_flag=True, help="The whole .config, as the source's Kconfig completes it; checked.")
@_JSON
def config(sets: str | None, flavour: str | None, source: str | None, full: bool, as_json: bool) -> None:
    """Print the merged configuration fragments (or, with --full, the .config they lead to)."""
    from numalab.kernel import fragments
    from numalab.kernel.plan import PATCHED, make_plan
    from numalab.kernel.series import parse_sets

    flavour = flavour or PATCHED
    if full or source:
        from numalab.kernel.build import configure
        from numalab.kernel.config import parse_dotconfig
        from numalab.kernel.progress import for_stream

        with for_stream() as progress:
            text = configure(flavour, source, sets=parse_sets(sets), progress=progress)
        if as_json:
            _print_json(parse_dotconfig(text))
        else:
            click.echo(text, nl=False)
        return
    settings = make_plan(flavour, parse_sets(sets)).settings
    if as_json:
        _print_json({one.symbol: {"value": one.value, "where": one.where} for one in settings.values()})
    else:
        click.echo(fragments.render(settings), nl=False)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, default=str))
