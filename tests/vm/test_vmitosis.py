"""Both levels of the page tables of a guest of a booted machine, from outside, against what both kernels say."""

from __future__ import annotations

import random
import re
import struct
import subprocess
import time
from collections.abc import Iterator

import pytest

from numalab.kernel.image import KernelImage
from numalab.machine.outcome import Mark
from numalab.machine.process import Process
from numalab.machine.second import SecondLevel
from numalab.machine.topology import uniform
from numalab.measure import numa_pgtables
from tests.vm.two_level_guests import BY_NODE, REFAULTS, debug_files, guest_with_gups, quiet
from vmitosis.second_level import meminfo_kib, uptime
from vmitosis.snapshot2d import Snapshot2D, read_virtual, take
from vmitosis.twodim import Seen

#: Of a machine in a machine, both emulated: a busy host may take minutes to boot it.
pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]
VMITOSIS = pytest.mark.patch_set("vmitosis")

#: Fills a region with words that tell their own place, then waits at a mark.
PATTERN = r"""
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    uint64_t at = strtoull(argv[1], 0, 16), size = strtoull(argv[2], 0, 10), seed = strtoull(argv[3], 0, 16);
    uint64_t *word = mmap((void *)at, size, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    char byte;

    if ((uint64_t)word != at || madvise(word, size, MADV_NOHUGEPAGE))
        return 1;
    for (uint64_t i = 0; i < size / 8; i++)
        word[i] = (at + 8 * i) ^ seed;
    if (write(atoi(getenv("NUMALAB_MARK_FD")), "ready\n", 6) != 6)
        return 1;
    return read(atoi(getenv("NUMALAB_MARK_FD")), &byte, 1) != 1;
}
"""
WHERE, SIZE, SEED = 0x1234_4000_0000, 8 << 20, 0x5EED_5EED_5EED_5EED
PAGES = SIZE >> 12


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    source = tmp_path_factory.mktemp("pattern") / "pattern.c"
    source.write_text(PATTERN)
    binary = source.with_suffix("")
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-static", "-o", binary, source], check=True)
    return binary.read_bytes()


@pytest.fixture(scope="module")
def thin(stock: KernelImage, program: bytes) -> Iterator[SecondLevel]:
    """A Thin NUMA-oblivious guest on Debian's kernel, whose KVM is a module; the same kernel inside."""
    yield from _guest(stock, "thin NO memory=192M", program)


@pytest.fixture(scope="module")
def wide(patched: KernelImage, program: bytes) -> Iterator[SecondLevel]:
    """A Wide NUMA-visible guest on the patched kernel, with KVM built in; the same kernel inside."""
    yield from _guest(patched, "wide NV memory=128M", program)


def _guest(kernel: KernelImage, shape: str, program: bytes) -> Iterator[SecondLevel]:
    # Two nodes of one CPU: what a guest needs to lie on one of them, or on both.
    with guest_with_gups(kernel, uniform(2, 1, "768M"), shape) as guest:
        guest.write_file("/tmp/pattern", program, mode=0o755)
        yield guest


class Pages:
    """What KVM says of a guest: leaf entries, and bytes of second-level tables, of all guests of the machine."""

    def __init__(self, guest: SecondLevel) -> None:
        self.leaves = {
            size: int(guest.machine.run(["sh", "-c", f"cat /sys/kernel/debug/kvm/*/pages_{size.lower()}"]).stdout)
            for size in ("4K", "2M", "1G")
        }
        kib = meminfo_kib(guest.machine, "SecPageTables")
        assert kib >= 0
        self.tables = kib // 4


