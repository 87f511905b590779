"""Two virtual machines with the same memory, on two nodes of the machine that runs them.

Their accesses reach the host's kernel through KVM's mmu notifiers only: the accessed bits are the second level's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from nuksm import kernel as ksm
from nuksm import metrics
from nuksm.policies import FAIR, KSM
from numalab.kernel.image import KernelImage
from numalab.machine.process import Process
from numalab.machine.second import HOST_PROGRAMS, SecondLevel
from numalab.machine.session import Machine
from numalab.machine.topology import uniform
from numalab.run.policy import Policy, applied
from workloads import catalogue
from workloads.build import binaries

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.patch_set("nuksm"), pytest.mark.timeout(3600)]

SAMEPAGE = catalogue.get("samepage")
PAGES = 1024
#: Small batches: the machine's first process, whose heartbeat we hear, waits for the end of one when it reads of KSM.
PLACED = {"pages": 2000, "sleep": 20, "smart": 0, "sample": 50, "rate": 100_000}
#: Passes in which pages are merged and find their places, and passes that are looked at.
SETTLING, LOOKED_AT = 2, 2
#: Accesses of each guest that are seen in these at least.
SEEN = 200
#: Share of a guest's accesses that are local where all merged pages are on its node.
ALL = 0.95
#: Share of the merged pages that are moved there before it is looked: some may just be in use by the kernel.
ALL_MOVED = 0.99
#: Seconds of wall time for these: a machine inside an emulated one is slow.
PATIENCE = 900.0


@dataclass
class Two:
    """Two guests, each on a node, and what runs in them."""

    machine: Machine
    guests: tuple[SecondLevel, SecondLevel]
    running: list[Process]


@pytest.fixture(scope="module")
def two(patched: KernelImage) -> Iterator[Two]:
    files = {"/bin/samepage": binaries()["samepage"]}
    with ExitStack() as stack:
        machine = stack.enter_context(
            Machine(patched, uniform(2, 1, "768M"), accel="tcg", nested=True, host_programs=HOST_PROGRAMS)
        )
        guests = []
        for node in (0, 1):
            # Private memory, 4K pages when merged: KSM leaves shared memory alone.
            guest = SecondLevel(
                machine,
                patched,
                uniform(1, 1, "128M"),
                cpus=[[node]],
                huge_pages=True,
                extra_files=files,
                slot=node,
                append="nokaslr",
            )
            guests.append(stack.enter_context(guest))
        words = {"size": PAGES * 4096, "rest": 2, "forever": True, "huge": "never"}
        running = [guest.start(SAMEPAGE.argv(words)) for guest in guests]
        for process in running:
            process.wait_mark("ready", 300)
        yield Two(machine, (guests[0], guests[1]), running)
        for process in running:
            process.kill(15)
            done = process.wait(300)
            assert done.ok, done.stderr
            assert {s.metric: s.value for s in SAMEPAGE.parse(done.stdout)}["errors"] == 0
        for guest in guests:
            assert not guest.complaints
        assert not machine.complaints


def passes(machine: Machine, number: int) -> None:
    wanted = ksm.counters(machine)["full_scans"] + number
    deadline = time.monotonic() + PATIENCE
    while ksm.counters(machine)["full_scans"] < wanted:
        assert time.monotonic() < deadline, f"KSM has not made {number} passes in {PATIENCE:.0f} s"
        time.sleep(0.5)


def until_all_are_on(machine: Machine, node: int) -> None:
    """Pages that were merged in one pass are moved in a later one."""
    deadline = time.monotonic() + PATIENCE
    while True:
        pages = ksm.parse_nodes(machine.read_file(f"{KSM}/numa_pages").decode())
        if pages.get(node, 0) >= ALL_MOVED * sum(pages.values()) > 0:
            return
        assert time.monotonic() < deadline, f"merged pages are not on node {node} after {PATIENCE:.0f} s: {pages}"
        passes(machine, 1)


def under(two: Two, policy: Policy, settle_on: int | None = None) -> tuple[dict[str, int], list[dict[str, int]]]:
    """Let KSM work under a policy; return its counters, and the accesses of each guest in the passes looked at.

    With `settle_on` all merged pages are brought to that node before, and stay there. As long as they are forced to a
    node nobody looks at accesses (numa_force_node): so they are let go, and that node is the only one they may lie on.
    """
    with applied(two.machine, policy):
        if settle_on is not None:
            two.machine.write_file(f"{KSM}/numa_force_node", f"{settle_on}\n".encode())
        two.machine.write_file(f"{KSM}/run", b"1\n")
        passes(two.machine, SETTLING)
        if settle_on is not None:
            until_all_are_on(two.machine, settle_on)
            two.machine.write_file(f"{KSM}/numa_nodes", f"{settle_on}\n".encode())
            two.machine.write_file(f"{KSM}/numa_force_node", b"-1\n")
        before = [ksm.stat(two.machine, guest.qemu_pid) for guest in two.guests]
        passes(two.machine, LOOKED_AT)
        after = [ksm.stat(two.machine, guest.qemu_pid) for guest in two.guests]
        counters = ksm.counters(two.machine)
    used = [
        {name: now[name] - then[name] for name in ("ksm_numa_local", "ksm_numa_remote")}
        for now, then in zip(after, before, strict=True)
    ]
    return counters, used


def test_two_guests_share_what_is_remote(two: Two) -> None:
    """Which of the two pages stays is chosen when they are merged, so that there may be nothing to migrate later."""
    counters, used = under(two, FAIR.bind(PLACED, two.machine.topology))
    # The processes' memory, and what two guests that were booted alike have in common beside it.
    assert counters["pages_sharing"] > PAGES
    assert counters["numa_accessed"] > 0
    shares = shares_of(used)
    assert metrics.spread(shares) <= metrics.FAIR_POINTS, (used, counters)


def shares_of(used: list[dict[str, int]]) -> list[float]:
    """Local share of each guest's accesses, which have to be seen."""
    print("accesses sampled of each guest:", used)
    assert all(sum(each.values()) >= SEEN for each in used), f"accesses of a guest are not seen: {used}"
    return [each["ksm_numa_local"] / sum(each.values()) for each in used]


@pytest.mark.parametrize("node", [0, 1])
def test_nodes_of_guests_are_told_apart(two: Two, node: int) -> None:
    """The control: with everything on one node its guest has all, the other nothing.

    A kernel that could not tell from which node a guest's accesses come would find half of each one's local here too.
    """
    counters, used = under(two, FAIR.bind(PLACED, two.machine.topology), settle_on=node)
    assert counters["pages_sharing"] > PAGES
    shares = shares_of(used)
    assert shares[node] >= ALL, used
    assert shares[1 - node] <= 1 - ALL, used
