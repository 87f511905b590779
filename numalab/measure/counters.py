"""Counters that the guest's kernel keeps: /proc/vmstat, numastat, /proc/PID/status.

Values are ints. A counter that a kernel lacks is not in the mapping: missing, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from numalab.errors import ExperimentError


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


def parse_node_list(text: str) -> list[int]:
    """A kernel list like "0-2,5" as numbers.

    Raises:
        ExperimentError: when it is not such a list.
    """
    numbers: list[int] = []
    try:
        for part in filter(None, text.strip().split(",")):
            first, _, last = part.partition("-")
            numbers.extend(range(int(first), int(last or first) + 1))
    except ValueError:
        raise ExperimentError(f"not a list of nodes: {text.strip()!r}") from None
    return numbers


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
            "numastat": {str(node): dict(values) for node, values in self.numastat.items()},
        }


def _difference(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {name: value - before[name] for name, value in after.items() if name in before}


def read(machine: GuestFiles) -> Counters:
    """Read the counters of a machine now."""
    online = parse_node_list(machine.read_file("/sys/devices/system/node/online").decode())
    return Counters(
        parse_vmstat(machine.read_file("/proc/vmstat").decode()),
        {
            node: parse_vmstat(machine.read_file(f"/sys/devices/system/node/node{node}/numastat").decode())
            for node in online
        },
    )


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
            mems_allowed=tuple(parse_node_list(lines.get("Mems_allowed_list", ""))),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise ExperimentError(f"not the text of /proc/PID/status: {error!r}") from error


def status(machine: GuestFiles, pid: int) -> ProcessStatus:
    """Read a process's status now."""
    return parse_status(machine.read_file(f"/proc/{pid}/status").decode("utf-8", "replace"))
