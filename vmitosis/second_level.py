"""A guest's second-level tables as KVM shows them in debugfs of its machine (patch set `vmitosis`), and their size."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from numalab.errors import ExperimentError
from numalab.machine.commands import Commands
from numalab.machine.outcome import GuestFileError
from numalab.run.policy import BALANCING

_DEBUG = "/sys/kernel/debug/kvm"
#: (node the tree is for, or None; level, 1 for 4K entries; node) → number.
ByNode = dict[tuple[int | None, int, int], int]


@dataclass(frozen=True)
class Tables:
    """The trees of a guest, dying ones and those of its own guests left out.

    Attributes:
        pages: table pages by the node they lie on.
        leaves: entries that map memory, by the node of the memory.
    """

    pages: ByNode
    leaves: ByNode

    @property
    def roots(self) -> tuple[int | None, ...]:
        """The nodes there is a tree for, ascending; None is the tree for any node."""
        found = {nid for nid, _, _ in self.pages}
        return tuple(sorted(found, key=lambda nid: -1 if nid is None else nid))

    def bytes_of(self, nid: int | None) -> int:
        """What a tree takes."""
        return sum(pages for (mine, _, _), pages in self.pages.items() if mine == nid) * 4096

    def misplaced(self) -> int:
        """Table pages that lie on another node than their tree is for."""
        return sum(pages for (nid, _, node), pages in self.pages.items() if nid is not None and nid != node)


class DebugFiles:
    """The files of one guest."""

    def __init__(self, machine: Commands, qemu_pid: int) -> None:
        """Find them.

        Raises:
            ExperimentError: KVM shows no such guest.
        """
        self.machine = machine
        listed = machine.run(["ls", _DEBUG]).stdout.decode().split()
        mine = [name for name in listed if name.startswith(f"{qemu_pid}-")]
        if not mine:
            raise ExperimentError(f"{_DEBUG} has no directory for the guest: is debugfs mounted in the machine?")
        self.directory = f"{_DEBUG}/{mine[0]}"

    def read(self, name: str) -> str:
        """Content of a file, without blanks around it."""
        return self.machine.read_file(f"{self.directory}/{name}").decode().strip()

    def number(self, name: str) -> int:
        """A statistic, `pages_4k` for one."""
        return int(self.read(name))

    def write(self, name: str, value: str) -> None:
        """Write a file."""
        self.machine.write_file(f"{self.directory}/{name}", value.encode() + b"\n")

    def tables(self) -> Tables:
        """Where the tables are now.

        Raises:
            ExperimentError: KVM says that one of its own rules is broken; with the lines that say so.
        """
        # It says what is broken and then fails, so that no reading by a library will do.
        done = self.machine.run(["cat", f"{self.directory}/numa_mmu_tables"])
        text = done.stdout.decode()
        broken = [line for line in text.splitlines() if line.startswith("violation")]
        if broken or not done.ok:
            raise ExperimentError("KVM's second-level tables: " + ("; ".join(broken) or done.stderr.decode().strip()))
        return parse(text)


def parse(text: str) -> Tables:
    """Read `numa_mmu_tables` (Documentation/virt/kvm/x86/numa-mmu.rst)."""
    pages: ByNode = {}
    leaves: ByNode = {}
    ordinary: dict[int | None, bool] = {}
    for line in text.splitlines():
        words = line.split()
        said = {key: int(value) for key, value in zip(words[2::2], words[3::2], strict=True)}
        nid = None if words[1] == "-1" else int(words[1])
        if words[0] == "root":
            ordinary[nid] = not (said["invalid"] or said["guest_mode"] or said["as"])
            if ordinary[nid] and said["tables"]:
                key = (nid, said["level"], said["node"])
                pages[key] = pages.get(key, 0) + said["tables"]
        elif ordinary.get(nid) and said["entries"]:
            key = (nid, said["level"], said["node"])
            leaves[key] = leaves.get(key, 0) + said["entries"]
    return Tables(pages, leaves)


def meminfo_kib(machine: Commands, name: str) -> int:
    """KiB of a line of /proc/meminfo; -1 where the kernel has no such line."""
    found = re.search(rf"^{name}:\s+(\d+) kB", machine.read_file("/proc/meminfo").decode(), re.MULTILINE)
    return int(found[1]) if found else -1


def page_table_kib(machine: Commands) -> tuple[int, int]:
    """KiB of page tables of a machine's processes, and of second-level tables of its guests."""
    return meminfo_kib(machine, "PageTables"), meminfo_kib(machine, "SecPageTables")


def no_balancing(machine: Commands) -> None:
    """Switch NUMA balancing off: its hinting faults take entries of the second level away again and again."""
    with suppress(GuestFileError):  # a kernel built without it
        machine.write_file(BALANCING, b"0\n")


def uptime(machine: Commands) -> float:
    """Seconds of a machine's own clock, which an emulation on a busy host may run slowly."""
    return float(machine.read_file("/proc/uptime").split()[0])


def wait_until(what: str | Callable[[], str], true: Callable[[], bool], timeout: float, *, step: float = 0.5) -> float:
    """Wait, and return the seconds of wall time it took.

    Raises:
        ExperimentError: it did not come true within `timeout` seconds; says what, and how it is in the end.
    """
    begun = time.monotonic()
    while not true():
        if time.monotonic() - begun > timeout:
            raise ExperimentError(f"not within {timeout:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(step)
    return time.monotonic() - begun
