"""Both levels at once: walks through KVM's tables, and what is counted of them."""

from __future__ import annotations

import contextlib
import json
import struct
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from numalab.machine.outcome import QemuDiedError
from numalab.machine.second import SecondLevel
from numalab.measure import kvm, radix
from numalab.measure.btf import Btf, BtfKind
from numalab.measure.kvm import Root, Slot, Vcpu, Vm
from numalab.measure.modules import joined
from numalab.measure.nested_ram import NestedRam
from numalab.measure.nodes import NodeMap, Span
from numalab.measure.pagetable import walk
from numalab.measure.qemu_ram import GuestMemoryError
from tests.unit.guest_memory import GuestMemory, entry
from tests.unit.test_measure_btf import SAMPLE
from vmitosis import snapshot2d
from vmitosis.compose import pairs
from vmitosis.twodim import Process2D, SecondLevelTree, Seen, Snapshot2D, View, render

NODES = NodeMap([0, 1], [Span(0, 0x1000, 0), Span(0x1000, 0x4000, 1)])
MMU_PRESENT, WRITABLE, HUGE = 1 << 11, 1 << 1, 1 << 7


def spte(frame: int, *, huge: bool = False, amd: bool = True) -> int:
    """An entry as KVM writes it: NPT has the present bit of x86 in bit 0, EPT the right to read."""
    return frame << 12 | MMU_PRESENT | WRITABLE | 1 | (HUGE if huge else 0) | (1 << 8 if not amd else 0)


class SecondLevelMemory(GuestMemory):
    """Host memory with second-level tables; `map` makes the tables that are missing at frames of `fresh`."""

    def map(self, root: int, gfn: int, frame: int, *, level: int = 1, fresh: list[int] | None = None) -> None:
        table = root
        for above in range(self.levels, level, -1):
            index = gfn >> 9 * (above - 1) & 511
            below = int(self.pages[table][index])
            if not below:
                assert fresh
                below = spte(self.table(fresh.pop(0)))
                self.set(table, index, below)
            table = (below & 0x000F_FFFF_FFFF_F000) >> 12
        self.set(table, gfn >> 9 * (level - 1) & 511, spte(frame, huge=level > 1))


def second_level() -> tuple[SecondLevelMemory, int]:
    """Guest frames 0-2 mapped by a table on node 0, 0x200-0x3ff by one entry of 2M in a table on node 1, 0x400 by a
    table on node 1; 3 is an emulated device; nothing else."""
    memory = SecondLevelMemory(4)
    root = memory.table(0x10)
    for gfn in range(3):
        memory.map(root, gfn, 0x1100 + gfn, fresh=[0x11, 0x1012, 0x13])
    memory.map(root, 0x200, 0x2000, level=2)
    memory.map(root, 0x400, 0x1234, fresh=[0x1014])
    memory.set(0x13, 3, 0xFEE00 << 12 | 0x7)  # MMIO: not present to KVM
    return memory, root


def ends_of(memory: GuestMemory, root: int, gfns: list[int]) -> list[tuple[int, int, bool, int]]:
    ends = radix.lookup(root, 4, np.array(gfns, np.int64), memory.read, radix.KVM)
    return list(zip(ends.level.tolist(), ends.table.tolist(), ends.present.tolist(), ends.frame.tolist(), strict=True))


def test_where_walks_through_kvms_tables_end() -> None:
    memory, root = second_level()
    assert ends_of(memory, root, [0, 2, 3, 4]) == [
        (1, 0x13, True, 0x1100),
        (1, 0x13, True, 0x1102),
        (1, 0x13, False, -1),
        (1, 0x13, False, -1),
    ]
    assert ends_of(memory, root, [0x3FF, 0x200]) == [(2, 0x1012, True, 0x21FF), (2, 0x1012, True, 0x2000)]
    assert ends_of(memory, root, [0x400, 0x401, 0x600, 1 << 30]) == [
        (1, 0x1014, True, 0x1234),
        (1, 0x1014, False, -1),
        (2, 0x1012, False, -1),
        (4, 0x10, False, -1),
    ]


