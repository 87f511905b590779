"""What the kernel says of replicas, from structures laid out by hand; and all of it together on one such guest."""

from __future__ import annotations

import struct
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from drgn import Architecture, FindObjectFlags, Object, Platform, Program, Type, TypeMember

from numalab.errors import UserError
from numalab.measure import kernel_replicas, kernel_view, pgtable_repl, take
from numalab.measure.kernel_view import Process
from numalab.measure.process import Replication, Root
from numalab.measure.qemu_ram import GuestMemoryError
from numalab.measure.rings import NO_LINK, WILD_LINK
from tests.unit.replica_memory import NODES, PTE, TOP, ReplicaMemory, sample
from tests.unit.test_measure_pgtable_repl import OF_SAMPLE

VMEMMAP, DIRECT, STRUCTURES = 0xFFFF_EA00_0000_0000, 0xFFFF_8880_0000_0000, 0xFFFF_8900_0000_0000
MM, TOLD, NUMBERS = (STRUCTURES + n * 0x1000 for n in range(3))
FRAMES = 4 << 14


def struct_of(prog: Program, tag: str, size: int, **members: tuple[int, Type]) -> Type:
    return prog.struct_type(tag, size, [TypeMember(kind, name, 8 * at) for name, (at, kind) in members.items()])


