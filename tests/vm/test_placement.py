"""Snapshots of a booted machine: what was asked for is where it was asked for, and the kernel agrees."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from numalab.errors import UserError
from numalab.kernel.image import KernelImage
from numalab.machine.outcome import GuestFileError
from numalab.machine.session import Machine
from numalab.machine.topology import Node, Topology, uniform
from numalab.measure import counters, numa_pgtables, perf, selfcheck
from numalab.measure.nodes import NodeMap, Span
from numalab.measure.pagetable import walk
from numalab.measure.placement import ProcessPlacement, Snapshot, detach, load, save, take
from numalab.measure.take import guest_of

pytestmark = pytest.mark.vm

SOURCE = Path(__file__).parent.parent / "fixtures" / "placer.c"
MIB = 1 << 20
#: Addresses of the mappings, each with PTE, PMD and PUD pages of its own.
SMALL, THP, ZERO, NONE, HUGE = (n << 40 for n in range(0x10, 0x15))
HUGE_PAGES = "/proc/sys/vm/nr_hugepages"
Placer = Callable[..., tuple[Snapshot, ProcessPlacement]]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    binary = tmp_path_factory.mktemp("placer") / "placer"
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-static", "-o", binary, SOURCE], check=True)
    return binary.read_bytes()


def place(machine: Machine, program: bytes, *words: str, every: bool = False) -> tuple[Snapshot, ProcessPlacement]:
    """Run placer; at its mark take a snapshot of it (or of every process) and compare with the kernel."""
    machine.write_file("/tmp/placer", program, mode=0o755)
    taken: list[tuple[Snapshot, ProcessPlacement]] = []

    def look(*_: object) -> None:
        snapshot = take(machine, None if every else [process.pid], label="ready")
        found = snapshot.process(process.pid)
        assert selfcheck.against_account(snapshot) == []
        assert selfcheck.against_status(found, counters.status(machine, process.pid)) == []
        taken.append((snapshot, found))
        try:
            kernel = numa_pgtables.read(machine, process.pid)
        except GuestFileError:
            assert machine.kernel.name == "stock", "the patched kernel has numa_pgtables"
        else:
            assert selfcheck.against_numa_pgtables(found, kernel) == []

    process = machine.start(["/tmp/placer", *words], on_mark=look)
    done = process.wait(120)
    assert done.ok, done.stderr
    ((snapshot, found),) = taken
    return snapshot, found


def leaves(process: ProcessPlacement, address: int, mib: int, level: int) -> np.ndarray:
    """Leaf entries [node of the table page, column of the data page] in the tables of one mapping."""
    tables = process.tables
    size = mib * MIB
    rows = (tables.level == level) & (tables.va < address + size)
    rows &= tables.va + np.uint64(1 << 12 + 9 * level) > address
    counts = np.zeros((len(process.nodes), len(process.nodes) + 2), np.int64)
    np.add.at(counts, process.table_node[rows], tables.leaves[rows])
    return counts


def only(table_node: int, column: int, count: int, nodes: int = 4) -> list[list[int]]:
    counts = np.zeros((nodes, nodes + 2), np.int64)
    counts[table_node, column] = count
    return counts.tolist()


@pytest.fixture(params=["stock4", "patched4"])
def machine4(request: pytest.FixtureRequest) -> Iterator[Machine]:
    machine: Machine = request.getfixturevalue(request.param)
    yield machine
    detach(machine)


def test_tables_lie_where_the_cpu_was_and_data_where_it_was_bound(machine4: Machine, program: bytes) -> None:
    words = []
    for node in range(4):
        words += ["cpu", str(node), "small", f"{SMALL + (node << 32):x}", "16", str(3 - node)]
    snapshot, process = place(machine4, program, *words)
    assert snapshot.nodes == snapshot.cpu_nodes == (0, 1, 2, 3)
    assert process.levels == machine4.topology.paging_levels
    for node in range(4):
        assert leaves(process, SMALL + (node << 32), 16, 1).tolist() == only(node, 3 - node, 4096)
    assert (process.table_pages[0] >= 8).all()
    assert sum(process.local_share(node) or 0 for node in range(4)) == pytest.approx(1)
    assert (process.remote_share(0) or 0) == pytest.approx(0.75, abs=0.03)


def test_every_kind_of_leaf(machine4: Machine, program: bytes) -> None:
    pages = machine4.read_file(HUGE_PAGES)
    machine4.write_file(HUGE_PAGES, b"32\n")
    try:
        _, process = place(
            machine4,
            program,
            *("cpu", "1"),
            *("thp", f"{THP:x}", "8", "2"),
            *("read", f"{ZERO:x}", "4", "-1"),
            *("none", f"{NONE:x}", "4", "3"),
            *("huge2m", f"{HUGE:x}", "6", "0"),
        )
    finally:
        machine4.write_file(HUGE_PAGES, pages)
    zero = len(process.nodes)
    assert leaves(process, THP, 8, 2).tolist() == only(1, 2, 4)
    assert leaves(process, ZERO, 4, 1).tolist() == only(1, zero, 1024)
    assert leaves(process, NONE, 4, 1).tolist() == only(1, 3, 1024)
    assert leaves(process, HUGE, 6, 2).tolist() == only(1, 0, 3)
    assert process.deposited.tolist() == [0, 4, 0, 0]


def test_a_shared_hugetlb_table_counts_once_in_all(machine4: Machine, program: bytes) -> None:
    pages = machine4.read_file(HUGE_PAGES)
    machine4.write_file(HUGE_PAGES, b"8\n")
    try:
        # One PUD entry's worth: at its first fault, the child takes over the parent's PMD page.
        words = ("shared2m", f"{HUGE:x}", "1024", "0", "fork", "touch", f"{HUGE:x}")
        snapshot, parent = place(machine4, program, *words, every=True)
    finally:
        machine4.write_file(HUGE_PAGES, pages)
    (child,) = (each for each in snapshot.processes if each.comm == "placer" and each.pid != parent.pid)
    frames = [each.tables.frame[(each.tables.level == 2) & (each.tables.va == HUGE)] for each in (parent, child)]
    assert frames[0].tolist() == frames[1].tolist() != []
    total = sum(int(each.table_pages.sum()) for each in snapshot.processes)
    assert int(snapshot.table_pages.sum()) == total - 1


def test_every_process_agrees_with_the_kernel(machine4: Machine) -> None:
    snapshot = take(machine4)
    assert any(process.pid == 1 for process in snapshot.processes)
    selfcheck.check(snapshot)


def test_archive_of_a_real_snapshot(machine4: Machine, program: bytes, tmp_path: Path) -> None:
    snapshot, _ = place(machine4, program, "small", f"{SMALL:x}", "4", "-1")
    save(snapshot, tmp_path / "real.npz")
    again = load(tmp_path / "real.npz")
    assert again.to_json() == snapshot.to_json()
    assert again.kernel["release"] == machine4.run(["uname", "-r"]).stdout.decode().strip()


def test_unknown_processes_are_named(stock4: Machine) -> None:
    with pytest.raises(UserError, match="no process 99999"):
        take(stock4, [99999])
    with pytest.raises(UserError, match="no process called 'gupz'"):
        take(stock4, names=["gupz"])
    detach(stock4)


def test_a_process_without_memory_is_not_a_process(stock4: Machine) -> None:
    with pytest.raises(UserError, match="no process 2 with memory of its own"):
        take(stock4, [2])  # kthreadd
    detach(stock4)


def test_the_machine_runs_on_afterwards(stock4: Machine) -> None:
    take(stock4)
    assert stock4.run(["echo", "alive"]).stdout == b"alive\n"
    detach(stock4)


def test_speed(stock4: Machine, program: bytes) -> None:
    """1 GiB in 4K pages: at most 1 s of processor time, attaching included; 50 million entries per second."""
    stock4.write_file("/tmp/placer", program, mode=0o755)
    costs: list[float] = []
    rates: list[float] = []

    def look(*_: object) -> None:
        take(stock4, [process.pid])  # keeps the kernel's symbols in the cache, as any earlier run did
        detach(stock4)
        start = time.process_time()
        found = take(stock4, [process.pid]).processes[0]
        costs.append(time.process_time() - start)
        assert found.leaf[0].sum() >= (1 << 30) // 4096
        guest = guest_of(stock4)
        nodes = NodeMap(found.nodes, [Span(node << 17, node + 1 << 17, node) for node in found.nodes])
        start = time.process_time()
        tables = walk([found.roots[0].frame] * 8, guest.levels, guest.ram.read_pages, nodes)
        rates.append(512 * len(tables) / (time.process_time() - start))

    process = stock4.start(["/tmp/placer", "small", f"{SMALL:x}", "1024", "-1"], on_mark=look)
    done = process.wait(120)
    detach(stock4)
    assert done.ok, done.stderr
    assert costs[0] <= 1
    assert rates[0] >= 50e6


def test_counters_around_a_run(stock4: Machine) -> None:
    before = counters.read(stock4)
    stock4.run(["sh", "-c", "true"])
    change = counters.read(stock4).since(before)
    assert change.vmstat["pgfault"] > 0
    assert set(change.numastat) == {0, 1, 2, 3}
    assert not perf.has_pmu(stock4), "an emulated machine has no PMU"


def test_five_levels_gigantic_pages_and_page_table_isolation(stock: KernelImage, program: bytes) -> None:
    topology = uniform(2, 1, "3G", paging_levels=5)
    with Machine(stock, topology, accel="tcg", append="hugepagesz=1G hugepages=1 pti=on") as machine:
        words = ("cpu", "1", "huge1g", f"{HUGE:x}", "1024", "-1", "small", f"{SMALL:x}", "2", "0")
        snapshot, process = place(machine, program, *words)
        detach(machine)
    assert snapshot.pti
    assert snapshot.levels == process.levels == 5
    assert process.table_pages.shape == (5, 2)
    assert process.table_pages[4].sum() == 1
    assert process.leaf[2].sum() == 1
    assert leaves(process, SMALL, 2, 1).tolist() == only(1, 0, 512, nodes=2)


def test_memoryless_and_cpuless_nodes(stock: KernelImage, program: bytes) -> None:
    """A CPU without memory of its own takes page tables from elsewhere; a node without CPUs sees nothing."""
    rows = ((10, 20, 30), (20, 10, 20), (30, 20, 10))
    topology = Topology((Node(1, 512 * MIB), Node(1, 0), Node(0, 512 * MIB)), rows)
    with Machine(stock, topology, accel="tcg") as machine:
        snapshot, process = place(machine, program, "cpu", "1", "small", f"{SMALL:x}", "4", "2")
        detach(machine)
    assert snapshot.nodes == (0, 1, 2)
    assert snapshot.cpu_nodes == (0, 1)
    counts = leaves(process, SMALL, 4, 1)
    assert counts.sum() == counts[:, 2].sum() == 1024
    assert process.table_pages[:, 1].sum() == 0
    assert process.local_share(1) == 0