def test_no_address_is_no_walk() -> None:
    memory, root = second_level()
    assert len(radix.lookup(root, 4, np.empty(0, np.int64), memory.read, radix.KVM)) == 0


def test_lookup_agrees_with_the_walk_of_a_process() -> None:
    rng = np.random.default_rng(1)
    memory = GuestMemory(4)
    root, fresh = memory.table(0x10), iter(range(0x20, 0x800))
    wanted: dict[int, int] = {}
    for _ in range(300):
        page = int(rng.integers(0, 1 << 20)) << 3 | int(rng.integers(0, 8))
        table = root
        for level in range(4, 1, -1):
            index = page >> 9 * (level - 1) & 511
            if not memory.pages[table][index]:
                memory.link(table, index, memory.table(next(fresh)))
            table = (int(memory.pages[table][index]) & 0x000F_FFFF_FFFF_F000) >> 12
        wanted[page] = int(rng.integers(0, 0x4000))
        memory.set(table, page & 511, entry(wanted[page], "protnone" if page % 3 == 0 else "data"))
    pages = np.array(sorted(wanted), np.int64)
    ends = radix.lookup(root, 4, pages, memory.read, radix.LINUX)
    assert ends.present.all()
    assert ends.frame.tolist() == [wanted[page] for page in sorted(wanted)]
    absent = np.setdiff1d(rng.integers(0, 1 << 23, 200), pages)
    assert not radix.lookup(root, 4, absent, memory.read, radix.LINUX).present.any()
    tables = walk([root], 4, memory.read, NODES)
    leaves = radix.leaves(tables, memory.read, chunk=7)
    assert dict(zip(leaves.page.tolist(), leaves.frame.tolist(), strict=True)) == wanted
    assert np.bincount(leaves.row, minlength=len(tables)).tolist() == tables.leaves.sum(axis=1).tolist()


def test_many_tables_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, root = second_level()
    pages = np.array([0, 0x400, 1, 0x200, 2, 3, 0x401], np.int64)
    whole = radix.lookup(root, 4, pages, memory.read, radix.KVM)
    monkeypatch.setattr(radix, "_CHUNK", 1)
    parts = radix.lookup(root, 4, pages, memory.read, radix.KVM)
    assert [whole.frame.tolist(), whole.table.tolist()] == [parts.frame.tolist(), parts.table.tolist()]


def test_leaves_of_every_size() -> None:
    memory = GuestMemory(4)
    root = memory.table(0x10)
    memory.link(root, 0, memory.table(0x11))
    memory.set(0x11, 1, entry(0x40000, huge=True))
    memory.link(0x11, 0, memory.table(0x12))
    memory.set(0x12, 5, entry(0x1A00, "split"))
    memory.link(0x12, 0, memory.table(0x13))
    memory.set(0x13, 9, entry(0x77))
    memory.set(0x13, 10, entry(0x78, "swap"))
    memory.set(root, 300, entry(0x500, huge=True))  # the kernel's half
    found = radix.leaves(walk([root], 4, memory.read, NODES), memory.read)
    assert sorted(zip(found.level.tolist(), found.page.tolist(), found.frame.tolist(), strict=True)) == [
        (1, 9, 0x77),
        (2, 5 << 9, 0x1A00),
        (3, 1 << 18, 0x40000),
    ]


