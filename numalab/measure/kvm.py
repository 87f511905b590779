"""The virtual machines of a kernel with KVM, seen from outside it: their vCPUs, memory slots, second-level tables.

Written against 6.12, for KVM as part of the kernel or as a module. A kernel that gives each node a tree of its own
(patch set `vmitosis`) has `nid` in the role of a table; elsewhere there is one tree for all, and no field.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from drgn import Object
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.mm import virt_to_pfn
from drgn.helpers.linux.pid import pid_task
from drgn.helpers.linux.rbtree import rbtree_inorder_for_each_entry
from drgn.helpers.linux.sched import task_cpu
from drgn.helpers.linux.xarray import xa_for_each

from numalab.errors import MissingError, UserError
from numalab.measure import modules
from numalab.measure.guestmem import Guest
from numalab.measure.kernel_view import page_address
from numalab.measure.pagetable import PAGE_SHIFT

_NO_ROOT = (1 << 64) - 1  # INVALID_PAGE
_PIDTYPE_PID = 0
#: Address spaces of a VM: the ordinary one, and that of system-management mode.
_ORDINARY = 0


@dataclass(frozen=True)
class Root:
    """A tree of second-level tables.

    Attributes:
        frame: of its top table.
        levels: 4 or 5.
        nid: the node it is for; None for any (a kernel or VM without replication).
        invalid: about to go: no vCPU enters the guest with it any more.
        guest_mode: for guests of the guest.
        smm: for system-management mode.
        users: references to it (vCPUs, and whoever walks it).
    """

    frame: int
    levels: int
    nid: int | None
    invalid: bool
    guest_mode: bool
    smm: bool
    users: int


@dataclass(frozen=True)
class Vcpu:
    """A virtual CPU.

    Attributes:
        id: what the guest sees as its APIC id.
        index: place among the vCPUs.
        thread: thread id in the host.
        cpu: of the host, where the thread runs or ran last.
        root: frame of the top second-level table it enters the guest with; None while it has none.
    """

    id: int
    index: int
    thread: int
    cpu: int
    root: int | None


@dataclass(frozen=True)
class Slot:
    """Guest memory: `pages` frames of the guest from `first` are at `address` of the VMM's own address space."""

    first: int
    pages: int
    address: int


@dataclass(frozen=True)
class Vm:
    """A virtual machine at one instant.

    Attributes:
        pid: of its VMM.
        vcpus: by index.
        roots: trees of the TDP MMU, dying ones included.
        slots: memory, ascending.
        vmm_root: frame of the top page table of the VMM.
    """

    pid: int
    vcpus: tuple[Vcpu, ...]
    roots: tuple[Root, ...]
    slots: tuple[Slot, ...]
    vmm_root: int

    def root_of(self, vcpu: Vcpu) -> Root | None:
        """The tree a vCPU walks; None while it has none."""
        return next((root for root in self.roots if root.frame == vcpu.root), None)


def vms(guest: Guest) -> tuple[Vm, ...]:
    """All virtual machines of the kernel of `guest`, which must stand still.

    Raises:
        MissingError: its kernel has no KVM, or one walks shadow page tables (no nested paging).
    """
    modules.ensure(guest, "kvm", "vm_list")
    listed = guest.prog["vm_list"].address_of_()
    return tuple(_vm(guest, kvm) for kvm in list_for_each_entry("struct kvm", listed, "vm_list"))


class NoVmError(UserError):
    """A process has no virtual machine: it is no VMM, or has ended."""


def vm_of(guest: Guest, pid: int) -> Vm:
    """The virtual machine whose VMM has this process id.

    Raises:
        NoVmError: there is none.
        MissingError: see `vms`.
    """
    found = vms(guest)
    for each in found:
        if each.pid == pid:
            return each
    said = ", ".join(str(each.pid) for each in found) or "none"
    raise NoVmError(f"no virtual machine belongs to process {pid}; there are those of: {said}")


def _vm(guest: Guest, kvm: Object) -> Vm:
    roots = {root.frame: root for root in _tdp_roots(guest, kvm)}
    vcpus = []
    for _, entry in xa_for_each(kvm.vcpu_array.address_of_()):
        vcpu = _vcpu(guest, Object(guest.prog, "struct kvm_vcpu *", entry))
        if vcpu.root is not None and vcpu.root not in roots:
            # Not of the TDP MMU (tdp_mmu=0): the same format, if it translates the guest's physical addresses.
            roots[vcpu.root] = _root(_table_of(guest, vcpu.root), vcpu.root)
        vcpus.append(vcpu)
    return Vm(
        kvm.userspace_pid.value_(),
        tuple(sorted(vcpus, key=lambda vcpu: vcpu.index)),
        tuple(roots.values()),
        tuple(_slots(kvm)),
        virt_to_pfn(kvm.mm.pgd).value_(),
    )


def _vcpu(guest: Guest, vcpu: Object) -> Vcpu:
    # Not arch.mmu: that is another while the guest runs a guest of its own.
    hpa = vcpu.arch.root_mmu.root.hpa.value_()
    task = pid_task(vcpu.pid, _PIDTYPE_PID)
    return Vcpu(
        vcpu.vcpu_id.value_(),
        vcpu.vcpu_idx.value_(),
        task.pid.value_() if task else 0,
        task_cpu(task) if task else vcpu.cpu.value_(),
        None if hpa == _NO_ROOT else hpa >> PAGE_SHIFT,
    )


def _tdp_roots(guest: Guest, kvm: Object) -> Iterator[Root]:
    for table in list_for_each_entry("struct kvm_mmu_page", kvm.arch.tdp_mmu_roots.address_of_(), "link"):
        yield _root(table, virt_to_pfn(guest.prog, table.spt.value_()).value_())


def _table_of(guest: Guest, frame: int) -> Object:
    """The `struct kvm_mmu_page` of a table (`to_shadow_page()`)."""
    page = Object(guest.prog, "struct page *", page_address(guest, frame))
    return Object(guest.prog, "struct kvm_mmu_page *", page.member_("private").value_())


def _root(table: Object, frame: int) -> Root:
    role = table.role
    if not role.direct.value_():
        raise MissingError(
            "a virtual machine runs on shadow page tables: there is no second level to look at",
            remedy="load kvm_amd with npt=1, or kvm_intel with ept=1",
        )
    try:
        nid = role.nid.value_() - 1
    except AttributeError:
        nid = -1
    return Root(
        frame,
        role.level.value_(),
        None if nid < 0 else nid,
        bool(role.invalid.value_()),
        bool(role.guest_mode.value_()),
        bool(role.smm.value_()),
        table.tdp_mmu_root_count.refs.counter.value_(),
    )


def _slots(kvm: Object) -> Iterator[Slot]:
    active = kvm.memslots[_ORDINARY].read_()
    node = f"gfn_node[{active.node_idx.value_()}]"
    for slot in rbtree_inorder_for_each_entry("struct kvm_memory_slot", active.gfn_tree.address_of_(), node):
        yield Slot(slot.base_gfn.value_(), slot.npages.value_(), slot.userspace_addr.value_())
