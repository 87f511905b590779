"""Replicas of page tables on machines that are not alike on all nodes, or change: looked at from outside, as ever."""

from __future__ import annotations

from collections.abc import Callable
from errno import EOPNOTSUPP

import pytest

from mitosis.replication import EAGER, FOLLOW, LAZY, REPLICATION
from numalab.kernel.image import KernelImage
from numalab.machine.outcome import GuestFileError, Mark
from numalab.machine.session import Machine
from numalab.machine.topology import Node, Topology, uniform
from numalab.measure import pgtable_repl
from numalab.measure.pgtable_repl import Checked
from numalab.measure.placement import ProcessPlacement, detach, take
from numalab.run.policy import Policy, applied
from tests.vm.conftest import guest_programs
from tests.vm.test_replicas import Look, look_at, run

pytestmark = [pytest.mark.vm, pytest.mark.patch_set("mitosis")]

MIB = 1 << 20
ONLINE = "/sys/devices/system/cpu/cpu3/online"
VERIFY = "/sys/kernel/debug/pgtable_repl/verify"
BOTH = pytest.mark.parametrize("policy", [LAZY, EAGER], ids=lambda policy: policy.name)


@BOTH
def test_a_cpu_goes_and_comes_back_under_threads(patched4: Machine, policy: Policy) -> None:
    """Threads that may run anywhere: those of CPU 3 are moved off it, and back onto it, while all update."""
    looks: dict[str, Look] = {}

    def on_mark(mark: Mark, machine: Machine) -> None:
        looks[mark.name] = look_at(machine, process.pid, mark.name)

    with applied(patched4, policy):
        words = "gups --size 64M --updates 20M --threads 4 --huge never"
        process = patched4.start(words.split(), on_mark=on_mark)
        process.wait_mark("ready", 240)
        for state in (b"0", b"1") * 3:
            patched4.write_file(ONLINE, state)
        assert not process.ended()
        assert "done" not in looks, "it was to be busy all the while"
        assert process.wait(400).ok
    assert patched4.read_file("/sys/devices/system/cpu/online").strip() == b"0-3"
    done = looks["done"]
    assert done.checked.kernel.nodes == (0, 1, 2, 3)
    assert [done.process.seen_from(node).remote for node in range(4)] == [0] * 4
    if policy is EAGER:
        assert [done.process.unfilled_share(node) for node in range(4)] == [0] * 4
    detach(patched4)


def test_tables_follow_the_thread(patched4: Machine) -> None:
    policy = FOLLOW.bind({"away": 2}, patched4.topology)
    one = ("--updates", "20M", "--threads", "1", "--cpus", "0", "--huge", "never")
    looks: list[tuple[Checked, ProcessPlacement]] = []

    def on_mark(mark: Mark, machine: Machine) -> None:
        if mark.name == "done":
            snapshot = take(machine, [process.pid], label=mark.name)
            looks.append((pgtable_repl.check_replicas(machine, process.pid), snapshot.process(process.pid)))

    with applied(patched4, policy):
        process = patched4.start([*policy.wrap, "gups", "--size", "64M", *one], on_mark=on_mark)
        assert process.wait(250).ok
    [(checked, seen)] = looks
    assert checked.problems == []
    assert checked.kernel.follow
    # Tables that are made after the tree has followed are where they belong at once.
    assert checked.kernel.counts["migrated"] > 0
    tables = seen.table_pages_of(0)[0]
    assert tables[0] == tables.sum() >= 32
    assert seen.remote_share(0) == 0.0
    detach(patched4)


def test_a_node_without_memory(patched: KernelImage) -> None:
    """Its CPU uses the replica of the nearest node that has some: node 1."""
    rows = ((10, 20, 40), (20, 10, 15), (40, 15, 10))
    topology = Topology((Node(1, 512 * MIB), Node(1, 512 * MIB), Node(1, 0)), rows)
    with Machine(patched, topology, accel="tcg", extra_files=guest_programs()) as machine:
        for policy in (LAZY, EAGER):
            words = "gups --size 64M --updates 1M --threads 3 --cpus 0-2 --huge never"
            done = run(machine, policy, *words.split(), marks=("done",))["done"]
            assert done.process.replica_pages[:, 2].sum() == 0
            assert [done.process.seen_from(node).remote for node in (0, 1)] == [0, 0]
            assert done.process.root_seen_from(2) == done.process.root_seen_from(1) > 0
            assert done.process.remote_share(2) == 1.0, "there is nothing local to it"
        detach(machine)
        assert not machine.complaints


