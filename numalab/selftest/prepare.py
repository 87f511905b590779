"""Setting a machine up for one test program, and back."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Mapping

from numalab.errors import ExperimentError, MachineLostError
from numalab.machine.outcome import GuestFileError
from numalab.selftest.catalogue import Program
from numalab.selftest.machine import MachineLike

_NR_HUGEPAGES = "/proc/sys/vm/nr_hugepages"
_HAS_MEMORY = "/sys/devices/system/node/has_memory"
#: Swap is memory compressed: the only block device a machine without disks can have.
_SWAP_DEVICE = "zram0"
_SWAP_BYTES = 256 << 20
_SECONDS = 60.0
#: Begins an entry of `needs` that is no file but a flag of the CPU.
_CPU_FLAG = "cpu:"


class CannotError(Exception):
    """The machine cannot give a program what it needs; says what."""


@contextlib.contextmanager
def prepared(program: Program, machine: MachineLike, files: Mapping[str, str] | None = None) -> Iterator[None]:
    """Check what `program` needs, set it, and set it back at the end of the block.

    `files` of the kernel, and their values, are set before what the program itself asks for.

    Raises:
        CannotError: the machine cannot have it.
    """
    if program.hardware and machine.accel == "tcg":
        raise CannotError("would take hours in emulation")
    for needed in program.needs:
        if not _has(machine, needed):
            raise CannotError(f"needs {needed.removeprefix(_CPU_FLAG)}")
    nodes = memory_nodes(machine)
    if nodes < program.nodes:
        raise CannotError(f"needs {program.nodes} nodes with memory, the machine has {nodes}")
    settings = {**(files or {}), **{_file_of(name): value for name, value in program.sysctls.items()}}
    if program.hugepages:
        settings[_NR_HUGEPAGES] = str(program.hugepages)
    with contextlib.ExitStack() as stack:
        for knob, value in settings.items():
            stack.enter_context(_set(machine, knob, value))
        if program.hugepages and (got := int(machine.read_file(_NR_HUGEPAGES))) < program.hugepages:
            raise CannotError(f"needs {program.hugepages} huge pages, got {got}")
        if program.swap:
            stack.enter_context(_swap(machine))
        yield


def as_user(program: Program, argv: list[str]) -> list[str]:
    """Return the command that runs `argv` as the user the program wants."""
    if not program.user:
        return argv
    return ["su", "-s", "/bin/sh", program.user, "-c", f"exec {shlex.join(argv)}"]


def memory_nodes(machine: MachineLike) -> int:
    """Return the number of NUMA nodes with memory."""
    try:
        text = machine.read_file(_HAS_MEMORY).decode().strip()
    except GuestFileError:
        return 1  # a kernel without NUMA
    count = 0
    for span in filter(None, text.split(",")):
        first, _, last = span.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def _file_of(name: str) -> str:
    return name if name.startswith("/") else f"/proc/sys/{name.replace('.', '/')}"


def _has(machine: MachineLike, needed: str) -> bool:
    if needed.startswith(_CPU_FLAG):
        return needed.removeprefix(_CPU_FLAG).encode() in machine.read_file("/proc/cpuinfo").split()
    # Reading a device node would not tell whether it is there.
    return _succeeds(machine, "test", "-e", needed)


def _value_of(said: bytes) -> bytes:
    """What a file takes to be as it is: of a choice, "always [madvise] never", the word in brackets."""
    chosen = re.search(rb"\[(\S+)\]", said)
    return chosen[1] + b"\n" if chosen else said


@contextlib.contextmanager
def _set(machine: MachineLike, knob: str, value: str) -> Iterator[None]:
    try:
        before = _value_of(machine.read_file(knob))
        machine.write_file(knob, value.encode() + b"\n")
    except GuestFileError as error:
        raise CannotError(f"cannot set {knob} to {value}: {error.strerror}") from error
    try:
        yield
    finally:
        # A lost machine is reported by what found it lost.
        with contextlib.suppress(MachineLostError, GuestFileError):
            machine.write_file(knob, before)


@contextlib.contextmanager
def _swap(machine: MachineLike) -> Iterator[None]:
    """Swap where the kernel has it; a program that makes use of swap skips those of its tests without."""
    device = f"/dev/{_SWAP_DEVICE}"
    if not _succeeds(machine, "test", "-e", device):
        yield
        return
    machine.write_file(f"/sys/block/{_SWAP_DEVICE}/disksize", str(_SWAP_BYTES).encode())
    try:
        if not (_succeeds(machine, "mkswap", device) and _succeeds(machine, "swapon", device)):
            raise ExperimentError(f"swap on {device} cannot be turned on")
        yield
    finally:
        with contextlib.suppress(MachineLostError, GuestFileError):
            _succeeds(machine, "swapoff", device)
            machine.write_file(f"/sys/block/{_SWAP_DEVICE}/reset", b"1")


def _succeeds(machine: MachineLike, *argv: str) -> bool:
    return machine.start(argv).wait(_SECONDS).status == 0
