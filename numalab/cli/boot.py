"""`numalab boot`: a machine, and a command or a shell in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from numalab.cli.options import kernel_option, machine_options
from numalab.errors import NumalabError

if TYPE_CHECKING:
    from numalab.machine.outcome import Completed
    from numalab.machine.session import Machine

_COMPLAINTS_SHOWN = 10


@click.command("boot", context_settings={"ignore_unknown_options": False})
@kernel_option
@machine_options
@click.option("--nested", is_flag=True, help="The guest gets SVM (VMX on Intel) and can run guests of its own.")
@click.option("--share", type=click.Path(path_type=Path), help="Directory mounted read-only at /share.")
@click.option("--append", default="", help="Words added to the kernel's command line.")
@click.option(
    "--host-program",
    "host_programs",
    multiple=True,
    metavar="NAME",
    help="A dynamic program of the host, e.g. redis-server: mounts the host's /usr read-only.",
)
@click.option("--timeout", type=float, help="Seconds of wall time the command may take.")
@click.option("--huge-pages", is_flag=True, help="Back the guest's memory with the host's huge pages.")
@click.option("--count-instructions", is_flag=True, help="The guest's time-stamp counter counts instructions.")
@click.option("--connect", "uri", default="embed", show_default=True, help="embed, or a libvirt URI: qemu:///system.")
@click.option("--dry-run", is_flag=True, help="Print the libvirt domain and stop.")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED)
def command(argv: tuple[str, ...], **options: Any) -> int:
    """Boot a machine; run COMMAND in it, or a shell.

    The command's output is ours, byte for byte, and so is its exit status; a lost machine
    (panic, hang, QEMU died) is status 4.
    """
    from numalab.cli.options import topology_from
    from numalab.errors import ExperimentError
    from numalab.kernel.images import resolve
    from numalab.machine import accel, domain
    from numalab.machine.outcome import GuestFileError
    from numalab.machine.session import EXEC_ERRNOS, Machine

    topology = topology_from(options)
    machine = Machine(
        resolve(options["kernel"], build=True),
        topology,
        extra_files=_workloads(),
        **{
            k: options[k]
            for k in (
                "accel",
                "append",
                "share",
                "nested",
                "host_programs",
                "uri",
                "mirror_host",
                "huge_pages",
                "count_instructions",
            )
        },
    )
    if options["dry_run"]:
        click.echo(domain.to_xml(machine.spec))
        return 0
    how = "emulation that counts instructions" if machine.count_instructions else accel.describe(machine.accel)
    click.echo(f"numalab: {topology}; {how}", err=True)
    with machine:
        try:
            done = _relay(machine, list(argv), options["timeout"])
        except GuestFileError as error:
            reason = EXEC_ERRNOS.get(error.errno or 0, error.strerror)
            raise ExperimentError(f"{argv[0]}: {reason}") from error
    for line in machine.complaints[:_COMPLAINTS_SHOWN]:
        click.echo(f"numalab: the guest's kernel complained: {line}", err=True)
    return done.status if done.status is not None else 128 + (done.signal or 0)


def _workloads() -> dict[str, Path]:
    from workloads.build import binaries

    return {f"/bin/{name}": path for name, path in binaries().items()}


def _relay(machine: Machine, argv: list[str], timeout: float | None) -> Completed:
    """Run `argv`, or a shell, with our own input and output; on our terminal when it is a shell's."""
    import os
    import sys
    import termios
    import threading
    import tty

    from numalab.machine import channel as ch
    from numalab.machine.process import Process

    def show(kind: bytes, data: bytes) -> None:
        os.write(2 if kind == ch.STDERR else 1, data)

    on_terminal = not argv and sys.stdin.isatty()
    size = os.get_terminal_size() if on_terminal else os.terminal_size((80, 24))
    env = {"COLUMNS": str(size.columns), "LINES": str(size.lines), "PS1": "guest:\\w\\$ "} if not argv else {}
    words = argv or (["sh", "-i"] if on_terminal else ["sh"])
    process = Process(machine, words, tty=on_terminal, env=env, tap=show, hold_input=True)

    def feed() -> None:
        try:
            while data := os.read(0, 4096):
                process.write(data)
            process.write(b"")
        except (OSError, NumalabError):
            pass  # our input, or the machine, is gone: the waiter says which

    saved = termios.tcgetattr(0) if on_terminal else None
    try:
        if saved:
            tty.setraw(0)
        if argv and sys.stdin.isatty():
            process.write(b"")  # a command does not wait for somebody to type
        else:
            threading.Thread(target=feed, daemon=True).start()
        return process.wait(timeout)
    finally:
        if saved:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
