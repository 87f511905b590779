"""Wide and Thin guests, before and after: the metric of the paper's figure 2, with both levels replicated or moved."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from numalab.kernel.image import KernelImage
from numalab.machine.outcome import Mark
from numalab.machine.second import SecondLevel
from numalab.machine.topology import uniform
from tests.vm.two_level_guests import BY_NODE, REFAULTS, debug_files, guest_with_gups, quiet
from vmitosis.second_level import uptime
from vmitosis.snapshot2d import render, take
from vmitosis.twodim import Process2D, Seen

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200), pytest.mark.patch_set("vmitosis"), BY_NODE]
PAGES = (8 << 20) >> 12


def seen_from(process: Process2D, node: int) -> Seen:
    found = process.seen_from(node)
    assert found is not None
    return found


@pytest.fixture
def gups(request: pytest.FixtureRequest, patched: KernelImage) -> Iterator[SecondLevel]:
    """A guest with GUPS, in a machine of so many nodes, of a shape: parameter (nodes, memory of one, shape)."""
    nodes, memory, shape = request.param
    with guest_with_gups(patched, uniform(nodes, 1, memory), shape, "migratepages") as guest:
        yield guest


@pytest.mark.parametrize("gups", [(4, "384M", "wide NV memory=72M")], indirect=True)
def test_a_wide_guest_as_placement_falls_and_with_both_levels_replicated(gups: SecondLevel) -> None:
    """One run: tables as threads on four nodes have made them; then both levels are replicated under its feet."""
    guest, debug = gups, debug_files(gups)
    taken: dict[str, Process2D] = {}

    def look(mark: Mark, _: object) -> None:
        if mark.name in ("ready", "done"):
            snapshot = quiet(guest, debug, running.pid)
            print(f"{mark.name}:\n{render(snapshot)}")
            taken[mark.name] = snapshot.process(running.pid)
        if mark.name == "ready":
            debug.write("numa_mmu", "replicate")
            guest.write_file(f"/proc/{running.pid}/pgtable_repl", b"eager 0-3\n")

    words = "/tmp/gups --size 8M --updates 200k --threads 4 --cpus 0-3 --huge never"
    running = guest.start(words.split(), on_mark=look)
    assert running.wait(600).ok
    before, after = taken["ready"], taken["done"]
    nodes = range(4)
    for node in nodes:
        seen = seen_from(before, node)
        assert seen.found >= 0.9 * PAGES
        # Each page of the second level, and of the guest's table, is on one node, and remote from three: all four
        # together see as much of it local as one would if all were there.
        assert seen.local_local < seen.found
    assert sum(seen_from(before, node).local_local for node in nodes) <= max(
        seen_from(before, node).found for node in nodes
    )
    assert [(view.node, view.nid) for view in after.views] == [(node, node) for node in nodes]
    for node in nodes:
        seen = seen_from(after, node)
        # All of the table, which each thread has touched; code and pages of the other threads are not for every node.
        assert seen.local_local == seen.found >= PAGES


@pytest.mark.parametrize("gups", [(2, "768M", "thin NO memory=192M")], indirect=True)
def test_a_thin_guest_that_is_moved_with_its_memory(gups: SecondLevel) -> None:
    """All local, all remote, and all local again: the guest's tables go with its memory, the second level follows."""
    guest, debug = gups, debug_files(gups)
    follow = int(guest.machine.read_file("/sys/module/kvm/parameters/numa_mmu_follow_ms")) / 1000
    debug.write("numa_mmu", "local")
    running = guest.start(["/tmp/gups", "--size", "8M", "--updates", "10G", "--threads", "1", "--huge", "never"])
    running.wait_mark("ready", 120)

    def seen(node: int) -> Seen:
        return seen_from(take(guest, [running.pid]).process(running.pid), node)

    before = seen(0)
    assert before.local_local == before.found >= PAGES
    guest.move(1)
    moved = uptime(guest.machine)
    remote = seen(1)
    assert remote.remote_remote == remote.found > 0
    # The guest sees no nodes: its tables are memory of the VM like any other, which the host moves.
    guest.machine.run(["migratepages", str(guest.qemu_pid), "0", "1"], timeout=300, check=True)
    with_memory = uptime(guest.machine) - moved
    while True:
        now, passed = seen(1), uptime(guest.machine) - moved
        print(f"{passed:.1f} s: {now}")
        if now.local_local == now.found >= PAGES:
            break
        # Its memory has to be there, and each page that was moved is faulted in again.
        assert passed < 3 * follow + with_memory + REFAULTS, "tables did not follow in time"
        # Machine and guest stand still while they are looked at, which takes seconds on a busy host.
        time.sleep(1)
    assert {node for _, _, node in debug.tables().pages} == {1}
    running.kill()
    running.wait(60)