@pytest.mark.parametrize("amd", [True, False])
def test_all_tables_of_a_tree(amd: bool) -> None:
    memory, root = second_level()
    if not amd:  # EPT: no right to read left (access tracking), accessed in bit 8
        memory.set(0x13, 2, 0x1102 << 12 | MMU_PRESENT | 1 << 8)
    tables = radix.tree(root, 4, memory.read, radix.KVM, NODES)
    assert tables.frame.tolist() == [0x10, 0x11, 0x1012, 0x13, 0x1014]
    assert tables.level.tolist() == [4, 3, 2, 1, 1]
    assert tables.parent.tolist() == [-1, 0, 1, 2, 2]
    assert (tables.va >> np.uint64(12)).tolist() == [0, 0, 0, 0, 0x400]
    assert tables.leaves[:, :2].tolist() == [[0, 0], [0, 0], [0, 1], [0, 3], [0, 1]]
    counted = SecondLevelTree.of(ROOT, tables, NODES.column(tables.frame), 2)
    assert counted.table_pages.tolist() == [[1, 1], [0, 1], [1, 0], [1, 0]]
    assert counted.leaf[0].tolist() == [[0, 3, 0], [0, 1, 0]]
    assert counted.leaves == {"4K": 4, "2M": 1, "1G": 0}


ROOT = Root(0x10, 4, None, False, False, False, 2)


def count(leaves: list[tuple[int, int, int]]) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """(column of the guest's table, first guest frame, level) → pairs, and what was checked."""
    memory, root = second_level()
    checked: list[tuple[int, int]] = []

    def check(frames: NDArray[np.int64], said: NDArray[np.int64]) -> None:
        checked.extend(zip(frames.tolist(), said.tolist(), strict=True))

    own, frame, level = (np.array(column) for column in zip(*leaves, strict=True))
    found = pairs(
        own.astype(np.uint16),
        frame,
        level,
        lambda frames: radix.lookup(root, 4, frames, memory.read, radix.KVM),
        NODES,
        check,
    )
    return found.tolist(), checked


def test_small_pages_are_one_translation_each() -> None:
    found, checked = count([(0, 0, 1), (1, 1, 1), (1, 0x400, 1), (0, 0x201, 1), (1, 4, 1), (0, 0x700, 1)])
    #  guest tables on node 0: second level on node 0, on node 1, unfilled; then on node 1
    assert found == [[1, 1, 1], [1, 1, 1]]
    assert checked == [(0, 0x1100), (1, 0x1101), (0x400, 0x1234), (0x201, 0x2001)]


def test_a_huge_page_on_a_huge_page_is_one() -> None:
    assert count([(1, 0x200, 2)])[0] == [[0, 0, 0], [0, 1, 0]]


def test_a_huge_page_on_small_ones_is_as_many_as_a_tlb_needs() -> None:
    assert count([(0, 0, 2)])[0] == [[3, 0, 509], [0, 0, 0]]


def test_where_there_is_no_table_a_huge_page_is_one_that_is_missing() -> None:
    assert count([(0, 0x600, 2)])[0] == [[0, 0, 1], [0, 0, 0]]


def test_a_page_of_1g_is_taken_to_pieces_twice() -> None:
    # Below its first 2M there is a table with 3 entries, then 2M, then one with one entry, then nothing 509 times.
    assert count([(0, 0, 3)])[0] == [[3, 1 + 1, 509 + 511 + 509], [0, 0, 0]]


def test_without_a_second_level_all_is_unfilled() -> None:
    own = np.array([0, 1, 1], np.uint16)
    found = pairs(own, np.arange(3), np.ones(3, np.int64), None, NODES)
    assert found.tolist() == [[0, 0, 1], [0, 0, 2]]


def test_against_counting_one_by_one() -> None:
    rng = np.random.default_rng(7)
    memory, root = second_level()
    own = rng.integers(0, 2, 400).astype(np.uint16)
    frame = rng.choice([0, 1, 2, 4, 0x200, 0x2FF, 0x400, 0x404, 0x900], 400)
    found = pairs(
        own,
        frame,
        np.ones(400, np.int64),
        lambda frames: radix.lookup(root, 4, frames, memory.read, radix.KVM),
        NODES,
    )
    slow: Counter[tuple[int, int]] = Counter()
    for table, gfn in zip(own.tolist(), frame.tolist(), strict=True):
        ((_, where, present, _),) = ends_of(memory, root, [gfn])
        slow[table, int(where >= 0x1000) if present else 2] += 1
    assert {(a, b): int(found[a, b]) for a in range(2) for b in range(3) if found[a, b]} == dict(slow)


