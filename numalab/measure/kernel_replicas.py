"""What a snapshot asks the guest's kernel about replicas of page tables: roots, domains, links between tables.

A kernel that cannot replicate has no `mm_context_t.pgrepl`: then every process has one tree, and nothing here reads
further. Written against the patch set `mitosis` for 6.12; beside `kernel_view` the only module that knows kernel
structures by name.
"""

from __future__ import annotations

import drgn
import numpy as np
from drgn import Object, Program
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.mm import virt_to_pfn
from drgn.helpers.linux.percpu import per_cpu
from numpy.typing import NDArray

from numalab.measure.guestmem import Guest
from numalab.measure.kernel_view import Process, page_address
from numalab.measure.pagetable import PAGE_SHIFT
from numalab.measure.process import Replication, Root
from numalab.measure.qemu_ram import GuestMemoryError
from numalab.measure.rings import NO_LINK, WILD_LINK, LinkReader

_MODES = ("off", "lazy", "eager")
#: Byte of a replica's descriptor that holds `pt_repl_info`, where types do not name it (a union with the lock).
_INFO = 40
#: Descriptors are read in blocks of so many: memory has descriptors in whole blocks of this size or none.
_BLOCK = 512


def trees(guest: Guest, process: Process, nodes: tuple[int, ...]) -> tuple[tuple[Root, ...], Replication | None]:
    """Trees of a process, primary first, then replicas by domain; and what was asked for, None for never."""
    primary = virt_to_pfn(process.mm.pgd).value_()
    try:
        told = process.mm.member_("context").member_("pgrepl")
    except LookupError:
        return (Root(nodes, primary),), None
    if not told:
        return (Root(nodes, primary),), None
    asked = _bits(told.member_("nodes"))
    active = _bits(told.member_("active"))
    # Either a truth value, then the nodes asked for are the domains in use, or the domains themselves.
    domains = active if drgn.sizeof(told.active) > 1 else asked
    replication = Replication(mode=_MODES[told.mode.value_()], active=bool(active), domains=asked)
    made = _roots(guest.prog, told)
    used = {domain for domain in made if active and domain in domains}
    served = {node: domain for node, domain in cpu_domains(guest.prog, nodes).items() if domain in used}
    homes = domain_homes(guest.prog)
    replicas = (
        Root(tuple(node for node in nodes if served.get(node) == domain), frame, domain, homes[domain])
        for domain, frame in made.items()
    )
    return (Root(tuple(node for node in nodes if node not in served), primary), *replicas), replication


def _roots(prog: Program, told: Object) -> dict[int, int]:
    """Domain → frame of its root, for the domains that have one."""
    place = told.value_() + drgn.offsetof(told.type_.type, "root")
    addresses = np.frombuffer(prog.read(place, 8 * told.nr_roots.value_()), "<u8").tolist()
    return {domain: virt_to_pfn(prog, address).value_() for domain, address in enumerate(addresses) if address}


def _bits(mask: Object) -> tuple[int, ...]:
    """Numbers of the bits set in an integer, a truth value, an array of longs, or a `nodemask_t`."""
    value = mask.value_()
    if isinstance(value, dict):
        (value,) = value.values()
    words = value if isinstance(value, list) else [value]
    return tuple(64 * place + bit for place, word in enumerate(words) for bit in range(64) if word >> bit & 1)


def provider(prog: Program) -> str:
    """What says which domains there are: "native" for nodes, else the name of it (CONFIG_PGTABLE_REPL_VIRT)."""
    try:
        told = prog["pgrepl_provider"]
    except LookupError:
        return "native"
    return told.member_("name").string_().decode() if told else "native"


def domain_homes(prog: Program) -> tuple[int, ...]:
    """For each domain the node on which its tables belong; empty in a kernel without replication."""
    try:
        count = prog["pgrepl_nr_domains"].value_()
        return tuple(prog["pgrepl_domain_node"][domain].value_() for domain in range(count))
    except LookupError:
        return ()


def cpu_domains(prog: Program, nodes: tuple[int, ...]) -> dict[int, int]:
    """For each node the domain of its CPUs, as the kernel has it by CPU; without that, the one of its number.

    They differ where a node has no memory, and in machines booted with `pgtable_repl=parity` (a debugging aid), where
    the CPUs of a node are of two domains: there a node stands for its first CPU.
    """
    found = {node: node for node in nodes}
    try:
        domain_of = prog["pgrepl_cpu_domain"]
    except LookupError:
        return found
    for cpu in sorted(for_each_online_cpu(prog), reverse=True):
        found[per_cpu(prog["numa_node"], cpu).value_()] = per_cpu(domain_of, cpu).value_()
    return found


def link_reader(guest: Guest) -> LinkReader:
    """A reader of the links between tables and their replicas (`numalab.measure.rings`)."""
    prog, first, size = guest.prog, page_address(guest, 0), int(guest.vmcoreinfo["SIZE(page)"])
    frames_end = max(each.end for each in guest.ram.ranges) >> PAGE_SHIFT
    descriptor = prog.type("struct ptdesc")
    ring = drgn.offsetof(descriptor, "pt_repl") // 8
    try:
        place = drgn.offsetof(descriptor, "pt_repl_info") // 8
    except LookupError:
        place = _INFO // 8

    def read(frames: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        words = _descriptors(prog, first, size, frames)
        at = words[:, ring]
        distance = at - np.uint64(first)  # wraps for what lies below
        frame = (distance // np.uint64(size)).astype(np.int64)
        good = (distance % np.uint64(size) == 0) & (frame < frames_end)
        return np.where(at == 0, NO_LINK, np.where(good, frame, WILD_LINK)), words[:, place]

    return read


def _descriptors(prog: Program, first: int, size: int, frames: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The `struct page` of each frame, as words: uint64 [len(frames), size / 8].

    Raises:
        GuestMemoryError: when a frame has none.
    """
    blocks, which = np.unique(frames // _BLOCK, return_inverse=True)
    try:
        raw = b"".join(prog.read(first + int(block) * _BLOCK * size, _BLOCK * size) for block in blocks)
    except drgn.FaultError as error:
        raise GuestMemoryError(f"a page table has no descriptor: {error}") from error
    words = np.frombuffer(raw, "<u8").reshape(len(blocks), _BLOCK, size // 8)
    return words[which, frames % _BLOCK]