def test_refused_where_it_is_off(patched: KernelImage, compiled: Callable[[str], bytes]) -> None:
    """Nobody gets replicas from a kernel that was told not to have them; asking does nothing else."""
    with Machine(patched, uniform(2, 1, "512M"), accel="tcg", append="pgtable_repl=off") as machine:
        machine.write_file("/tmp/asker", compiled("asker"), mode=0o755)
        said = dict(line.split() for line in machine.run(["/tmp/asker"], check=True).stdout.decode().splitlines())
        before = machine.read_file(REPLICATION)
        with pytest.raises(GuestFileError) as caught:
            machine.write_file(REPLICATION, b"2\n")
        assert caught.value.errno == EOPNOTSUPP
        assert machine.read_file(REPLICATION) == before
        assert not machine.complaints
    may = {"prctl-off": "0", "file:off": "0", "nodes": "0"}
    assert said == {way: may.get(way, str(EOPNOTSUPP)) for way in said}
    assert len(said) == 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sixty_four_nodes(patched: KernelImage) -> None:
    """As many as there can be: a mask of nodes is one word. Node 63 is not forgotten, and no other."""
    every = range(64)
    with Machine(
        patched, uniform(64, 1, "96M"), accel="tcg", extra_files=guest_programs(), boot_timeout=600
    ) as machine:
        machine.write_file(REPLICATION, b"1\n")
        looks: dict[str, Look] = {}

        def on_mark(mark: Mark, machine: Machine) -> None:
            name = mark.name
            if name == "ready":
                machine.write_file(f"/proc/{process.pid}/pgtable_repl", b"eager 0-63\n")
            if name == "done":
                looks[name] = look_at(machine, process.pid, name)
                machine.write_file(VERIFY, f"{process.pid}\n".encode())

        words = "gups --size 64M --updates 640k --threads 64 --cpus 0-63 --huge never"
        process = machine.start(words.split(), on_mark=on_mark)
        assert process.wait(1800).ok
        done = looks["done"]
        assert done.checked.kernel.nodes == tuple(every)
        assert sorted({done.process.root_seen_from(node) for node in every}) == list(range(1, 65))
        # Nodes this small run short: what is remote is what a replica passes through to for want of memory, and little.
        shares = [done.process.remote_share(node) or 0.0 for node in every]
        assert max(shares) < 0.01
        assert not any(shares) or done.checked.kernel.counts["passthru"] > 0
        assert [done.process.unfilled_share(node) for node in every] == [0] * 64
        detach(machine)
        assert not machine.complaints


@pytest.mark.slow
@BOTH
def test_leaves_of_a_gigabyte(patched: KernelImage, placer: bytes, policy: Policy) -> None:
    append = "default_hugepagesz=1G hugepagesz=1G hugepages=1"
    with Machine(patched, uniform(2, 1, "2G"), accel="tcg", append=append) as machine:
        machine.write_file("/tmp/placer", placer, mode=0o755)
        # The thread of the other node touches what the first has mapped: its replica gets the leaf then, or had it.
        words = f"cpu 0 huge1g {1 << 40:x} 1024 -1 small {2 << 40:x} 2 0 cpu 1 touch {1 << 40:x}"
        look = run(machine, policy, "/tmp/placer", *words.split(), marks=("ready",))["ready"]
        assert look.process.leaf_of(0)[2].sum() == 1
        for node in (0, 1):
            assert look.process.leaf_of(look.process.root_seen_from(node))[2].sum() == 1
            assert look.process.seen_from(node).remote == 0
        detach(machine)
        assert not machine.complaints