PAIRS = np.array([[5, 3, 1], [2, 7, 0]])


def view(node: int, vcpus: tuple[int, ...], counts: NDArray[np.int64] = PAIRS, nid: int | None = None) -> View:
    return View(node, vcpus, node, 0, nid, True, counts)


def test_local_and_remote_depend_on_who_walks() -> None:
    assert view(0, (0,)).seen(0) == Seen(5, 3, 2, 7, 1)
    assert view(1, (1,)).seen(1) == Seen(7, 2, 3, 5, 1)
    assert Seen(5, 3, 2, 7, 1).found == 17
    assert Seen(5, 3, 2, 7, 1).share("local_local") == pytest.approx(5 / 17)
    assert Seen(0, 0, 0, 0, 9).share("local_local") is None


def test_a_node_without_vcpus_sees_nothing_and_says_so() -> None:
    process = Process2D(7, "gups", (0, 1), (view(0, (0, 1)),))
    assert process.seen_from(1) is None
    assert process.seen_from(0) == Seen(5, 3, 2, 7, 1)
    assert process.overall() == Seen(10, 6, 4, 14, 2)


def test_views_of_one_node_add_up() -> None:
    other = np.array([[0, 0, 0], [0, 1, 0]])
    process = Process2D(7, "gups", (0, 1), (view(0, (0,)), view(0, (1,), other)))
    assert process.seen_from(0) == Seen(5, 3, 2, 8, 1)


def test_a_snapshot_as_text_and_as_json() -> None:
    memory, root = second_level()
    tables = radix.tree(root, 4, memory.read, radix.KVM, NODES)
    tree = SecondLevelTree.of(ROOT, tables, NODES.column(tables.frame), 2)
    process = Process2D(7, "gups", (0, 1), (view(0, (0,)),))
    snapshot = Snapshot2D((process,), (0, 1), ((0, 0, 0),), (tree,), 0, label="ready")
    text = render(snapshot)
    assert "gups  pid 7" in text
    assert "LL         5  29.4%" in text
    assert "node 1: no vCPU runs there" in text
    assert "second level for any node: table pages by node: 3 2" in text
    said = json.loads(json.dumps(snapshot.to_json()))
    assert said["processes"][0]["seen"] == {
        "0": {"local_local": 5, "local_remote": 3, "remote_local": 2, "remote_remote": 7, "unfilled": 1}
    }
    assert said["number_kind"] == "counted"
    assert snapshot.second_level_pages().tolist() == [[1, 1], [0, 1], [1, 0], [1, 0]]
    with pytest.raises(KeyError):
        snapshot.process(8)


def test_the_btf_of_a_module_goes_on_where_the_kernels_ends() -> None:
    import io

    from elftools.elf.elffile import ELFFile

    section = ELFFile(io.BytesIO(SAMPLE.read_bytes())).get_section_by_name(".BTF")
    assert section is not None
    base = bytes(section.data())
    whole = Btf(base)
    node = whole.find("node", [BtfKind.STRUCT])[0]
    strings_length = struct.unpack_from("<HBBIIIII", base)[7]
    # A module's one type: a typedef "mine" of a type of the kernel.
    types = struct.pack("<III", strings_length + 1, int(BtfKind.TYPEDEF) << 24, node)
    strings = b"\0mine\0"
    split = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings
    found = Btf(joined(base, split))
    assert len(found) == len(whole) + 1
    (mine,) = found.find("mine", [BtfKind.TYPEDEF])
    assert found.size(mine) == node
    assert found.name(node) == "node"


