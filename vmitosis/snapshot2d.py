"""Take a snapshot of both levels of a second-level guest, from outside both.

The emulated machine's memory is read as for any snapshot. Its kernel says, through KVM's structures, which second-level
tree each vCPU walks and where the guest's memory lies; on that memory the guest's kernel is understood like any other
(`numalab.measure.nested_ram`). Nothing is asked of either kernel but the place of its vmcoreinfo note, once.

    snapshot = take(guest, names=["gups"], label="ready")
    print(render(snapshot), snapshot.processes[0].overall())
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from weakref import WeakKeyDictionary

import numpy as np
from drgn import Program
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.percpu import per_cpu
from numpy.typing import NDArray

from numalab.errors import ExperimentError
from numalab.kinds import Kind
from numalab.machine.second import SecondLevel
from numalab.measure import kernel_replicas, kernel_view, kvm, radix
from numalab.measure.guestmem import Guest, note_address, read_note
from numalab.measure.kernel_view import Process
from numalab.measure.nested_ram import NestedRam
from numalab.measure.pagetable import walk
from numalab.measure.take import guest_of
from vmitosis.compose import pairs
from vmitosis.twodim import Process2D, SecondLevelTree, Snapshot2D, View, render

__all__ = ["Snapshot2D", "detach", "inner_guest", "read_virtual", "render", "take"]

_attached: WeakKeyDictionary[SecondLevel, tuple[Guest, NestedRam]] = WeakKeyDictionary()


def inner_guest(guest: SecondLevel, host: Guest, vm: kvm.Vm, note: bytes) -> tuple[Guest, NestedRam]:
    """The kernel of a second-level guest and its memory, attached on first use; the machine has to stand still."""
    known = _attached.get(guest)
    if known is not None:
        known[1].refresh(vm)
        return known
    ram = NestedRam(host, vm)
    address, size = (int(word, 16) for word in note.split())
    found = _attached[guest] = (Guest(ram, read_note(ram.read(address, size))), ram)
    return found


def detach(guest: SecondLevel) -> None:
    """Let go of a second-level guest; the next snapshot attaches anew."""
    known = _attached.pop(guest, None)
    if known is not None:
        known[0].close()


@dataclass(frozen=True)
class _Vcpu:
    """A vCPU: its index, the node it runs on, what the guest has for it, the tree it walks."""

    index: int
    node: int
    guest_cpu: int
    guest_node: int
    root: kvm.Root | None


class _Look:
    """One look at a machine that stands still."""

    def __init__(self, guest: SecondLevel, note: bytes) -> None:
        self.host = host = guest_of(guest.machine)
        self.vm = kvm.vm_of(host, guest.qemu_pid)
        self.nodes = kernel_view.node_map(host)
        self.inner, self.ram = inner_guest(guest, host, self.vm, note)
        self.inner_nodes = kernel_view.node_map(self.inner)
        self.vcpus = self._vcpus()
        self.contradictions = 0

    def _vcpus(self) -> list[_Vcpu]:
        by_apic = _cpus_by_apic(self.inner.prog)
        found = []
        for vcpu in self.vm.vcpus:
            cpu = by_apic.get(vcpu.id)
            if cpu is None:  # not plugged in, or never started: it walks nothing
                continue
            node = per_cpu(self.host.prog["numa_node"], vcpu.cpu).value_()
            guest_node = per_cpu(self.inner.prog["numa_node"], cpu).value_()
            found.append(_Vcpu(vcpu.index, node, cpu, guest_node, self.vm.root_of(vcpu)))
        return found

    def trees(self) -> tuple[SecondLevelTree, ...]:
        """All second-level trees, counted."""
        found = []
        for root in self.vm.roots:
            tables = radix.tree(root.frame, root.levels, self.host.ram.read_pages, radix.KVM, self.nodes)
            found.append(SecondLevelTree.of(root, tables, self.nodes.column(tables.frame), len(self.nodes.nodes)))
        return tuple(found)

    def process(self, process: Process) -> Process2D:
        """One process of the guest, through both levels."""
        roots, replication = kernel_replicas.trees(self.inner, process, self.inner_nodes.nodes)
        tables = walk([root.frame for root in roots], self.inner.levels, self.inner.ram.read_pages, self.inner_nodes)
        leaves = radix.leaves(tables, self.inner.ram.read_pages)
        memory = self.inner_nodes.column(leaves.frame) != self.inner_nodes.other
        own = self.nodes.column(self.ram.host_frames(tables.frame).clip(min=0))
        domains = _cpu_domains(self.inner.prog)
        used = {
            root.domain: place
            for place, root in enumerate(roots)
            if replication and replication.active and root.domain is not None and root.domain in replication.domains
        }
        groups: dict[tuple[int, int, int, kvm.Root | None], list[int]] = {}
        for vcpu in self.vcpus:
            tree = used.get(domains.get(vcpu.guest_cpu, vcpu.guest_node), 0)
            groups.setdefault((vcpu.node, vcpu.guest_node, tree, vcpu.root), []).append(vcpu.index)
        made: dict[tuple[int, int], NDArray[np.int64]] = {}
        views = []
        for (node, guest_node, place, root), vcpus in sorted(groups.items(), key=lambda each: (each[0][0], each[1])):
            key = (place, root.frame if root else -1)
            if key not in made:
                mine = memory & (tables.root[leaves.row] == place)
                made[key] = self._pairs(
                    own[leaves.row[mine]], leaves.frame[mine], leaves.level[mine].astype(np.int64), root
                )
            nid = root.nid if root else None
            views.append(View(node, tuple(vcpus), guest_node, place, nid, root is not None, made[key]))
        return Process2D(process.pid, process.comm, self.nodes.nodes, tuple(views))

    def _pairs(
        self, own: NDArray[np.uint16], frame: NDArray[np.int64], level: NDArray[np.int64], root: kvm.Root | None
    ) -> NDArray[np.int64]:
        """Translations [node of the guest's table, node of the second level's or unfilled]."""

        def ends(frames: NDArray[np.int64]) -> radix.Ends:
            assert root is not None
            return radix.lookup(root.frame, root.levels, frames, self.host.ram.read_pages, radix.KVM)

        return pairs(own, frame, level, ends if root else None, self.nodes, self._compare)

    def _compare(self, frame: NDArray[np.int64], said: NDArray[np.int64]) -> None:
        """Count where the second level leads elsewhere than the VMM's own page tables."""
        self.contradictions += int(np.count_nonzero(self.ram.host_frames(frame) != said))


