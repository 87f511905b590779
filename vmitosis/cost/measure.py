"""Counting: the small virtual machine in a machine that counts instructions, and what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from numalab.errors import ExperimentError
from numalab.kernel.image import KernelImage
from numalab.machine.rootfs import static_program
from numalab.machine.session import Machine
from numalab.machine.topology import uniform
from vmitosis.second_level import Tables, parse

_SOURCE = Path(__file__).with_name("faults.c")
_PROGRAM = "/bin/faults"
#: Nodes of one CPU each, and MiB that a vCPU on each of them touches.
NODES, MIB = 2, 16
PAGES = MIB << 8
EXITS = 10_000
#: What faults.c is told: "kernel" leaves the mode to the kernel, for one that knows none.
MODES: Mapping[str, int] = {"kernel": -1, "off": 0, "local": 1, "replicate": 2}
_LINE = re.compile(r"phase (\w+) vcpu (\d+) cpu \d+ ticks (\d+) faults (-?\d+) entries (-?\d+)")
_SECONDS = 1800.0


@dataclass(frozen=True)
class Phase:
    """What a vCPU did.

    Attributes:
        instructions: of all CPUs of the machine, kernel, guest and interrupts together.
        faults: second-level faults that mapped something (KVM's pf_fixed).
        entries: by which KVM's pages_4k grew.
    """

    instructions: int
    faults: int
    entries: int


@dataclass(frozen=True)
class Counted:
    """A run.

    Attributes:
        kernel, mode: under which; mode as in `MODES`.
        phases: (name, vCPU; that is its node) → what it did.
        tables: where they are in the end; None where the kernel does not say.
    """

    kernel: str
    mode: str
    phases: Mapping[tuple[str, int], Phase]
    tables: Tables | None

    def per_fault(self, vcpu: int) -> float | None:
        """Instructions for a second-level fault of a vCPU, without those of the access itself; None: none came."""
        first, again = self.phases["first", vcpu], self.phases["again", vcpu]
        return (first.instructions - again.instructions) / first.faults if first.faults >= PAGES // 2 else None

    def per_page(self, vcpu: int) -> float:
        """Faults for each page that a vCPU touches first on its node."""
        return self.phases["first", vcpu].faults / PAGES

    def per_exit(self, vcpu: int) -> float:
        """Instructions for an exit that the kernel handles, and the entry that follows."""
        return self.phases["exits", vcpu].instructions / EXITS


def machine_for(kernel: KernelImage, log_dir: Path | None = None) -> Machine:
    """Describe a machine that counts instructions and can run guests."""
    return Machine(
        kernel,
        uniform(NODES, 1, "512M"),
        nested=True,
        count_instructions=True,
        extra_files={_PROGRAM: static_program("faults", [_SOURCE], "faults.c")},
        log_dir=log_dir,
        boot_timeout=300,
    )


def count(machine: Machine, mode: str) -> Counted:
    """Run the small virtual machine in `machine`.

    Raises:
        ExperimentError: it failed, for one because the kernel knows no such mode.
    """
    words = [_PROGRAM, str(MIB), str(MODES[mode]), *(str(cpu) for cpu in range(NODES))]
    done = machine.run(words, timeout=_SECONDS)
    if not done.ok:
        raise ExperimentError(f"{machine.kernel.name}, {mode}: {done}: {done.stderr.decode().strip()}")
    return read(done.stdout.decode(), machine.kernel.name, mode)


def read(text: str, kernel: str, mode: str) -> Counted:
    """Read what faults.c prints.

    Raises:
        ExperimentError: something is missing.
    """
    phases = {
        (name, int(vcpu)): Phase(int(ticks), int(faults), int(entries))
        for name, vcpu, ticks, faults, entries in _LINE.findall(text)
    }
    lacking = [(name, vcpu) for name in ("first", "again", "exits") for vcpu in range(NODES)]
    lacking = [each for each in lacking if each not in phases]
    if lacking:
        raise ExperimentError(f"faults.c did not say {lacking}: {text!r}")
    lines = [line.removeprefix("tables ") for line in text.splitlines() if line.startswith("tables ")]
    return Counted(kernel, mode, phases, parse("\n".join(lines)) if lines else None)
