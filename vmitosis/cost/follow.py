"""How long the tables of a guest that moves to another node take to follow it, by the clock of its machine."""

from __future__ import annotations

import time
from dataclasses import dataclass

from numalab.errors import ExperimentError
from numalab.kernel.image import KernelImage
from numalab.machine.second import HOST_PROGRAMS, SecondLevel
from numalab.machine.session import Machine
from numalab.machine.topology import uniform
from numalab.units import parse_size
from vmitosis.provision import Shape, boot
from vmitosis.second_level import DebugFiles, no_balancing, uptime
from vmitosis.survival.keeper import Keeper, guest_files

_INTERVAL = "/sys/module/kvm/parameters/numa_mmu_follow_ms"
MEMORY = "160M"


@dataclass(frozen=True)
class Followed:
    """A guest moved once; seconds of the machine's clock after the move.

    Attributes:
        interval: of KVM's worker.
        old_gone: until no table of the second level was left on the old node.
        refilled: until there were as many entries as before (9 of 10).
        entries, tables: of the second level before the move.
    """

    interval: float
    old_gone: float
    refilled: float
    entries: int
    tables: int

    @property
    def promised(self) -> float:
        """Until the old tables are gone (Documentation/virt/kvm/x86/numa-mmu.rst)."""
        return 3 * self.interval


def measure(kernel: KernelImage) -> Followed:
    """Move a Thin guest, whose memory is read and written all the time, from one node to the other.

    Raises:
        ExperimentError: its tables did not follow within a minute.
        GuestFileError: the kernel has no such feature.
    """
    with Machine(kernel, uniform(2, 1, "768M"), nested=True, host_programs=HOST_PROGRAMS, boot_timeout=300) as machine:
        interval = int(machine.read_file(_INTERVAL)) / 1000
        no_balancing(machine)
        shape = Shape(wide=False, visible=False, memory=parse_size(MEMORY))
        with boot(shape, kernel, inside=machine, files=guest_files()) as guest:
            assert isinstance(guest, SecondLevel)
            files = DebugFiles(machine, guest.qemu_pid)
            files.write("numa_mmu", "local")
            keeper = Keeper(guest, live=48, same=0)
            made = move(guest, files, 1, interval)
            keeper.finish()
            return made


def move(guest: SecondLevel, files: DebugFiles, node: int, interval: float) -> Followed:
    """Move the vCPUs of a guest in the mode `local` and wait for its tables; see `measure`."""
    before = files.tables()
    entries, pages = sum(before.leaves.values()), sum(before.pages.values())
    guest.move(node)
    moved, begun = uptime(guest.machine), time.monotonic()
    gone: float | None = None
    while True:
        now, passed = files.tables(), uptime(guest.machine) - moved
        # An emptied tree is not one that has followed.
        if gone is None and now.pages and all(where == node for _, _, where in now.pages):
            gone = passed
        if gone is not None and sum(now.leaves.values()) >= 0.9 * entries:
            return Followed(interval, gone, passed, entries, pages)
        if time.monotonic() - begun > 300:
            raise ExperimentError(f"the second level did not follow within {passed:.0f} s: {now.pages}")
        time.sleep(0.05)