def _cpus_by_apic(prog: Program) -> dict[int, int]:
    """CPU of the guest by APIC id, of those that are online."""
    apic = prog["x86_cpu_to_apicid"]
    return {per_cpu(apic, cpu).value_(): cpu for cpu in for_each_online_cpu(prog)}


def _cpu_domains(prog: Program) -> dict[int, int]:
    """Domain of replicas of each CPU of the guest; empty where its kernel knows none."""
    try:
        domain_of = prog["pgrepl_cpu_domain"]
    except LookupError:
        return {}
    return {cpu: per_cpu(domain_of, cpu).value_() for cpu in for_each_online_cpu(prog)}


@contextlib.contextmanager
def _looking(guest: SecondLevel) -> Iterator[_Look]:
    """The machine paused, and a look at it.

    Raises:
        MachineLostError: the guest has ended; it says how.
    """
    note = b"" if guest in _attached else note_address(guest)
    guest_of(guest.machine)
    try:
        with guest.paused():
            yield _Look(guest, note)
    except kvm.NoVmError as error:
        raise guest.why_lost() from error


def take(
    guest: SecondLevel,
    pids: Collection[int] | None = None,
    *,
    names: Collection[str] | None = None,
    label: str = "",
) -> Snapshot2D:
    """Snapshot processes of a second-level guest with these pids or names, or all with memory of their own.

    The whole machine is paused meanwhile.

    Raises:
        UserError: a pid or name is not there.
        MissingError: one of the kernels cannot be looked into, or the guest runs on shadow page tables.
        WalkError: tables contradict themselves.
    """
    begin = time.perf_counter()
    with _looking(guest) as look:
        attached = time.perf_counter()
        processes = tuple(look.process(each) for each in kernel_view.processes(look.inner.prog, pids, names))
        trees = look.trees()
        return Snapshot2D(
            processes=processes,
            nodes=look.nodes.nodes,
            vcpus=tuple((vcpu.index, vcpu.node, vcpu.guest_node) for vcpu in look.vcpus),
            trees=trees,
            contradictions=look.contradictions,
            label=label,
            kernels=(look.host.vmcoreinfo.get("OSRELEASE", ""), look.inner.vmcoreinfo.get("OSRELEASE", "")),
            kind=Kind.COUNTED if guest.accel == "tcg" else Kind.MEASURED,
            taken=datetime.now(UTC).isoformat(timespec="milliseconds"),
            seconds={"attach": attached - begin, "total": time.perf_counter() - begin},
        )


def read_virtual(guest: SecondLevel, pid: int, address: int, size: int, *, vcpu: int = 0) -> bytes:
    """Bytes of a guest process, found as the hardware finds them: through its own tables and those of a vCPU's root.

    An oracle for tests: the VMM's page tables have no part in where the data is read.

    Raises:
        ExperimentError: the address is not mapped, or the second level has no entry for it yet.
    """
    with _looking(guest) as look:
        (process,) = kernel_view.processes(look.inner.prog, [pid])
        top = kernel_replicas.trees(look.inner, process, look.inner_nodes.nodes)[0][0].frame
        pages = np.arange(address >> 12, (address + size - 1 >> 12) + 1, dtype=np.int64)
        first = radix.lookup(top, look.inner.levels, pages, look.inner.ram.read_pages, radix.LINUX)
        root = next((each.root for each in look.vcpus if each.index == vcpu), None)
        if root is None or not first.present.all():
            raise ExperimentError(f"process {pid} of the guest: {address:#x} is not mapped")
        second = radix.lookup(root.frame, root.levels, first.frame, look.host.ram.read_pages, radix.KVM)
        if not second.present.all():
            raise ExperimentError(f"process {pid} of the guest: {address:#x} has no second-level entry yet")
        whole = look.host.ram.read_pages(second.frame).tobytes()
    return whole[address % 4096 :][:size]