def looked_at(guest: SecondLevel, running: Process) -> Snapshot2D:
    """A snapshot of one process, compared with what the machine's kernel says before and after it."""
    before = Pages(guest)
    snapshot = take(guest, [running.pid])
    after = Pages(guest)
    assert snapshot.contradictions == 0, "KVM's tables and the VMM's page tables disagree"
    for size, count in before.leaves.items():
        counted = sum(tree.leaves[size] for tree in snapshot.trees if not tree.root.invalid)
        low, high = sorted((count, after.leaves[size]))
        assert low <= counted <= high
    roots = len(snapshot.trees)  # which the kernel does not account
    low, high = sorted((before.tables, after.tables))
    assert low <= int(snapshot.second_level_pages().sum()) - roots <= high
    return snapshot


def _the_data_is_where_both_levels_lead(guest: SecondLevel, running: Process) -> None:
    """An oracle that shares nothing with how places are counted: words the guest wrote tell their own address."""
    rng = random.Random(1)
    for _ in range(4):
        start = 8 * rng.randrange((SIZE - (64 << 10)) // 8)
        raw = read_virtual(guest, running.pid, WHERE + start, 64 << 10)
        words = struct.unpack(f"<{len(raw) // 8}Q", raw)
        assert words == tuple((WHERE + start + 8 * i) ^ SEED for i in range(len(words)))


def test_thin_and_oblivious_before_and_after_it_is_moved(thin: SecondLevel) -> None:
    guest = thin

    def look(*_mark: object) -> None:
        process = looked_at(guest, running).process(running.pid)
        here = process.seen_from(0)
        assert process.seen_from(1) is None
        assert here is not None
        # It has never been elsewhere: both levels are local.
        assert (here.local_remote, here.remote_local, here.remote_remote) == (0, 0, 0)
        assert here.local_local >= PAGES
        # All pages of the process are accounted for: its own, and a few that no kernel counts as resident.
        said = guest.read_file(f"/proc/{running.pid}/smaps_rollup").decode()
        resident = int(re.search(r"^Rss:\s+(\d+) kB", said, re.MULTILINE)[1]) // 4  # type: ignore[index]
        assert resident >= PAGES
        assert 0 <= here.found + here.unfilled - resident <= 16
        _the_data_is_where_both_levels_lead(guest, running)

        guest.move(1)
        guest.run(["true"])
        moved = looked_at(guest, running)
        assert {node for _, node, _ in moved.vcpus} == {1}
        there = moved.process(running.pid).seen_from(1)
        assert there is not None
        # Nothing follows on a stock kernel: what was all local is all remote.
        assert there.remote_remote >= here.local_local
        assert there.remote_remote >= 0.99 * there.found
        guest.move(0)

    running = guest.start(["/tmp/pattern", f"{WHERE:x}", str(SIZE), f"{SEED:x}"], on_mark=look)
    assert running.wait(180).ok


def test_wide_and_visible_with_one_tree_of_each_level(wide: SecondLevel) -> None:
    guest = wide

    def look(*_mark: object) -> None:
        snapshot = looked_at(guest, running)
        assert snapshot.vcpus == ((0, 0, 0), (1, 1, 1))
        assert [tree.root.nid for tree in snapshot.trees if not tree.root.guest_mode] == [None]
        process = snapshot.process(running.pid)
        assert [(view.node, view.guest_node) for view in process.views] == [(0, 0), (1, 1)]
        # What one node finds local, the other finds remote.
        near, far = process.seen_from(0), process.seen_from(1)
        assert near is not None
        assert far is not None
        assert near[:4] == far[3::-1]
        # The process ran on vCPU 0, and the guest's node 0 is bound to node 0: its own tables are there.
        assert near.local_local + near.local_remote >= PAGES
        # The guest's kernel counts the same entries on the same nodes.
        told = numa_pgtables.read(guest, running.pid)
        by_node = [0, 0]
        for (_, node), counts in told.leaves.items():
            by_node[node] += sum(count for where, count in counts.items() if where != numa_pgtables.OTHER)
        assert process.views[0].pairs.sum(axis=1).tolist() == by_node
        _the_data_is_where_both_levels_lead(guest, running)

    running = guest.start(["taskset", "-c", "0", "/tmp/pattern", f"{WHERE:x}", str(SIZE), f"{SEED:x}"], on_mark=look)
    assert running.wait(120).ok


@VMITOSIS
@BY_NODE
def test_with_both_levels_replicated_all_is_local(wide: SecondLevel) -> None:
    guest, debugfs = wide, debug_files(wide)
    debugfs.write("numa_mmu", "replicate")
    try:
        taken: list[Snapshot2D] = []

        def look(mark: Mark, _: object) -> None:
            if mark.name == "done":
                taken.append(quiet(guest, debugfs, running.pid))

        both = "echo eager 0-1 fork exec > /proc/$$/pgtable_repl && exec /tmp/gups --size 8M --updates 100k"
        running = guest.start(["sh", "-c", f"{both} --threads 2 --cpus 0-1 --huge never"], on_mark=look)
        assert running.wait(180).ok
        (snapshot,) = taken
        process = snapshot.process(running.pid)
        assert [(view.node, view.nid) for view in process.views] == [(0, 0), (1, 1)]
        for node in (0, 1):
            seen = process.seen_from(node)
            assert seen is not None
            # Each vCPU has touched all of the table; what is missing are pages of the other thread's own, and code.
            assert seen.local_local == seen.found >= PAGES
    finally:
        debugfs.write("numa_mmu", "off")


@VMITOSIS
@BY_NODE
def test_both_levels_follow_a_program_whose_machine_moves(wide: SecondLevel) -> None:
    """All remote-remote, then the second level follows within its promised time, then the guest's tables do."""
    guest, debugfs = wide, debug_files(wide)
    follow = int(guest.machine.read_file("/sys/module/kvm/parameters/numa_mmu_follow_ms")) / 1000
    guest.move(0)
    debugfs.write("numa_mmu", "local")
    try:
        home = "taskset -c 0 /tmp/gups --size 8M --updates 10G --threads 1 --cpus 0 --huge never"
        running = guest.start(home.split())
        # A vCPU that sleeps counts for ten periods where it was: this one wakes up, and moves with the other.
        awake = guest.start(["taskset", "-c", "1", "sh", "-c", "while :; do sleep 1; done"])
        running.wait_mark("ready", 120)
        time.sleep(2)

        def seen(node: int) -> Seen:
            found = take(guest, [running.pid]).process(running.pid).seen_from(node)
            assert found is not None
            return found

        # Every vCPU is on node 0, and so are all tables.
        before = seen(0)
        assert before.local_local == before.found >= PAGES
        guest.move(1)
        # By the machine's own clock, which an emulation on a busy host may run slowly.
        moved = uptime(guest.machine)
        remote = seen(1)
        assert remote.local_local == remote.local_remote == 0
        assert remote.remote_remote > 0
        second = 0.0
        while uptime(guest.machine) < moved + 30 * follow:
            now = seen(1)
            print(f"{uptime(guest.machine) - moved:.1f} s: {now}; {debugfs.tables().pages}")
            nodes = [debugfs.read(f"vcpu{vcpu}/mmu_nid") for vcpu in range(len(guest.threads))]
            counts = {name: debugfs.number(name) for name in ("mmu_numa_miss", "mmu_numa_zapped")}
            print(f"    vCPUs {nodes}, {counts}")
            if now.found >= PAGES and not now.remote_remote and not now.local_remote:
                second = uptime(guest.machine) - moved
                break
            # Machine and guest stand still while they are looked at, which takes seconds on a busy host.
            time.sleep(1)
        # Three periods until it begins, and the faults that build the tables anew.
        assert 0 < second < 3 * follow + REFAULTS, "the second level did not follow in time"
        guest.run(["sh", "-c", f"echo migrate 1 > /proc/{running.pid}/pgtable_repl"], check=True)
        after = seen(1)
        assert after.local_local == after.found
        for process in (running, awake):
            process.kill()
            process.wait(60)
    finally:
        guest.move(0)
        guest.pin(1, [1])
        debugfs.write("numa_mmu", "off")
