"""The memory of a guest that stands still, as its QEMU reads it, and whether it is that of another one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numalab.errors import ExperimentError
from numalab.machine.second import SecondLevel
from numalab.machine.session import Machine
from vmitosis.survival.keeper import PAGESUMS

#: Below 1 MiB there are holes and ROMs.
_LOW = 1 << 20
_FIRST = _LOW >> 12
_SECONDS = 600.0
_DAY = 86_400


class Memory:
    """A copy of a guest's memory from 1 MiB on, in a file of its machine; `remove` it.

    Attributes:
        sums: checksum of each page.
    """

    def __init__(self, guest: SecondLevel, name: str) -> None:
        self._machine: Machine = guest.machine
        self._file = f"/tmp/memory.{name}"
        guest.qmp.execute(
            "pmemsave", val=_LOW, size=guest.topology.memory - _LOW, filename=self._file, timeout=_SECONDS
        )
        done = self._machine.run([PAGESUMS, self._file], timeout=_SECONDS, check=True)
        self.sums: NDArray[np.uint64] = np.frombuffer(done.stdout, "<u8")

    def page(self, frame: int) -> NDArray[np.uint32]:
        """A page, by frame of the guest, as 1024 numbers."""
        words = ["dd", f"if={self._file}", "bs=4096", f"skip={frame - _FIRST}", "count=1"]
        return np.frombuffer(self._machine.run(words, check=True).stdout, "<u4")

    def remove(self) -> None:
        """Give the file's memory back."""
        self._machine.run(["rm", "-f", self._file])


def compare(before: Memory, after: Memory) -> int:
    """Bytes of two memories that are the same, but for the wall clock.

    KVM writes the guest's paravirtual wall clock, 12 bytes, whenever a VMM sets its MSR, and so whenever a guest has
    been restored, on any kernel.

    Raises:
        ExperimentError: more than that differs; says where and what.
    """
    if before.sums.shape != after.sums.shape or not before.sums.size:
        raise ExperimentError(f"{before.sums.size} pages before, {after.sums.size} after")
    frames = [_FIRST + int(place) for place in np.flatnonzero(before.sums != after.sums)]
    clocks, words = 0, []
    for frame in frames[:8]:
        one, two = before.page(frame), after.page(frame)
        if not clocks and is_wall_clock(one, two):
            clocks += 1
            continue
        places = np.flatnonzero(one != two)[:6].tolist()
        words.append(f"frame {frame:#x}: " + ", ".join(f"{4 * at:#x}: {one[at]:#x} → {two[at]:#x}" for at in places))
    if words:
        raise ExperimentError(f"{len(frames) - clocks} pages differ: " + "; ".join(words))
    return 4096 * before.sums.size


def is_wall_clock(one: NDArray[np.uint32], two: NDArray[np.uint32]) -> bool:
    """Whether all that differs is a later `struct pvclock_wall_clock`: version, seconds, nanoseconds."""
    places = np.flatnonzero(one != two)
    at = int(places[0])
    if int(places[-1]) > at + 2 or at + 3 > len(one):
        return False
    (version, seconds, _), (later, then, nanoseconds) = one[at : at + 3].tolist(), two[at : at + 3].tolist()
    settled = version % 2 == later % 2 == 0 and version < later
    return bool(settled and 0 <= then - seconds <= _DAY and nanoseconds < 10**9)