class FakeHost:
    """A machine whose VMM has the guest's memory at pages 0x7000 of its address space."""

    levels = 4

    def __init__(self) -> None:
        self.memory = GuestMemory(4)
        self.ram = self
        root = self.memory.table(0x10)
        self.memory.link(root, 0, self.memory.table(0x11))
        self.memory.link(0x11, 0, self.memory.table(0x12))
        self.memory.link(0x12, 0x7000 >> 9, self.memory.table(0x13))
        for place, frame in enumerate((0x100, 0x300, 0x200)):
            self.memory.set(0x13, place, entry(frame))
            self.memory.table(frame)
            self.memory.pages[frame][:] = 1000 * frame + np.arange(512, dtype=np.uint64)
        self.memory.set(0x13, 4, entry(0x400, "swap"))

    def read_pages(self, frames: NDArray[np.int64]) -> NDArray[np.uint64]:
        return self.memory.read(frames)


def nested() -> tuple[FakeHost, NestedRam]:
    host = FakeHost()
    slots = (Slot(0, 2, 0x7000 << 12), Slot(0x100, 4, 0x7002 << 12))
    return host, NestedRam(cast(Any, host), Vm(1, (), (), slots, 0x10))


def test_the_memory_of_a_guest_is_in_its_vmm() -> None:
    host, ram = nested()
    frames = np.array([0x100, 0, 1, 2, 0x102, 0x104, 1 << 40, 0], np.int64)
    assert ram.host_frames(frames).tolist() == [0x200, 0x100, 0x300, -1, -1, -1, -1, 0x100]
    assert [(each.start, each.end, each.host) for each in ram.ranges] == [
        (0, 0x2000, 0),
        (0x100000, 0x104000, 0x100000),
    ]
    assert ram.read_pages(np.array([1, 0]))[:, 3].tolist() == [1000 * 0x300 + 3, 1000 * 0x100 + 3]
    assert ram.read(0xFF8, 16) == struct.pack("<QQ", 1000 * 0x100 + 511, 1000 * 0x300)
    assert ram.read(0x100008, 0) == b""
    with pytest.raises(GuestMemoryError, match="0x2000"):
        ram.read(0x1FF8, 16)
    with pytest.raises(GuestMemoryError):
        ram.read_pages(np.array([0x102]))
    reads = host.memory.reads
    ram.host_frames(frames)
    assert host.memory.reads == reads, "what is known is not looked up again"


def test_after_the_machine_ran_pages_may_lie_elsewhere() -> None:
    host, ram = nested()
    assert ram.host_frames(np.array([0])).tolist() == [0x100]
    host.memory.set(0x13, 0, entry(0x200))
    assert ram.host_frames(np.array([0])).tolist() == [0x100]
    ram.refresh(Vm(1, (), (), (Slot(0, 2, 0x7000 << 12),), 0x10))
    assert ram.host_frames(np.array([0])).tolist() == [0x200]


def test_a_guest_without_memory() -> None:
    ram = NestedRam(cast(Any, FakeHost()), Vm(1, (), (), (), 0x10))
    assert ram.host_frames(np.array([0, 5])).tolist() == [-1, -1]


def test_the_tree_of_a_vcpu() -> None:
    other = Root(0x99, 4, 1, False, False, False, 1)
    vm = Vm(1, (), (ROOT, other), (), 0x10)
    assert vm.root_of(Vcpu(0, 0, 5, 0, 0x99)) == other
    assert vm.root_of(Vcpu(1, 1, 6, 1, None)) is None


def test_a_guest_that_has_ended_is_lost_and_not_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended:
        qemu_pid = 66
        machine = SimpleNamespace()
        paused = staticmethod(contextlib.nullcontext)

        def why_lost(self) -> Exception:
            return QemuDiedError("the second-level guest ended")

    guest = cast("SecondLevel", Ended())
    monkeypatch.setattr(snapshot2d, "note_address", lambda _: b"")
    monkeypatch.setattr(snapshot2d, "guest_of", lambda machine: machine)
    monkeypatch.setattr(kvm, "vms", lambda _: ())
    with pytest.raises(QemuDiedError, match="second-level guest ended"):
        snapshot2d.take(guest)
