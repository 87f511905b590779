"""What the kernel says of same-page merging: the files of KSM, of a process, and the frames behind its pages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nuksm.metrics import Savings, Scan, Worker
from nuksm.policies import KSM
from numalab.errors import ExperimentError
from numalab.machine.outcome import Completed, GuestFileError

#: Where the workloads map memory that KSM may merge (workloads/common/setup.c).
REGION = 16 << 40
#: Documentation/admin-guide/mm/pagemap.rst: bits of an entry of /proc/PID/pagemap.
_FRAME = np.uint64((1 << 55) - 1)
_PRESENT = np.uint64(1 << 63)
_PAGE = 4096

COUNTERS = ("full_scans", "pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "pages_scanned")
#: Those of the patch set; missing elsewhere.
NUMA_COUNTERS = ("numa_sampled", "numa_accessed", "numa_migrated", "numa_migrate_failed", "numa_copies")
NUMA_USES = ("numa_local", "numa_remote")

_WORKER = re.compile(r"worker (\d+) node (-?\d+) scanned (\d+) time_ns (\d+)")
_MERGER = re.compile(r"merger handed (\d+) time_ns (\d+)")


class Guest(Protocol):
    """What a machine must offer (`numalab.machine.session.Machine` does)."""

    def read_file(self, path: str) -> bytes:
        """Content of a file of the guest."""

    def run(self, argv: list[str]) -> Completed:
        """Run a command of the guest to its end."""


def parse_stat(text: str) -> dict[str, int]:
    """Return the numbers of /proc/PID/ksm_stat by name; lines that hold no number (yes, no) are left out."""
    words = (line.replace(":", " ").split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and re.fullmatch(r"-?\d+", pair[1])}


def parse_workers(text: str) -> Scan:
    """Return what scan_workers says.

    Raises:
        ExperimentError: a line that is neither a worker's nor the merger's, or no line of the merger.
    """
    workers = []
    merger: tuple[int, int] | None = None
    for line in text.splitlines():
        if found := _WORKER.fullmatch(line.strip()):
            number, node, scanned, cost = map(int, found.groups())
            workers.append(Worker(number, node, scanned, cost))
        elif found := _MERGER.fullmatch(line.strip()):
            merger = (int(found[1]), int(found[2]))
        else:
            raise ExperimentError(f"not a line of {KSM}/scan_workers: {line!r}")
    if merger is None:
        raise ExperimentError(f"{KSM}/scan_workers does not speak of the merger: {text!r}")
    return Scan(tuple(workers), *merger)


def parse_nodes(text: str) -> dict[int, int]:
    """Return pages by node from `N0=12 N1=7`.

    Raises:
        ExperimentError: something else.
    """
    found = {}
    for word in text.split():
        pair = re.fullmatch(r"N(\d+)=(\d+)", word)
        if not pair:
            raise ExperimentError(f"not pages by node: {text!r}")
        found[int(pair[1])] = int(pair[2])
    return found


def counters(guest: Guest) -> dict[str, int]:
    """Return the counters of KSM by name; those that this kernel lacks are not among them."""
    found = {}
    for name in (*COUNTERS, *NUMA_COUNTERS, *NUMA_USES):
        try:
            found[name] = int(guest.read_file(f"{KSM}/{name}"))
        except GuestFileError:
            continue
    return found


def savings(values: Mapping[str, int]) -> Savings:
    """Return what is saved, from `counters`."""
    return Savings(values["pages_shared"], values["pages_sharing"], values.get("numa_copies", 0))


def stat(guest: Guest, pid: int) -> dict[str, int]:
    """Return the numbers of a process's ksm_stat now."""
    return parse_stat(guest.read_file(f"/proc/{pid}/ksm_stat").decode(errors="replace"))


def frames(guest: Guest, pid: int, pages: int, address: int = REGION) -> NDArray[np.int64]:
    """Return the frame behind each of `pages` pages of a process from `address` (a multiple of 2 MiB) on, -1: none.

    Raises:
        ExperimentError: the guest could not read its pagemap, or did not show frames (that takes root).
    """
    blocks = -(-pages * 8 // _PAGE)
    skip = address // _PAGE * 8 // _PAGE
    done = guest.run(["dd", f"if=/proc/{pid}/pagemap", f"bs={_PAGE}", f"skip={skip}", f"count={blocks}"])
    entries = np.frombuffer(done.stdout[: pages * 8], "<u8")
    if not done.ok or len(entries) < pages:
        raise ExperimentError(f"/proc/{pid}/pagemap: {done}: {done.stderr.decode(errors='replace').strip()}")
    present = (entries & _PRESENT) != 0
    frame = (entries & _FRAME).astype(np.int64)
    if present.any() and not frame[present].any():
        raise ExperimentError(f"/proc/{pid}/pagemap shows no frames: the reader is not root")
    return np.where(present, frame, -1)
