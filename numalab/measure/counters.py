"""Counters that the guest's kernel keeps: /proc/vmstat, numastat, /proc/PID/status.

Values are ints. A counter that a kernel lacks is not in the mapping: missing, never 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from numalab.errors import ExperimentError
from numalab.machine.accel import parse_cpu_list
from numalab.machine.outcome import GuestFileError

#: Reading it folds the per-CPU parts in, which makes vmstat exact (admin-guide/sysctl/vm.rst).
_REFRESH = "/proc/sys/vm/stat_refresh"
_NODES = "/sys/devices/system/node"


class GuestFiles(Protocol):
    """What a machine must offer to be read (`numalab.machine.session.Machine` does)."""

    def read_file(self, path: str) -> bytes:
        """Content of a file of the guest."""


def parse_vmstat(text: str) -> dict[str, int]:
    """`name value` lines of /proc/vmstat, or of a node's numastat.

    Raises:
        ExperimentError: for a line that is not of this form; names it.
    """
    found = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        if not name:
            continue
        try:
            found[name] = int(value)
        except ValueError:
            raise ExperimentError(f"not a line of vmstat or numastat: {line!r}") from None
    return found


@dataclass(frozen=True)
class Counters:
    """Counters of a machine at one instant, or the difference between two.

    Attributes:
        vmstat: /proc/vmstat.
        numastat: node → {numa_hit, numa_miss, numa_foreign, interleave_hit, local_node, other_node},
            in pages.
    """

    vmstat: Mapping[str, int] = field(default_factory=dict)
    numastat: Mapping[int, Mapping[str, int]] = field(default_factory=dict)

    def since(self, before: Counters) -> Counters:
        """What changed between `before` and this, for counters that both have; levels (nr_free_pages) may fall."""
        nodes = self.numastat.keys() & before.numastat.keys()
        return Counters(
            _difference(self.vmstat, before.vmstat),
            {node: _difference(self.numastat[node], before.numastat[node]) for node in sorted(nodes)},
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "vmstat": dict(self.vmstat),
            "numastat": {f"node{node}": dict(values) for node, values in self.numastat.items()},
        }


def _difference(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {name: value - before[name] for name, value in after.items() if name in before}


def read(machine: GuestFiles) -> Counters:
    """Read the counters of a machine now; a kernel without NUMA has no numastat."""
    with contextlib.suppress(GuestFileError):
        machine.read_file(_REFRESH)
    numastat = {}
    with contextlib.suppress(GuestFileError):
        for node in parse_cpu_list(machine.read_file(f"{_NODES}/online").decode()):
            numastat[node] = parse_vmstat(machine.read_file(f"{_NODES}/node{node}/numastat").decode())
    return Counters(parse_vmstat(machine.read_file("/proc/vmstat").decode()), numastat)


@dataclass(frozen=True)
class ProcessStatus:
    """What /proc/PID/status says; sizes in bytes, None when the line is not there (kernel threads).

    Attributes:
        name: as in comm.
        state: one letter.
        pid: in the reader's namespace.
        threads: number of threads.
        page_tables: VmPTE: PTE, PMD and PUD pages.
        resident: VmRSS.
        hugetlb: HugetlbPages.
        mems_allowed: nodes the process may allocate from.
    """

    name: str
    state: str
    pid: int
    threads: int
    page_tables: int | None
    resident: int | None
    hugetlb: int | None
    mems_allowed: tuple[int, ...]


def parse_status(text: str) -> ProcessStatus:
    """Parse the text of /proc/PID/status.

    Raises:
        ExperimentError: when it is not one.
    """
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def size(key: str) -> int | None:
        return int(lines[key].split()[0]) * 1024 if key in lines else None

    try:
        return ProcessStatus(
            name=lines["Name"].strip(),
            state=lines["State"].split()[0],
            pid=int(lines["Pid"]),
            threads=int(lines["Threads"]),
            page_tables=size("VmPTE"),
            resident=size("VmRSS"),
            hugetlb=size("HugetlbPages"),
            mems_allowed=tuple(parse_cpu_list(lines.get("Mems_allowed_list", ""))),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise ExperimentError(f"not the text of /proc/PID/status: {error!r}") from error


def status(machine: GuestFiles, pid: int) -> ProcessStatus:
    """Read a process's status now."""
    return parse_status(machine.read_file(f"/proc/{pid}/status").decode("utf-8", "replace"))
