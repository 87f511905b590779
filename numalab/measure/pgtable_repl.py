"""`/proc/PID/pgtable_repl`, the kernel's own account of a process's replicas, parsed and checked from outside.

    mode lazy
    nodes 0-3
    flags fork exec
    follow off
    table pte 0 512 0           level, node, tables of the primary, tables of replicas
    link local 12               pass-through entries to a table on the replica's own node
    link remote 0               ... for want of memory: to a PTE table elsewhere, or to any PMD table
    count fill 1234

Lines that begin with another word are left aside: a later kernel may say more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from numalab.errors import ExperimentError, UserError
from numalab.machine.accel import parse_cpu_list
from numalab.measure import kernel_replicas, kernel_view
from numalab.measure.counters import GuestFiles
from numalab.measure.pagetable import LEVEL_NAMES, walk
from numalab.measure.replica_check import Replicated, check
from numalab.measure.replica_report import Report
from numalab.measure.selfcheck import Difference
from numalab.measure.take import Observable, guest_of

LEVELS = tuple(name.lower() for name in LEVEL_NAMES)


@dataclass(frozen=True)
class PgtableRepl:
    """What the kernel says.

    Attributes:
        mode: "off", "lazy" or "eager".
        nodes: that may hold a replica.
        flags: "fork", "exec": what keeps replication.
        follow: page tables follow the threads.
        tables: (level, "pgd" to "pte"; node) → (tables of the primary, tables of replicas); zeros are left out.
        links: "local", "remote" → pass-through entries.
        counts: name → how often.
    """

    mode: str
    nodes: tuple[int, ...]
    flags: tuple[str, ...]
    follow: bool
    tables: Mapping[tuple[str, int], tuple[int, int]]
    links: Mapping[str, int]
    counts: Mapping[str, int]


def parse(text: str) -> PgtableRepl:
    """Parse the content of the file.

    Raises:
        ExperimentError: for a known line of another form, naming it, or when there is no mode.
    """
    said: dict[str, list[str]] = {}
    tables: dict[tuple[str, int], tuple[int, int]] = {}
    links: dict[str, int] = {}
    counts: dict[str, int] = {}
    for line in text.splitlines():
        word, *rest = line.split() or [""]
        try:
            if word in ("mode", "nodes", "flags", "follow"):
                said[word] = rest
            elif word == "table":
                level, node, primary, replica = rest
                tables[LEVELS[LEVELS.index(level)], int(node)] = int(primary), int(replica)
            elif word in ("link", "count"):
                name, value = rest
                (links if word == "link" else counts)[name] = int(value)
        except ValueError:
            raise ExperimentError(f"not a line of pgtable_repl: {line!r}") from None
    try:
        (mode,) = said["mode"]
        nodes = parse_cpu_list(",".join(said.get("nodes", [])))
    except (KeyError, ValueError) as error:
        raise ExperimentError(f"not the text of pgtable_repl: {error!r}") from None
    flags, follow = tuple(said.get("flags", [])), said.get("follow") == ["on"]
    return PgtableRepl(mode, tuple(nodes), flags, follow, tables, links, counts)


def read(machine: GuestFiles, pid: int) -> PgtableRepl:
    """Read and parse the file of a process now."""
    return parse(machine.read_file(f"/proc/{pid}/pgtable_repl").decode())


@dataclass(frozen=True)
class Checked:
    """A process whose replicas were checked.

    Attributes:
        report: what its memory says.
        kernel: what the kernel says.
        differences: numbers on which the two disagree.
    """

    report: Report
    kernel: PgtableRepl
    differences: list[Difference]

    @property
    def problems(self) -> list[str]:
        """Broken rules and differing numbers, a line each; [] when all is well."""
        return [*map(str, self.report.violations), *map(str, self.differences)]


def check_replicas(machine: Observable, pid: int) -> Checked:
    """Check every replica of a process from outside, and compare the counts with the kernel's own.

    The process must be quiet (waiting at a mark); the machine is paused while it is looked into.

    Raises:
        UserError: there is no such process, or domains are not nodes: then the kernel counts tables of replicas by
            domain and knows nothing of the primary's, while memory says on which nodes they are.
        GuestFileError: the kernel has no /proc/PID/pgtable_repl.
        WalkError, GuestMemoryError: the tables lead nowhere.
    """
    kernel = read(machine, pid)
    with machine.paused():
        space = _space(machine, pid)
        report = check(space)
    return Checked(report, kernel, against(report, space, kernel, pid))


def _space(machine: Observable, pid: int) -> Replicated:
    guest = guest_of(machine)
    provider = kernel_replicas.provider(guest.prog)
    if provider != "native":
        raise UserError(
            f"replicas cannot be compared with nodes: their domains are not nodes, but come from {provider}",
            remedy="check them in the guest: write the process to /sys/kernel/debug/pgtable_repl/verify",
        )
    nodes = kernel_view.node_map(guest)
    (process,) = kernel_view.processes(guest.prog, [pid])
    roots, replication = kernel_replicas.trees(guest, process, nodes.nodes)
    primary = walk([roots[0].frame], guest.levels, guest.ram.read_pages, nodes)
    return Replicated(
        levels=guest.levels,
        roots=roots,
        replication=replication,
        domains=len(kernel_replicas.domain_homes(guest.prog)),
        nodes=nodes,
        read_pages=guest.ram.read_pages,
        read_links=kernel_replicas.link_reader(guest),
        deposited=kernel_view.deposited(guest, process, primary),
        pti=kernel_view.pti(guest.prog),
    )


def against(report: Report, space: Replicated, kernel: PgtableRepl, pid: int) -> list[Difference]:
    """Compare what memory says with what the kernel says of a process; [] when they agree."""
    told = space.replication
    pairs: list[tuple[str, object, object]] = [
        ("mode", told.mode if told else "off", kernel.mode),
        ("nodes", told.domains if told and told.mode != "off" else (), kernel.nodes),
        ("pass-through entries, local", report.local, kernel.links.get("local", 0)),
        ("pass-through entries, remote", report.remote, kernel.links.get("remote", 0)),
    ]
    top = [*LEVELS[: space.levels - 1], LEVELS[-1]]
    walked = {
        (level, node): (int(report.primary[row, column]), int(report.replica[row, column]))
        for row, level in enumerate(top)
        for column, node in enumerate(space.nodes.nodes)
    }
    for level, node in sorted(walked.keys() | kernel.tables.keys()):
        what = f"tables of the primary and of replicas ({level}, node {node})"
        pairs.append((what, walked.get((level, node), (0, 0)), kernel.tables.get((level, node), (0, 0))))
    return [Difference(pid, what, mine, theirs) for what, mine, theirs in pairs if mine != theirs]
