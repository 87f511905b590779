"""`numalab snapshot`: where the page tables of processes live."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from numalab.cli.options import kernel_option, machine_options

if TYPE_CHECKING:
    from numalab.machine.outcome import Mark
    from numalab.machine.session import Machine
    from numalab.measure.snapshot import Snapshot

#: Runs when no COMMAND is named: a shell that fills 32 MiB. It announces its start, so that we wait for "ready".
_DEMO_SCRIPT = """
mark() { echo $1 >&$NUMALAB_MARK_FD; read _ <&$NUMALAB_MARK_FD; }
mark init
x=$(dd if=/dev/zero bs=1M count=32 2>/dev/null | tr '\\0' x)
mark ready
"""
_DEMO = ("sh", "-c", _DEMO_SCRIPT)
#: Seconds a program has to announce its first mark before it counts as one that knows no marks.
_PATIENCE = 3.0


@click.command("snapshot")
@kernel_option
@machine_options
@click.option("--pid", "pids", type=int, multiple=True, help="A process of the guest (may be repeated).")
@click.option("--name", "names", multiple=True, help="Processes of this name (may be repeated).")
@click.option("--all", "everything", is_flag=True, help="Every process that has memory of its own.")
@click.option("--at", "mark", default="ready", show_default=True, help="Mark of COMMAND at which to look.")
@click.option("--after", type=float, metavar="SECONDS", help="Look this long after the start instead.")
@click.option("--append", default="", help="Words added to the kernel's command line.")
@click.option("--share", type=click.Path(path_type=Path), help="Directory mounted read-only at /share.")
@click.option("--host-program", "host_programs", multiple=True, metavar="NAME", help="As in `numalab boot`.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--save", "archive", type=click.Path(path_type=Path), metavar="FILE", help="Keep an npz archive.")
@click.option("--svg", type=click.Path(path_type=Path), metavar="FILE", help="Also draw it into an SVG file.")
@click.option("--load", "stored", type=click.Path(path_type=Path), metavar="FILE", help="Show a kept archive.")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED)
def command(stored: Path | None, archive: Path | None, svg: Path | None, as_json: bool, **options: Any) -> int:
    """Boot a machine, run COMMAND in it, and show where its page tables live.

    The machine is paused while it is looked into. Without --pid, --name or --all the process that was
    started is shown; without COMMAND, a shell that fills 32 MiB.
    """
    from numalab.errors import UserError

    if stored and (options["argv"] or archive):
        raise UserError("--load shows a kept snapshot: no COMMAND and no --save beside it")
    if options["everything"] and (options["pids"] or options["names"]):
        raise UserError("--all means every process: no --pid and no --name beside it")
    if stored:
        from numalab.measure.archive import load

        snapshot = load(stored)
    else:
        snapshot = _take(options)
    if archive:
        from numalab.measure.archive import save

        save(snapshot, archive)
        click.echo(f"numalab: kept as {archive}", err=True)
    from numalab.measure.render import render, to_svg

    if svg:
        from numalab.paths import write_atomic

        write_atomic(svg, to_svg(snapshot))
    if as_json:
        import json

        click.echo(json.dumps(snapshot.to_json(), indent=1))
    else:
        from rich.console import Console

        render(snapshot, Console())
    return 0


def _take(options: dict[str, Any]) -> Snapshot:
    """Boot, start the command, look at the right moment, power off."""
    from numalab.cli.options import topology_from
    from numalab.errors import ExperimentError
    from numalab.kernel.images import resolve
    from numalab.machine import accel
    from numalab.machine.outcome import CommandFailedError, CommandTimeoutError, GuestFileError
    from numalab.machine.session import EXEC_ERRNOS, Machine
    from numalab.measure.take import detach, take
    from workloads.build import binaries

    topology = topology_from(options)
    kernel = resolve(options["kernel"], build=True)
    argv = options["argv"] or _DEMO
    after: float | None = options["after"]
    files = {f"/bin/{name}": path for name, path in binaries().items()}
    machine = Machine(
        kernel,
        topology,
        extra_files=files,
        **{k: options[k] for k in ("accel", "append", "share", "host_programs", "mirror_host")},
    )
    click.echo(f"numalab: {kernel.release}; {topology}; {accel.describe(machine.accel)}", err=True)
    taken: list[Snapshot] = []
    spoke: list[str] = []

    def look(label: str) -> None:
        chosen = None if options["everything"] or options["names"] else [process.pid]
        pids = options["pids"] or chosen
        taken.append(take(machine, pids, names=options["names"] or None, label=label))

    def on_mark(mark: Mark, _: Machine) -> None:
        spoke.append(mark.name)
        if after is None and mark.name == options["mark"] and not taken:
            look(mark.name)

    with machine:
        try:
            process = machine.start(argv, on_mark=on_mark)
        except GuestFileError as error:
            reason = EXEC_ERRNOS.get(error.errno or 0, error.strerror)
            raise ExperimentError(f"{argv[0]}: {reason}") from error
        try:
            try:
                if after is None:
                    process.wait_mark(options["mark"], _PATIENCE)
                else:  # no program announces this mark
                    process.wait_mark(f"{after:g} s after its start", after)
            except CommandTimeoutError:
                if after is None and spoke:
                    process.wait_mark(options["mark"])
                else:
                    look(f"after {_PATIENCE if after is None else after:g} s")
        except CommandFailedError as error:
            raise ExperimentError(
                f"{error}, before there was anything to look at",
                remedy="choose another moment: --at MARK or --after SECONDS",
            ) from error
        finally:
            detach(machine)
    return taken[0]
