"""Replicas of page tables on the patched kernel, looked at from outside: where they are, and that they are right."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from analysis.placement import placements
from mitosis.policies import FIRST_TOUCH
from mitosis.replication import EAGER, FEATURES, LAZY, MIGRATE, MODE, OFF, REPLICAS_ON, REPLICATION
from numalab.features import survey
from numalab.kernel.image import KernelImage
from numalab.machine.outcome import Mark
from numalab.machine.session import Machine
from numalab.machine.topology import uniform
from numalab.measure import counters, numa_pgtables, pgtable_repl, selfcheck
from numalab.measure.pgtable_repl import Checked
from numalab.measure.placement import ProcessPlacement, Snapshot, detach, load, save, take
from numalab.run.policy import Policy, applied

pytestmark = pytest.mark.vm

HUGE_PAGES = "/proc/sys/vm/nr_hugepages"
#: One thread on each node; each touches its part first, and later all of it, so that every replica fills.
GUPS = ("gups", "--size", "64M", "--updates", "1M", "--threads", "4", "--cpus", "0-3", "--huge", "never")
#: Page-table pages of the lowest level that 64 MiB need, and how many others (text, stacks, libraries) a program has.
TABLES, OTHERS = 32, 8


@dataclass
class Look:
    """What was seen of the program at one mark."""

    snapshot: Snapshot
    process: ProcessPlacement
    checked: Checked
    status: str


@pytest.fixture
def machine(patched4: Machine) -> Iterator[Machine]:
    knobs = {path: patched4.read_file(path) for path in (REPLICATION, MODE)}
    yield patched4
    assert {path: patched4.read_file(path) for path in knobs} == knobs
    detach(patched4)


def look_at(machine: Machine, pid: int, label: str) -> Look:
    """Look at a process that waits at a mark; everything the kernel says of it must be what its memory says."""
    snapshot = take(machine, [pid], label=label)
    process = snapshot.process(pid)
    checked = pgtable_repl.check_replicas(machine, pid)
    assert checked.problems == []
    assert selfcheck.against_account(snapshot) == []
    assert selfcheck.against_status(process, counters.status(machine, pid)) == []
    assert selfcheck.against_numa_pgtables(process, numa_pgtables.read(machine, pid)) == []
    # Replicas of tables that are deposited for splitting huge pages are in memory, and in no account by level.
    spare = process.replica_pages - checked.report.replica
    assert (spare[0].tolist(), int(spare[1:].sum())) == (checked.report.spare.tolist(), 0)
    assert process.table_pages_of(0).sum() == checked.report.primary.sum()
    assert process.passthrough == (checked.report.local, checked.report.remote)
    status = machine.read_file(f"/proc/{pid}/status").decode()
    return Look(snapshot, process, checked, status)


def run(machine: Machine, policy: Policy, *argv: str, marks: tuple[str, ...] = ("ready", "done")) -> dict[str, Look]:
    """Run a program under a policy; return what was seen of it at its marks."""
    bound = policy.bind({}, machine.topology) if policy.params else policy
    looks: dict[str, Look] = {}

    def on_mark(mark: Mark, machine: Machine) -> None:
        if mark.name in marks:
            looks[mark.name] = look_at(machine, process.pid, mark.name)

    with applied(machine, bound):
        process = machine.start([*bound.wrap, *argv], on_mark=on_mark)
        done = process.wait(240)
    assert done.ok, done.stderr
    assert set(looks) == set(marks)
    return looks


def test_the_kernel_has_what_the_policies_use(machine: Machine) -> None:
    assert all(survey(machine, FEATURES).values())


def test_three_quarters_are_remote_without_replicas(machine: Machine) -> None:
    for policy in (FIRST_TOUCH, OFF):
        done = run(machine, policy, *GUPS)["done"]
        assert done.process.replication is None or not done.process.replication.active
        assert done.checked.kernel.mode == "off"
        assert not done.process.replica_pages.any()
        assert done.process.passthrough == (0, 0)
        for node in range(4):
            assert done.process.remote_share(node) == pytest.approx(0.75, abs=0.04)
            assert done.process.unfilled_share(node) == 0


@pytest.mark.parametrize("policy", [LAZY, EAGER], ids=lambda policy: policy.name)
def test_nothing_is_remote_with_replicas(machine: Machine, policy: Policy) -> None:
    looks = run(machine, policy, *GUPS)
    for look in looks.values():
        process = look.process
        assert process.replication is not None
        assert (process.replication.mode, process.replication.active) == (policy.name, True)
        assert process.replication.domains == look.checked.kernel.nodes == (0, 1, 2, 3)
        assert [root.nodes for root in process.roots] == [(), (0,), (1,), (2,), (3,)]
        for node in range(4):
            assert process.remote_share_of_primary(node) == pytest.approx(0.75, abs=0.04)  # before
            assert process.seen_from(node).remote == 0  # after
            assert process.remote_share(node) == 0.0
        # A PTE table of the primary serves its own node: three copies of each, and upper levels everywhere.
        assert process.passthrough[1] == 0
        assert process.replica_pages[1:].sum(axis=0).min() >= process.levels - 1
        assert look.checked.report.entries > 0
    ready, done = (looks[name].process for name in ("ready", "done"))
    if policy is EAGER:
        for process in (ready, done):
            for node in range(4):
                unfilled = process.unfilled_share(node)
                assert unfilled is not None
                assert unfilled < 0.01
        assert ready.replica_pages[0].sum() >= 3 * TABLES
        footprint, copy = 64 << 20, 4096 * int(done.table_pages_of(0).sum())
        assert done.mapped_bytes == pytest.approx(footprint, rel=0.03)
        # Table 4 of the paper, with four copies: a PTE table of the primary is one of them, upper levels have one more.
        [placed] = placements({"cell": {}, "placement": [{"summary": looks["done"].snapshot.to_json()}]}, None)
        assert placed.overhead == pytest.approx((footprint + 4 * copy) / (footprint + copy), abs=0.001)
        assert 1.004 < placed.overhead < 1.02
    else:
        # Each thread has touched its own quarter, whose tables are the primary's and on its node; then everything.
        assert all((ready.unfilled_share(node) or 0) > 0.6 for node in range(4))
        assert all((done.unfilled_share(node) or 0) < 0.05 for node in range(4))
        assert looks["done"].checked.kernel.counts["fill"] > 0
    assert 3 * TABLES <= done.replica_pages[0].sum() <= 3 * (TABLES + OTHERS) + OTHERS


@pytest.mark.parametrize("policy", [LAZY, EAGER], ids=lambda policy: policy.name)
def test_status_counts_replicas_with_their_roots(machine: Machine, policy: Policy) -> None:
    done = run(machine, policy, *GUPS, marks=("done",))["done"]
    found = re.search(r"^VmPTERepl:\s+(\d+) kB$", done.status, re.MULTILINE)
    assert found
    # A root is two pages in a kernel that is built for page-table isolation, whether it is on or not.
    pages, roots = int(done.process.replica_pages.sum()), int(done.process.replica_pages[-1].sum())
    assert int(found[1]) in (4 * pages, 4 * (pages + roots))


def test_replicas_on_two_of_four_nodes(machine: Machine) -> None:
    policy = REPLICAS_ON.bind({"on": "0,2", "mode": "eager"}, machine.topology)
    done = run(machine, policy, *GUPS, marks=("done",))["done"]
    assert done.checked.kernel.nodes == (0, 2)
    assert set(done.checked.kernel.flags) == {"fork", "exec"}
    assert [done.process.root_seen_from(node) > 0 for node in range(4)] == [True, False, True, False]
    assert [done.process.remote_share(node) for node in (0, 2)] == [0.0, 0.0]
    for node in (1, 3):
        assert done.process.remote_share(node) == pytest.approx(0.75, abs=0.04)
    assert done.process.replica_pages[:, [1, 3]].sum() == 0


@pytest.mark.parametrize("mode", ["lazy", "eager"])
def test_on_and_off_while_the_program_runs(machine: Machine, mode: str) -> None:
    """At `ready` a process that never replicated is told to, at `done` to stop."""
    looks: dict[str, Look] = {}

    def on_mark(mark: Mark, machine: Machine) -> None:
        if mark.name == "init":
            return
        if mark.name == "done":
            looks["before off"] = look_at(machine, process.pid, mark.name)
        word = mode if mark.name == "ready" else "off"
        machine.write_file(f"/proc/{process.pid}/pgtable_repl", word.encode() + b"\n")
        if mark.name == "done":
            looks["off"] = Look(
                snapshot := take(machine, [process.pid]),
                snapshot.process(process.pid),
                pgtable_repl.check_replicas(machine, process.pid),
                "",
            )

    process = machine.start(list(GUPS), on_mark=on_mark)
    assert process.wait(240).ok
    assert all(looks["before off"].process.remote_share(node) == 0.0 for node in range(4))
    off = looks["off"]
    assert off.checked.report.violations == []
    assert off.checked.kernel.mode == "off"
    # Roots live as long as the memory; nobody walks them, and nothing is below them.
    assert off.process.replica_pages[:-1].sum() == 0
    assert [off.process.root_seen_from(node) for node in range(4)] == [0, 0, 0, 0]
    assert all(off.process.remote_share(node) == pytest.approx(0.75, abs=0.04) for node in range(4))


def test_page_tables_move_at_the_mark(machine: Machine) -> None:
    policy = MIGRATE.bind({"node": 2, "away": 0}, machine.topology)
    cpus = ("--cpus", "2", "--threads", "1")
    looks = run(machine, policy, *GUPS[:5], *cpus, "--huge", "never")
    before, after = (looks[name].process.table_pages_of(0)[0] for name in ("ready", "done"))
    assert (before[0], after[2]) == (before.sum(), after.sum())
    assert before.sum() == after.sum() >= TABLES
    assert looks["done"].process.remote_share(2) == 0.0
    assert looks["ready"].process.remote_share(2) == 1.0


@pytest.mark.parametrize("policy", [LAZY, EAGER], ids=lambda policy: policy.name)
def test_every_kind_of_leaf(machine: Machine, placer: bytes, policy: Policy) -> None:
    machine.write_file("/tmp/placer", placer, mode=0o755)
    pages = machine.read_file(HUGE_PAGES)
    machine.write_file(HUGE_PAGES, b"32\n")
    words = []
    for cpu, place in enumerate(range(0x10, 0x14)):
        words += ["cpu", str(cpu), "small", f"{place << 40:x}", "8", str(3 - cpu)]
        words += [
            "thp",
            f"{(place << 40) + (1 << 32):x}",
            "4",
            "-1",
            "read",
            f"{(place << 40) + (2 << 32):x}",
            "2",
            "-1",
        ]
        words += ["none", f"{(place << 40) + (3 << 32):x}", "2", "-1"]
        words += ["huge2m", f"{(place << 40) + (4 << 32):x}", "4", "-1"]
    try:
        (look,) = run(machine, policy, "/tmp/placer", *words, "fork", marks=("ready",)).values()
    finally:
        machine.write_file(HUGE_PAGES, pages)
    assert look.checked.report.entries > 0
    assert all(look.process.seen_from(node).remote == 0 for node in range(4))
    leaves = look.process.leaf_of(0)
    assert leaves[1].sum() == 4 * 2 + 4 * 2, "THP and hugetlb"
    assert leaves[0, :, 4].sum() >= 4 * 512, "zero pages"
    if policy is EAGER:
        # Everything but what no CPU may use: PROT_NONE memory of which the tables are on the three other nodes.
        assert [look.process.seen_from(node).unfilled for node in range(4)] == [3 * 512] * 4


def test_archive_of_replicas(machine: Machine, tmp_path: Path) -> None:
    done = run(machine, LAZY, *GUPS, marks=("done",))["done"]
    save(done.snapshot, tmp_path / "real.npz")
    assert load(tmp_path / "real.npz").to_json() == done.snapshot.to_json()


@pytest.mark.parametrize("append", ["pti=on", "pti=off pgtable_repl=force", "pti=on pgtable_repl=force,eager"])
def test_five_levels_isolation_and_every_process_from_init_on(patched: KernelImage, append: str) -> None:
    from workloads.build import binaries

    gups = {"/bin/gups": binaries()["gups"]}
    topology = uniform(4, 1, "512M", paging_levels=5)
    with Machine(patched, topology, accel="tcg", append=append, extra_files=gups) as machine:
        for policy in (LAZY, EAGER) if "force" not in append else (Policy("as booted", ""),):
            done = run(machine, policy, *GUPS, marks=("done",))["done"]
            assert done.snapshot.pti == ("pti=on" in append)
            assert done.process.levels == 5
            assert all(done.process.remote_share(node) == 0.0 for node in range(4))
        if "force" in append:
            everything = take(machine)
            assert all(process.replication and process.replication.active for process in everything.processes)
            assert selfcheck.against_account(everything) == []
        assert not machine.complaints
        detach(machine)