class Kernel:
    """A drgn program over the structures of one process; `able` says whether this kernel can replicate."""

    def __init__(self, memory: ReplicaMemory, *, able: bool = True, active: str = "truth", mask: str = "long") -> None:
        self.memory = memory
        self.bytes = bytearray(0x4000)
        self.prog = prog = Program(Platform(Architecture.X86_64))
        prog.add_memory_segment(STRUCTURES, len(self.bytes), self._structures, False)
        prog.add_memory_segment(VMEMMAP, FRAMES * 64, self._descriptors, False)
        byte, word = prog.int_type("unsigned char", 1, False), prog.int_type("unsigned long", 8, False)
        number = prog.int_type("int", 4, True)
        masks = {
            "long": word,
            "array": prog.array_type(word, 2),
            "nodemask": prog.struct_type("nodemask", 16, [TypeMember(prog.array_type(word, 2), "bits", 0)]),
        }
        told = struct_of(
            prog,
            "pgrepl_mm",
            48,
            mode=(0, byte),
            active=(8, prog.bool_type("_Bool", 1) if active == "truth" else word),
            nodes=(16, masks[mask]),
            nr_roots=(32, prog.int_type("unsigned int", 4, False)),
            root=(40, prog.array_type(prog.pointer_type(prog.void_type()))),
        )
        context = struct_of(prog, "context", 16, **({"pgrepl": (8, prog.pointer_type(told))} if able else {}))
        self.mm = struct_of(prog, "mm_struct", 64, pgd=(0, prog.pointer_type(prog.void_type())), context=(16, context))
        descriptor = struct_of(prog, "ptdesc", 64, pt_repl=(24, prog.pointer_type(prog.void_type())))
        prog.register_type_finder("t", lambda *_: descriptor, enable_index=0)
        self.variables: dict[str, Object] = {}
        if able:
            self.variables["pgrepl_nr_domains"] = Object(prog, number, address=NUMBERS)
            self.variables["pgrepl_domain_node"] = Object(prog, prog.array_type(number), address=NUMBERS + 4)
        prog.register_object_finder("o", self._variable, enable_index=0)
        self._put(MM, struct.pack("<Q", DIRECT + (TOP << 12)))
        self._put(NUMBERS, struct.pack("<5i", 4, 0, 1, 2, 3))

    def _put(self, address: int, data: bytes) -> None:
        self.bytes[address - STRUCTURES : address - STRUCTURES + len(data)] = data

    def tell(self, mode: int, active: int, mask: int) -> None:
        """Fill in `struct pgrepl_mm` and let the mm point at it."""
        roots = [DIRECT + (self.memory.roots[d] << 12) if d in self.memory.roots else 0 for d in range(4)]
        self._put(TOLD, struct.pack("<B7xQQQI4x4Q", mode, active, mask, 0, 4, *roots))
        self._put(MM + 24, struct.pack("<Q", TOLD))

    def _structures(self, _address: int, count: int, offset: int, _physical: bool) -> bytes:
        return bytes(self.bytes[offset : offset + count])

    def _descriptors(self, _address: int, count: int, offset: int, _physical: bool) -> bytes:
        words = np.zeros((count // 64, 8), "<u8")
        for at, frame in enumerate(range(offset // 64, (offset + count) // 64)):
            following = self.memory.next.get(frame)
            words[at, 3] = 0 if following is None else (VMEMMAP + following * 64) % 2**64
            words[at, 5] = self.memory.info.get(frame, 0)
        return words.tobytes()

    def _variable(self, _prog: Program, name: str, _flags: FindObjectFlags, _file: str | None) -> Object | None:
        return self.variables.get(name)

    @property
    def process(self) -> Process:
        return Process(42, "gups", Object(self.prog, self.prog.pointer_type(self.mm), MM))

    @property
    def guest(self) -> Any:
        ram = SimpleNamespace(ranges=[SimpleNamespace(start=0, end=FRAMES << 12)], read_pages=self.memory.read)
        info = {"SYMBOL(vmemmap)": f"{VMEMMAP:x}", "SIZE(page)": "64"}
        return SimpleNamespace(prog=self.prog, ram=ram, vmcoreinfo=info, levels=4)


@pytest.fixture(autouse=True)
def direct_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """drgn's own helper wants a whole kernel."""

    def virt_to_pfn(first: Any, address: int | None = None) -> Any:
        value = first.value_() if address is None else address
        return SimpleNamespace(value_=lambda: (value - DIRECT) >> 12)

    monkeypatch.setattr(kernel_replicas, "virt_to_pfn", virt_to_pfn)


def trees(kernel: Kernel) -> tuple[tuple[Root, ...], Replication | None]:
    return kernel_replicas.trees(kernel.guest, kernel.process, NODES.nodes)


def test_a_kernel_that_cannot_replicate() -> None:
    assert trees(Kernel(sample(), able=False)) == ((Root((0, 1, 2, 3), TOP),), None)
    assert kernel_replicas.domain_homes(Kernel(sample(), able=False).prog) == ()


def test_a_process_that_never_replicated() -> None:
    assert trees(Kernel(sample())) == ((Root((0, 1, 2, 3), TOP),), None)


@pytest.mark.parametrize("mask", ["long", "array", "nodemask"])
def test_roots_in_use_and_others(mask: str) -> None:
    memory = sample()
    del memory.roots[3]
    kernel = Kernel(memory, mask=mask)
    kernel.tell(1, True, 0b1011)
    roots, told = trees(kernel)
    assert told == Replication("lazy", active=True, domains=(0, 1, 3))
    # Node 2's replica is not asked for, and node 3 has no root: their CPUs walk the primary.
    assert [(root.nodes, root.domain, root.home) for root in roots] == [
        ((2, 3), None, None),
        ((0,), 0, 0),
        ((1,), 1, 1),
        ((), 2, 2),
    ]
    assert [root.frame for root in roots] == [TOP, *(memory.roots[d] for d in range(3))]


def test_replication_that_was_taken_back() -> None:
    kernel = Kernel(sample())
    kernel.tell(0, False, 0b1111)
    roots, told = trees(kernel)
    assert told == Replication("off", active=False, domains=(0, 1, 2, 3))
    assert [root.nodes for root in roots] == [(0, 1, 2, 3), (), (), (), ()]


def test_the_domain_of_a_node_is_that_of_its_first_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs by parity, and a node without memory whose CPUs take the replica of another."""
    kernel = Kernel(sample())
    assert kernel_replicas.cpu_domains(kernel.prog, (0, 3)) == {0: 0, 3: 3}
    number = kernel.prog.int_type("int", 4, True)
    kernel.variables |= {name: Object(kernel.prog, number, 0) for name in ("numa_node", "pgrepl_cpu_domain")}
    monkeypatch.setattr(kernel_replicas, "for_each_online_cpu", lambda _: range(5))
    node, domain = (0, 1, 1, 3, 3), [0, 1, 0, 1, 0]
    kernel.variables["numa_node"] = Object(kernel.prog, number, 0)
    kernel.variables["pgrepl_cpu_domain"] = Object(kernel.prog, number, 1)
    by_kind = (node, domain)
    monkeypatch.setattr(
        kernel_replicas, "per_cpu", lambda which, cpu: SimpleNamespace(value_=lambda: by_kind[which.value_()][cpu])
    )
    assert kernel_replicas.cpu_domains(kernel.prog, (0, 1, 2, 3)) == {0: 0, 1: 1, 2: 2, 3: 1}
    domain[3:] = [1, 1]
    assert kernel_replicas.cpu_domains(kernel.prog, (0, 1, 3)) == {0: 0, 1: 1, 3: 1}


def test_active_may_be_the_domains_in_use() -> None:
    """The contract says a truth value; a mask says the same and more."""
    kernel = Kernel(sample(), active="mask")
    kernel.tell(1, 0b0101, 0b1111)
    roots, told = trees(kernel)
    assert told == Replication("lazy", active=True, domains=(0, 1, 2, 3))
    assert [root.nodes for root in roots] == [(1, 3), (0,), (), (2,), ()]


def test_links_between_tables() -> None:
    memory = sample()
    memory.next[0x20] = 0x1234
    kernel = Kernel(memory)
    read = kernel_replicas.link_reader(kernel.guest)
    frames = np.array([PTE, 0x21, memory.copies[PTE, 2], 0x20])
    following, info = read(frames)
    assert following.tolist() == [memory.next[PTE], NO_LINK, memory.next[memory.copies[PTE, 2]], 0x1234]
    assert info.tolist() == [memory.info.get(int(frame), 0) for frame in frames]
    for wild in (-8, FRAMES):  # below the descriptors, and behind them
        memory.next[0x20] = wild
        assert read(np.array([0x20]))[0].tolist() == [WILD_LINK]
    with pytest.raises(GuestMemoryError, match="no descriptor"):
        read(np.array([FRAMES + 7]))


def test_a_check_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = sample()
    kernel = Kernel(memory)
    kernel.tell(1, True, 0b1111)
    monkeypatch.setattr(pgtable_repl, "guest_of", lambda _: kernel.guest)
    monkeypatch.setattr(kernel_view, "node_map", lambda _: NODES)
    monkeypatch.setattr(kernel_view, "processes", lambda *_: [kernel.process])
    monkeypatch.setattr(kernel_view, "deposited", lambda *_: np.empty(0, np.int64))
    monkeypatch.setattr(kernel_view, "pti", lambda _: True)
    machine: Any = SimpleNamespace(read_file=lambda path: OF_SAMPLE.encode(), paused=nullcontext)
    checked = pgtable_repl.check_replicas(machine, 42)
    assert checked.problems == []
    assert checked.report.entries > 0
    memory.set(memory.copies[PTE, 2], 0, 0x777 << 12 | 0x67)
    assert "leaf-frame: domain 2, level 1" in pgtable_repl.check_replicas(machine, 42).problems[0]


def test_domains_which_are_not_nodes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(sample())
    kernel.tell(1, True, 0b1111)
    assert kernel_replicas.provider(kernel.prog) == "native"
    text = kernel.prog.pointer_type(kernel.prog.int_type("char", 1, True))
    kind = kernel.prog.pointer_type(struct_of(kernel.prog, "pgrepl_provider", 8, name=(0, text)))
    kernel.variables["pgrepl_provider"] = Object(kernel.prog, kind, 0)
    assert kernel_replicas.provider(kernel.prog) == "native"
    kernel._put(STRUCTURES + 0x3000, struct.pack("<Q3s", STRUCTURES + 0x3008, b"pv"))
    kernel.variables["pgrepl_provider"] = Object(kernel.prog, kind, STRUCTURES + 0x3000)
    assert kernel_replicas.provider(kernel.prog) == "pv"
    monkeypatch.setattr(pgtable_repl, "guest_of", lambda _: kernel.guest)
    machine: Any = SimpleNamespace(read_file=lambda path: OF_SAMPLE.encode(), paused=nullcontext)
    with pytest.raises(UserError, match="come from pv"):
        pgtable_repl.check_replicas(machine, 42)


def test_a_snapshot_knows_replicas_that_no_root_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = sample()
    kernel = Kernel(memory)
    kernel.tell(1, True, 0b1111)
    memory.set(memory.copies[0x12, 2], 4, 0)  # the link to PTE's replica of domain 2
    monkeypatch.setattr(kernel_view, "deposited", lambda *_: np.empty(0, np.int64))
    monkeypatch.setattr(kernel_view, "zero_frame", lambda _: -1)
    monkeypatch.setattr(kernel_view, "huge_zero_frame", lambda _: -1)
    monkeypatch.setattr(kernel_view, "pgtables_bytes", lambda _: None)
    (found,) = take._placements(kernel.guest, NODES, [kernel.process])
    assert found.replica_pages.sum(axis=0).tolist() == [4, 4, 5, 5]
    assert found.table_pages_of(-1)[0].tolist() == [0, 0, 1, 0]
    assert found.passthrough == (2, 0)
    assert [found.seen_from(node).remote for node in range(4)] == [0, 0, 0, 0]
    # PTE's twelve entries less the swapped one; PROT_NONE and unused ones are in no replica of their own.
    assert [found.seen_from(node).unfilled for node in range(4)] == [0, 2, 11, 2]
    assert found.remote_share(2) == 0.0
    assert found.remote_share_of_primary(2) == 1.0
