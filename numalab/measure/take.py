"""Take a snapshot of a machine from outside: pause, walk the page tables, resume."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from numalab.kinds import Kind
from numalab.measure import kernel_replicas, kernel_view, rings
from numalab.measure.guestmem import Guest, note_address
from numalab.measure.nodes import NodeMap
from numalab.measure.pagetable import Tables, WalkError, walk
from numalab.measure.snapshot import ProcessPlacement, Replication, Root, Snapshot


class Observable(Protocol):
    """What a machine must offer to be looked into (`numalab.machine.session.Machine` does)."""

    @property
    def qmp_socket(self) -> Path:
        """A QMP socket nobody else uses."""

    @property
    def accel(self) -> str:
        """ "kvm" or "tcg"."""

    def read_file(self, path: str) -> bytes:
        """Content of a file of the guest, while it runs."""

    def paused(self) -> AbstractContextManager[object]:
        """All CPUs stand still inside."""


_attached: WeakKeyDictionary[Observable, Guest] = WeakKeyDictionary()


def guest_of(machine: Observable) -> Guest:
    """The guest of a running machine, attached on first use and kept as long as the machine object."""
    guest = _attached.get(machine)
    if guest is None:
        guest = _attached[machine] = Guest.attach(machine.qmp_socket, note_address(machine))
    return guest


def detach(machine: Observable) -> None:
    """Close the connection to a machine's guest, if there is one; the next snapshot attaches anew."""
    guest = _attached.pop(machine, None)
    if guest is not None:
        guest.close()


def take(
    machine: Observable,
    pids: Collection[int] | None = None,
    *,
    names: Collection[str] | None = None,
    label: str = "",
) -> Snapshot:
    """Snapshot the processes with these pids or names, or all that have memory of their own.

    The machine is paused meanwhile.

    Raises:
        UserError: when a pid or name is not there.
        MissingError: when the guest cannot be looked into (see `Guest.attach`).
        WalkError: when the tables contradict themselves.
    """
    begin = time.perf_counter()
    guest = guest_of(machine)
    attached = time.perf_counter()
    with machine.paused():
        nodes = kernel_view.node_map(guest)
        found = kernel_view.processes(guest.prog, pids, names)
        placements = _placements(guest, nodes, found)
        walked = time.perf_counter()
        return Snapshot(
            processes=placements,
            nodes=nodes.nodes,
            cpu_nodes=kernel_view.cpu_nodes(guest.prog),
            levels=guest.levels,
            label=label,
            kernel={
                "release": guest.vmcoreinfo.get("OSRELEASE", ""),
                "build_id": guest.vmcoreinfo.get("BUILD-ID", ""),
            },
            pti=kernel_view.pti(guest.prog),
            kind=Kind.COUNTED if machine.accel == "tcg" else Kind.MEASURED,
            taken=datetime.now(UTC).isoformat(timespec="milliseconds"),
            seconds={
                "attach": attached - begin,
                "walk": walked - attached,
                "total": time.perf_counter() - begin,
            },
        )


def _placements(guest: Guest, nodes: NodeMap, found: list[kernel_view.Process]) -> tuple[ProcessPlacement, ...]:
    """Walk all trees of all processes together, then part them again."""
    trees = [kernel_replicas.trees(guest, process, nodes.nodes) for process in found]
    owner = np.repeat(np.arange(len(found)), [len(roots) for roots, _ in trees])
    tables = walk(
        [root.frame for roots, _ in trees for root in roots],
        guest.levels,
        guest.ram.read_pages,
        nodes,
        zero_frame=kernel_view.zero_frame(guest.prog),
        huge_zero_frame=kernel_view.huge_zero_frame(guest.prog),
    )
    row_owner = owner[tables.root]
    first_root = np.cumsum([0, *(len(roots) for roots, _ in trees)])
    return tuple(
        _placement(
            guest, nodes, process, *told, tables.select(row_owner == index).of_roots_from(int(first_root[index]))
        )
        for index, (process, told) in enumerate(zip(found, trees, strict=True))
    )


def _placement(
    guest: Guest,
    nodes: NodeMap,
    process: kernel_view.Process,
    roots: tuple[Root, ...],
    replication: Replication | None,
    tables: Tables,
) -> ProcessPlacement:
    deposited = kernel_view.deposited(guest, process, tables)
    if replication is not None:
        tables = _with_unlinked(guest, tables, deposited)
    table_node = nodes.column(tables.frame)
    if (table_node == nodes.other).any():
        lost = int(tables.frame[table_node == nodes.other][0])
        raise WalkError(f"process {process.pid}: the table page at frame {lost:#x} lies on no node")
    spare = nodes.column(deposited)
    return ProcessPlacement(
        pid=process.pid,
        comm=process.comm,
        nodes=nodes.nodes,
        levels=guest.levels,
        roots=roots,
        tables=tables,
        table_node=table_node.astype(np.int16),
        deposited=np.bincount(spare, minlength=nodes.columns)[: len(nodes.nodes)].astype(np.int64),
        pgtables_bytes=kernel_view.pgtables_bytes(process),
        replication=replication,
    )


def _with_unlinked(guest: Guest, tables: Tables, deposited: NDArray[np.int64]) -> Tables:
    """The same, with the replicas that are in memory and that no tree reaches now: a later fault may link them."""
    mine = tables.root == 0
    frames = np.concatenate([tables.frame[mine], deposited])
    levels = np.concatenate([tables.level[mine], np.ones(len(deposited), np.int8)])
    found = rings.follow(frames, kernel_replicas.link_reader(guest), len(kernel_replicas.domain_homes(guest.prog)))
    idle = ~np.isin(found.member, tables.frame)
    return tables.with_unlinked(found.member[idle], levels[found.owner[idle]])
