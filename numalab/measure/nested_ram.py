"""The physical memory of a guest of a guest.

Its pages lie in the address space of the VMM that runs it, inside the machine: a guest frame leads by KVM's memory
slots to an address of the VMM, and that by the VMM's own page tables to a frame of the machine. KVM's second-level
tables say the same for what the guest has touched since they were made; whoever wants to know what *they* say looks
there (`numalab.measure.radix`). So the two can be compared.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from numalab.measure.kvm import Vm
from numalab.measure.pagetable import ENTRIES, PAGE_SHIFT
from numalab.measure.qemu_ram import GuestMemoryError, PhysicalMemory, Range
from numalab.measure.radix import LINUX, lookup

_PAGE = 1 << PAGE_SHIFT


class Host(Protocol):
    """What is needed of the machine (`numalab.measure.guestmem.Guest` has it)."""

    @property
    def levels(self) -> int:
        """Of its page tables."""

    @property
    def ram(self) -> PhysicalMemory:
        """Its memory."""


class NestedRam:
    """Physical memory of a virtual machine inside `host`, which has to stand still whenever this is used.

    A `numalab.measure.qemu_ram.PhysicalMemory`: a `Guest` can be made on it.

    Attributes:
        ranges: of the virtual machine; `Range.host` is the guest's own address again.
    """

    def __init__(self, host: Host, vm: Vm) -> None:
        self._host = host
        self.refresh(vm)

    def refresh(self, vm: Vm) -> None:
        """Forget where pages are: the host may have moved them while it ran."""
        self._root = vm.vmm_root
        self.ranges = [_range(slot.first, slot.pages) for slot in vm.slots]
        self._starts = np.array([slot.first for slot in vm.slots], np.int64)
        self._counts = np.array([slot.pages for slot in vm.slots], np.int64)
        self._pages = np.array([slot.address >> PAGE_SHIFT for slot in vm.slots], np.int64)
        # For each slot frames of the machine, plus one: 0 is not asked yet, -1 is not there.
        self._known = [np.zeros(slot.pages, np.int64) for slot in vm.slots]

    def host_frames(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Frame of the machine behind each guest frame; -1 where there is no memory, or none was touched yet."""
        found = np.full(len(frames), -1, np.int64)
        if not len(self._starts):
            return found
        slot = np.searchsorted(self._starts, frames, side="right") - 1
        inside = (slot >= 0) & (frames - self._starts[slot] < self._counts[slot])
        for number in np.unique(slot[inside]).tolist():
            rows = np.flatnonzero(inside & (slot == number))
            offset = frames[rows] - self._starts[number]
            known = self._known[number]
            unknown = np.unique(offset[known[offset] == 0])
            if len(unknown):
                where = lookup(
                    self._root, self._host.levels, unknown + self._pages[number], self._host.ram.read_pages, LINUX
                )
                known[unknown] = np.where(where.present, where.frame + 1, -1)
            told = known[offset]
            found[rows] = np.where(told > 0, told - 1, -1)
        return found

    def close(self) -> None:
        """Nothing to let go of: the machine's memory is not ours."""

    def read_host(self, host: int, size: int) -> bytes:
        """Bytes at a guest-physical address, across pages.

        Raises:
            GuestMemoryError: one of the pages is not there.
        """
        first, last = host >> PAGE_SHIFT, host + max(size, 1) - 1 >> PAGE_SHIFT
        whole = self.read_pages(np.arange(first, last + 1, dtype=np.int64)).tobytes()
        return whole[host - first * _PAGE :][:size]

    def read(self, address: int, size: int) -> bytes:
        """Bytes at a guest-physical address; see `read_host`."""
        return self.read_host(address, size)

    def read_pages(self, frames: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The pages with these frame numbers, as entries: uint64 [len(frames), 512].

        Raises:
            GuestMemoryError: one of them is not there.
        """
        if not len(frames):
            return np.empty((0, ENTRIES), np.uint64)
        behind = self.host_frames(frames)
        if (behind < 0).any():
            lost = int(frames[behind < 0][0]) << PAGE_SHIFT
            raise GuestMemoryError(f"the second-level guest has no memory at physical address {lost:#x}")
        return self._host.ram.read_pages(behind)


def _range(first: int, pages: int) -> Range:
    return Range(first << PAGE_SHIFT, first + pages << PAGE_SHIFT, first << PAGE_SHIFT)
