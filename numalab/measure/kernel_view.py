"""What a snapshot asks the guest's kernel: nodes, processes, their roots, deposited tables.

Beside `kernel_replicas` the only module that knows kernel structures by name; written against 6.12.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import drgn
import numpy as np
from drgn import Object, Program
from drgn.helpers.linux.mmzone import for_each_online_pgdat
from drgn.helpers.linux.nodemask import for_each_node_state
from drgn.helpers.linux.pid import for_each_task, for_each_task_in_group
from numpy.typing import NDArray

from numalab.errors import UserError, nearest
from numalab.measure.guestmem import Guest
from numalab.measure.nodes import NodeMap, Span, disjoint
from numalab.measure.pagetable import PAGE_SHIFT, Tables

_PF_KTHREAD = 0x0020_0000
_COMM_LENGTH = 15  # TASK_COMM_LEN without the closing zero
_PTI_WORD, _PTI_BIT = 7, 11  # X86_FEATURE_PTI


@dataclass(frozen=True)
class Process:
    """A process with memory of its own: pid and name of its leader, and its `struct mm_struct *`."""

    pid: int
    comm: str
    mm: Object


def node_map(guest: Guest) -> NodeMap:
    """The online nodes and their memory, now (it may be plugged and unplugged)."""
    nodes, spans = [], []
    for pgdat in for_each_online_pgdat(guest.prog):
        node = pgdat.node_id.value_()
        start = pgdat.node_start_pfn.value_()
        nodes.append(node)
        spans.append(Span(start, start + pgdat.node_spanned_pages.value_(), node))
    found = disjoint(spans, lambda frame: _node_of_page(guest, frame))
    return NodeMap(nodes, (piece for span in found for piece in _online(guest, span)))


def _online(guest: Guest, span: Span) -> Iterator[Span]:
    """The parts of a span in memory sections that hold RAM: what `pfn_to_online_page()` knows.

    A node's span may reach across the hole that PC hardware has below 4 GiB.
    """
    section = 1 << int(guest.vmcoreinfo["NUMBER(SECTION_SIZE_BITS)"]) - PAGE_SHIFT
    at = span.start
    for memory in guest.ram.ranges:
        first = (memory.start >> PAGE_SHIFT) // section * section
        end = -(-(memory.end >> PAGE_SHIFT) // section) * section
        start = max(at, first)
        at = max(at, min(span.end, end))
        if start < at:
            yield Span(start, at, span.node)


def _node_of_page(guest: Guest, frame: int) -> int:
    """Node in the flags of a frame's `struct page`; -1 when the frame has none."""
    # NODES_PGSHIFT: with SPARSEMEM_VMEMMAP the node is the topmost field of the flags.
    width = (int(guest.vmcoreinfo["LENGTH(node_data)"]) - 1).bit_length()
    try:
        flags = guest.prog.read_u64(page_address(guest, frame))
    except drgn.FaultError:
        return -1
    # An uninitialised struct page is all ones (page poisoning) or zero with no references.
    return -1 if flags == (1 << 64) - 1 else flags >> (64 - width)


def page_address(guest: Guest, frame: int) -> int:
    """Virtual address of a frame's `struct page`."""
    return int(guest.vmcoreinfo["SYMBOL(vmemmap)"], 16) + frame * int(guest.vmcoreinfo["SIZE(page)"])


def cpu_nodes(prog: Program) -> tuple[int, ...]:
    """Nodes that have CPUs."""
    return tuple(for_each_node_state(prog, prog["N_CPU"]))


def pti(prog: Program) -> bool:
    """Whether page-table isolation is on."""
    return bool(prog["boot_cpu_data"].x86_capability[_PTI_WORD].value_() >> _PTI_BIT & 1)


def zero_frame(prog: Program) -> int:
    """Frame of the zero page."""
    frame: int = prog["zero_pfn"].value_()
    return frame


def huge_zero_frame(prog: Program) -> int:
    """First frame of the huge zero page, -1 while there is none."""
    try:
        frame: int = prog["huge_zero_pfn"].value_()
    except LookupError:  # no CONFIG_TRANSPARENT_HUGEPAGE
        return -1
    return -1 if frame == (1 << 64) - 1 else frame


def _memory(task: Object) -> Object | None:
    """A process's mm; the leader may be gone while its threads live. None for kernel threads."""
    if task.flags.value_() & _PF_KTHREAD:
        return None
    for each in (task, *([] if task.mm else for_each_task_in_group(task))):
        if mm := each.mm.read_():
            return mm
    return None


def _every_process(prog: Program) -> Iterator[Process]:
    for task in for_each_task(prog):
        pid = task.pid.value_()
        if pid == task.tgid.value_() and (mm := _memory(task)) is not None:
            yield Process(pid, task.comm.string_().decode("utf-8", "replace"), mm)


def processes(
    prog: Program, pids: Collection[int] | None = None, names: Collection[str] | None = None
) -> list[Process]:
    """The processes with one of `pids` or `names`, all when both are None, in order of pid.

    Processes that share one memory (vfork) are one, under the lowest pid.

    Raises:
        UserError: when a pid or name is not there; says the nearest name.
    """
    there = sorted(_every_process(prog), key=lambda process: process.pid)
    if pids is None and names is None:
        chosen = there
    else:
        wanted_pids, wanted_names = set(pids or ()), {name[:_COMM_LENGTH] for name in names or ()}
        chosen = [each for each in there if each.pid in wanted_pids or each.comm in wanted_names]
        if missing := wanted_pids - {each.pid for each in chosen}:
            raise UserError(f"no process {min(missing)} with memory of its own in the guest")
        if absent := wanted_names - {each.comm for each in there}:
            name = min(absent)
            raise UserError(f"no process called {name!r} in the guest{nearest(name, {p.comm for p in there})}")
    by_memory: dict[int, Process] = {}
    for process in chosen:
        by_memory.setdefault(process.mm.value_(), process)
    return list(by_memory.values())


def pgtables_bytes(process: Process) -> int:
    """The kernel's account of page tables (`mm_pgtables_bytes()`), in bytes."""
    counted: int = process.mm.pgtables_bytes.counter.value_()
    return counted


def deposited(guest: Guest, process: Process, tables: Tables) -> NDArray[np.int64]:
    """Frames of the PTE pages of the primary that are deposited for splitting transparent huge pages.

    They hang on a ring through `page->lru`, whose newest member a PMD page's descriptor names
    (`pgtable_trans_huge_deposit()`), or the mm where PMD locks are not split.
    """
    prog = guest.prog
    size = int(guest.vmcoreinfo["SIZE(page)"])
    link = int(guest.vmcoreinfo["OFFSET(page.lru)"])
    rows = (tables.root == 0) & (tables.level == 2) & (tables.leaves.sum(axis=1) > 0)
    try:
        heads = [process.mm.member_("pmd_huge_pte").value_()] if rows.any() else []
    except LookupError:
        place = drgn.offsetof(prog.type("struct ptdesc"), "pmd_huge_pte")
        heads = [prog.read_u64(page_address(guest, frame) + place) for frame in tables.frame[rows].tolist()]
    found = []
    for head in filter(None, heads):
        at = head
        while True:
            found.append(at)
            at = prog.read_u64(at + link) - link
            if at == head:
                break
    first = page_address(guest, 0)
    return np.array([(address - first) // size for address in found], np.int64)
