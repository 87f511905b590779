"""Swap for a machine that has no disk: a compressed RAM disk (zram), in the machine's own memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from numalab.errors import ExperimentError, MachineLostError, MissingError
from numalab.machine.commands import Commands
from numalab.machine.outcome import GuestFileError
from numalab.units import parse_size

DEVICE = "/dev/zram0"
_SYSFS = "/sys/block/zram0"


@contextmanager
def swap_on(machine: Commands, size: str) -> Iterator[None]:
    """Give the machine `size` of swap while the context lasts; what is there by then is read back at its end.

    Raises:
        MissingError: the machine's kernel has no zram.
        ExperimentError: the device is in use, or swapping could not be switched on or off.
    """
    try:
        machine.read_file(f"{_SYSFS}/disksize")
    except GuestFileError:
        raise MissingError("this kernel has no zram (CONFIG_ZRAM), and the machine no other disk to swap to") from None
    try:
        machine.write_file(f"{_SYSFS}/disksize", f"{parse_size(size, what='swap')}\n".encode())
        _do(machine, "mkswap", DEVICE)
        _do(machine, "swapon", DEVICE)
    except GuestFileError as error:
        raise ExperimentError(f"{DEVICE} cannot be had for swap: {error.strerror}") from error
    try:
        yield
    except MachineLostError:
        raise
    except BaseException:
        machine.run(["swapoff", DEVICE])
        raise
    else:
        _do(machine, "swapoff", DEVICE)
        machine.write_file(f"{_SYSFS}/reset", b"1\n")


def _do(machine: Commands, *argv: str) -> None:
    done = machine.run(argv)
    if not done.ok:
        raise ExperimentError(f"{' '.join(argv)}: {done.stderr.decode(errors='replace').strip() or done}")
