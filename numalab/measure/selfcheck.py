"""Check a snapshot against the kernel's own counts: two independent ways to the same numbers.

* `mm->pgtables_bytes`, read at the same instant as the walk: must be equal.
* `VmPTE` of /proc/PID/status: the same number as the kernel prints it, in kB.
* `/proc/PID/numa_pgtables` of patch set `common`: the kernel's own walk, by level and node.
"""

from __future__ import annotations

from dataclasses import dataclass

from numalab.errors import ExperimentError
from numalab.measure import numa_pgtables
from numalab.measure.counters import ProcessStatus
from numalab.measure.numa_pgtables import NumaPgtables
from numalab.measure.snapshot import ProcessPlacement, Snapshot


@dataclass(frozen=True)
class Difference:
    """A number on which the walk and the kernel disagree."""

    pid: int
    what: str
    walked: object
    kernel: object

    def __str__(self) -> str:
        return f"process {self.pid}: {self.what}: walked {self.walked}, the kernel says {self.kernel}"


def against_account(snapshot: Snapshot) -> list[Difference]:
    """Compare every process with the kernel's account at the same instant; [] when all agree."""
    return [
        Difference(each.pid, "page-table bytes", each.accounted_bytes(), each.pgtables_bytes)
        for each in snapshot.processes
        if each.pgtables_bytes is not None and each.accounted_bytes() != each.pgtables_bytes
    ]


def against_status(process: ProcessPlacement, status: ProcessStatus) -> list[Difference]:
    """Compare one process with its /proc/PID/status, read while it was quiet; [] when they agree."""
    walked = process.accounted_bytes()
    if status.page_tables == walked:
        return []
    return [Difference(process.pid, "VmPTE in bytes", walked, status.page_tables)]


def against_numa_pgtables(process: ProcessPlacement, kernel: NumaPgtables) -> list[Difference]:
    """Compare one process with its numa_pgtables, read while it was quiet; [] when they agree."""
    walked = numa_pgtables.of(process)
    found = []
    for name in sorted(walked.tables.keys() | kernel.tables.keys()):
        mine, theirs = walked.tables.get(name, {}), kernel.tables.get(name, {})
        if mine != theirs:
            found.append(Difference(process.pid, f"table pages ({name}) by node", mine, theirs))
    for size, node in sorted(walked.leaves.keys() | kernel.leaves.keys()):
        ours, kernels = walked.leaves.get((size, node), {}), kernel.leaves.get((size, node), {})
        if ours != kernels:
            what = f"leaf entries of {size} bytes in tables on node {node}"
            found.append(Difference(process.pid, what, ours, kernels))
    return found


def check(snapshot: Snapshot) -> None:
    """Raise ExperimentError unless the snapshot agrees with the kernel's account of every process."""
    if differences := against_account(snapshot):
        raise ExperimentError(
            "the snapshot disagrees with the kernel:\n" + "\n".join(f"  {each}" for each in differences),
            remedy="a process was in the middle of changing its page tables: take it again at a mark",
        )
