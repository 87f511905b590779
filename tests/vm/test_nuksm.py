"""Same-page merging on machines with several nodes: what stock KSM gives, and what the patch set nuksm promises.

Those on the patched kernel wait until the series has the patch set; they fail where a kernel lacks what it should have.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nuksm import kernel as ksm
from nuksm import metrics
from nuksm.cost.scan import passes_on
from nuksm.cost.table import Case, Table
from nuksm.metrics import Savings
from nuksm.policies import COPIES, FAIR, FEATURES, FORCE_NODE, KSM, OFF, PRIORITY, SCAN_THREADS, SEPARATE, STOCK, STRICT
from nuksm.runs import nodes_of_snapshot, share_of
from numalab.errors import MissingError
from numalab.features import survey
from numalab.kernel.image import KernelImage
from numalab.machine.outcome import GuestFileError, Mark
from numalab.machine.session import Machine
from numalab.measure.placement import detach, take
from numalab.results import Json
from numalab.run.instances import Instance, Instances, place
from numalab.run.kept import Kept
from numalab.run.policy import Policy, applied
from numalab.run.together import Together
from tests.nuksm_files import NUKSM_FILES
from workloads import catalogue

pytestmark = pytest.mark.vm
NUKSM = pytest.mark.patch_set("nuksm")

SAMEPAGE = catalogue.get("samepage")
PAGES = 512
SIZE = PAGES * 4096
#: A pass is one wake-up: all pages of both processes, 20 ms apart at least.
SCAN = {"pages": 5000, "sleep": 20, "smart": 0}
#: Sampled as often as a pass may be; passes enough for several decisions, twice in a row each.
PLACED = {**SCAN, "sample": 20, "rate": 100_000}
FEW, MANY = 6, 60
PAIR = (Instance(0), Instance(1))
#: Pages of program, libraries and stacks: on whose node they happen to be.
OTHERS = 300


@dataclass
class Seen:
    """Two processes when both were done: each list by instance.

    Attributes:
        shares: local share of the pages that are equal, as the process says.
        frames: behind the pages of its region.
        stats: its ksm_stat.
        counters: of KSM.
        savings: of KSM.
        pages: merged pages by node, as KSM says; None: it does not.
        snapshot: mapped pages by node, as seen from outside.
        results: what each has reported.
    """

    shares: list[float] = field(default_factory=list)
    frames: list[Any] = field(default_factory=list)
    stats: list[dict[str, int]] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    pages: dict[int, int] | None = None
    snapshot: list[dict[int, int]] = field(default_factory=list)
    results: list[Json] = field(default_factory=list)

    @property
    def savings(self) -> Savings:
        return ksm.savings(self.counters)

    def value(self, metric: str) -> list[Any]:
        samples = ({sample["metric"]: sample["value"] for sample in each["samples"]} for each in self.results)
        return [each[metric] for each in samples]


def run(
    machine: Machine,
    policy: Policy,
    values: dict[str, Any],
    *,
    each: Sequence[Instance] = PAIR,
    order: Sequence[int] = (0, 1),
    passes: int = FEW,
    **params: Any,
) -> Seen:
    """Run processes with the same memory under a policy; look at them when all are done."""
    bound = policy.bind(values, machine.topology)
    given = {
        "size": SIZE,
        "passes": passes,
        "seconds": 1,
        "rest": 2,
        "mergeable": "region",
        "huge": "never",
        **params,
    }
    placed = place(Instances(tuple(each)), SAMEPAGE, given, bound, machine.topology)
    seen = Seen()

    def on_mark(mark: Mark, _: Any) -> None:
        if mark.name != "done":
            return
        # Nobody reads any more: pages would become cold, and copies go, while they are looked at.
        machine.write_file(f"{KSM}/run", b"0\n")
        seen.counters = ksm.counters(machine)
        pids = sorted(pid_of(machine, one.instance) for one in placed)
        by_instance = [pid_of(machine, one.instance) for one in placed]
        seen.frames = [ksm.frames(machine, pid, PAGES) for pid in by_instance]
        seen.stats = [ksm.stat(machine, pid) for pid in by_instance]
        try:
            seen.pages = ksm.parse_nodes(machine.read_file(f"{KSM}/numa_pages").decode())
        except GuestFileError:
            seen.pages = None
        snapshot = take(machine, pids, label=mark.name).to_json()
        by_pid = {process["pid"]: process for process in snapshot["processes"]}
        seen.snapshot = [nodes_of_snapshot(by_pid[pid], snapshot["nodes"]) for pid in by_instance]

    before = knobs(machine)
    together = Together(placed, order, on_mark, 300.0)
    with applied(machine, bound):
        together.run(machine)
        name, done = together.worst()
        assert done.ok, (name, done.stderr)
    assert knobs(machine) == before
    seen.results = together.results(SAMEPAGE, machine.accel)
    shares = [share_of(each) for each in seen.results]
    assert None not in shares
    seen.shares = [share for share in shares if share is not None]
    # What was read was right, all the time, and in the end every word.
    assert seen.value("errors") == [0] * len(placed)
    return seen


def pid_of(machine: Machine, instance: Instance) -> int:
    """The process on a node: each has one."""
    [cpu] = machine.topology.cpus_of(instance.node)
    for line in machine.run(["pidof", "samepage"]).stdout.split():
        allowed = re.search(rb"^Cpus_allowed_list:\s*(\S+)$", machine.read_file(f"/proc/{int(line)}/status"), re.M)
        if allowed and allowed[1].decode() == str(cpu):
            return int(line)
    raise AssertionError(f"no process on node {instance.node}")


def knobs(machine: Machine) -> dict[str, str]:
    """All files of KSM that can be written."""
    listed = machine.run(["sh", "-c", f"cd {KSM} && for each in *; do [ -w $each ] && echo $each; done"])
    writable = [
        name
        for name in listed.stdout.decode().split()
        if not re.fullmatch(r"full_scans|general_profit|ksm_.*|numa_(local|remote|sampled|accessed|migrated)", name)
    ]
    plain = [
        name for name in writable if not name.startswith(("pages_", "stable_", "scan_workers")) or "to_scan" in name
    ]
    return {name: machine.read_file(f"{KSM}/{name}").decode().strip() for name in plain}


@pytest.fixture
def debian(stock4: Machine) -> Iterator[Machine]:
    yield stock4
    detach(stock4)


@pytest.fixture
def machine(patched4: Machine) -> Iterator[Machine]:
    lacks = [feature.name for feature, has in survey(patched4, FEATURES).items() if not has]
    assert not lacks, f"this kernel has no {' and no '.join(lacks)}: it lacks the patch set nuksm"
    yield patched4
    detach(patched4)


# Stock KSM: what everything is compared with. It holds on the patched kernel too while nothing is switched on.


def merged_frames(seen: Seen) -> int:
    """How many pages two processes share, by the frames behind them."""
    first, second = seen.frames
    assert (first >= 0).all()
    assert (second >= 0).all()
    return int((first == second).sum())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_stock_ksm_gives_all_to_the_one_that_is_scanned_second(debian: Machine, order: tuple[int, int]) -> None:
    seen = run(debian, STOCK, SCAN, order=order)
    second = order[1]
    assert (seen.shares[second], seen.shares[1 - second]) == (1.0, 0.0)
    assert (metrics.spread(seen.shares), metrics.jain(seen.shares)) == (100.0, 0.5)
    assert merged_frames(seen) == PAGES
    assert seen.savings == Savings(PAGES, PAGES)
    assert [stat["ksm_merging_pages"] for stat in seen.stats] == [PAGES, PAGES]
    assert seen.value("merged_pages") == [PAGES, PAGES]
    assert seen.value("numa_local") == [None, None], "stock KSM knows nothing of nodes: missing, not 0"
    # The outside sees what move_pages says.
    for pages in seen.snapshot:
        assert PAGES <= pages[second] <= PAGES + OTHERS
        assert sum(pages.values()) <= PAGES + OTHERS


def test_without_ksm_everything_is_local_and_nothing_is_saved(debian: Machine) -> None:
    seen = run(debian, OFF, {})
    assert seen.shares == [1.0, 1.0]
    assert (seen.savings, merged_frames(seen)) == (Savings(0, 0), 0)


def test_ksm_by_node_saves_nothing_across_nodes(debian: Machine) -> None:
    assert run(debian, SEPARATE, SCAN).savings == Savings(0, 0)


def test_only_what_is_equal_is_merged(debian: Machine) -> None:
    seen = run(debian, STOCK, SCAN, same=50)
    assert merged_frames(seen) == PAGES // 2
    assert (seen.frames[0] == seen.frames[1])[: PAGES // 2].all()
    assert seen.savings.sharing == PAGES // 2
    # A process's own pages stay where it touched them.
    assert seen.value("own_pages_node0") == [PAGES // 2, 0]
    assert seen.value("own_pages_node1") == [0, PAGES // 2]


@pytest.mark.parametrize(
    "policy", [FAIR, PRIORITY, STRICT, COPIES, FORCE_NODE, SCAN_THREADS], ids=lambda each: each.name
)
def test_debians_kernel_refuses_what_it_does_not_have(debian: Machine, policy: Policy) -> None:
    before = knobs(debian)
    with (
        pytest.raises(MissingError, match=r"this kernel has no /sys/kernel/mm/ksm/") as caught,
        applied(debian, policy.bind({}, debian.topology)),
    ):
        pytest.fail("applied without the patch set")
    assert "'nuksm'" in caught.value.remedy
    assert knobs(debian) == before
    assert not any(survey(debian, FEATURES).values())


# The patch set.


DEFAULTS = {**NUKSM_FILES, "numa_cgroup_weight": "0"}


@NUKSM
def test_by_default_ksm_is_as_it_is_today(machine: Machine) -> None:
    assert {name: machine.read_file(f"{KSM}/{name}").decode().strip() for name in DEFAULTS} == DEFAULTS
    for order in ((0, 1), (1, 0)):
        seen = run(machine, STOCK, SCAN, order=order)
        assert (seen.shares[order[1]], seen.shares[order[0]]) == (1.0, 0.0)
        assert seen.savings == Savings(PAGES, PAGES)
        assert merged_frames(seen) == PAGES
        assert {name: seen.counters[name] for name in ("numa_copies", "numa_migrated")} == {
            "numa_copies": 0,
            "numa_migrated": 0,
        }


@NUKSM
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_equals_share_what_is_remote(machine: Machine, order: tuple[int, int]) -> None:
    seen = run(machine, FAIR, PLACED, order=order, passes=MANY)
    assert metrics.spread(seen.shares) <= metrics.FAIR_POINTS
    assert seen.savings.same_as(Savings(PAGES, PAGES))
    assert merged_frames(seen) == PAGES
    assert seen.counters["numa_sampled"] > 0
    assert seen.counters["numa_accessed"] > 0
    # Nobody's page is where nobody uses it, and KSM's own account agrees with the two of them.
    assert seen.pages is not None
    assert sum(seen.pages.values()) == pytest.approx(PAGES, abs=PAGES // 100)
    for node in (0, 1):
        assert seen.pages.get(node, 0) == pytest.approx(seen.shares[node] * PAGES, abs=PAGES // 100)
    for stat in seen.stats:
        assert stat["ksm_numa_local"] > 0
        assert stat["ksm_numa_remote"] > 0


@NUKSM
def test_a_page_lies_where_it_is_used(machine: Machine) -> None:
    """One of two equal processes sleeps: all pages go to the other, whoever was scanned second."""
    for reader in (0, 1):
        each = tuple(Instance(node, params={} if node == reader else {"hot": 0}) for node in (0, 1))
        for order in ((0, 1), (1, 0)):
            seen = run(machine, FAIR, PLACED, each=each, order=order, passes=MANY)
            assert seen.shares[reader] >= 0.95
            assert seen.savings.same_as(Savings(PAGES, PAGES))


@NUKSM
@pytest.mark.parametrize("nices", [(-20, -11), (-20, -16), (-20, -20), (-16, -20), (-11, -20)])
def test_shares_are_in_the_order_of_weights(machine: Machine, nices: tuple[int, int]) -> None:
    each = tuple(Instance(node, nice=nice) for node, nice in enumerate(nices))
    for order in ((0, 1), (1, 0)):
        seen = run(machine, PRIORITY, PLACED, each=each, order=order, passes=MANY)
        weights = metrics.weights_of(nices)
        assert metrics.ordered_by_weight(seen.shares, weights), (seen.shares, weights)
        assert seen.savings.same_as(Savings(PAGES, PAGES))


@NUKSM
def test_shares_rise_with_the_ratio_of_weights(machine: Machine) -> None:
    nices = ((-20, -11), (-20, -16), (-20, -20), (-16, -20), (-11, -20))
    found = []
    for pair in nices:
        each = tuple(Instance(node, nice=nice) for node, nice in enumerate(pair))
        seen = run(machine, PRIORITY, PLACED, each=each, passes=MANY)
        first, second = metrics.weights_of(pair)
        found.append((first / second, seen.shares[0]))
    assert metrics.monotone(found), found


@NUKSM
@pytest.mark.parametrize("weights", [(1000, 100), (100, 1000)])
def test_shares_are_in_the_order_of_cgroups(machine: Machine, weights: tuple[int, int]) -> None:
    each = tuple(Instance(node, weight=weight) for node, weight in enumerate(weights))
    seen = run(machine, FAIR, {**PLACED, "cgroups": 1}, each=each, passes=MANY)
    assert metrics.ordered_by_weight(seen.shares, weights), (seen.shares, weights)
    assert seen.savings.same_as(Savings(PAGES, PAGES))
    # The same processes where cgroups do not count.
    seen = run(machine, FAIR, PLACED, each=each, passes=MANY)
    assert metrics.spread(seen.shares) <= metrics.FAIR_POINTS


@NUKSM
def test_the_higher_priority_alone_decides(machine: Machine) -> None:
    each = (Instance(0, nice=1), Instance(1))
    for order in ((0, 1), (1, 0)):
        seen = run(machine, STRICT, PLACED, each=each, order=order, passes=MANY)
        assert seen.shares[1] >= 0.95
        assert seen.savings.same_as(Savings(PAGES, PAGES))
    equals = run(machine, STRICT, PLACED, passes=MANY)
    assert metrics.spread(equals.shares) <= metrics.FAIR_POINTS


@NUKSM
@pytest.mark.parametrize("node", [0, 3])
def test_all_on_one_node(machine: Machine, node: int) -> None:
    seen = run(machine, FORCE_NODE, {**SCAN, "node": node}, passes=FEW)
    assert seen.pages == {**dict.fromkeys(range(4), 0), node: PAGES} or seen.pages == {node: PAGES}
    assert seen.shares == [float(node == 0), float(node == 1)]
    assert seen.savings == Savings(PAGES, PAGES)


@NUKSM
def test_merged_pages_stay_on_the_nodes_they_may_lie_on(machine: Machine) -> None:
    seen = run(machine, FAIR, {**PLACED, "on": "2-3"}, passes=MANY)
    assert seen.pages is not None
    assert sum(seen.pages.get(node, 0) for node in (0, 1)) == 0
    assert seen.savings.same_as(Savings(PAGES, PAGES))


@NUKSM
@pytest.mark.parametrize("percent", [0, 10, 50, 100])
def test_copies_give_up_no_more_than_they_may(machine: Machine, percent: int) -> None:
    seen = run(machine, COPIES, {**PLACED, "copies": 2, "percent": percent}, passes=MANY)
    saved = seen.savings
    assert saved.without_copies == pytest.approx(PAGES, abs=PAGES // 100)
    assert saved.given_up <= percent / 100
    different = PAGES - merged_frames(seen)
    assert different == pytest.approx(saved.copies, abs=PAGES // 100)
    if percent == 0:
        assert saved.copies == 0
    if percent == 50:
        assert saved.copies >= 0.9 * 0.5 * PAGES
    if percent == 100:
        assert min(seen.shares) >= 0.95


@NUKSM
def test_pages_follow_a_process_that_moves(machine: Machine) -> None:
    """One reads and moves to another node, one sleeps; the bound is the one that the documentation states."""
    sample = 100
    bound = FAIR.bind({**PLACED, "sample": sample, "hysteresis": 20}, machine.topology)
    words = {"size": SIZE, "rest": 2, "forever": True, "mergeable": "region", "huge": "never"}
    with applied(machine, bound):
        argv = SAMEPAGE.argv(words)
        still = machine.start(["taskset", "-c", "1", *SAMEPAGE.argv({**words, "hot": 0})])
        moving = machine.start(["taskset", "-c", "0", *argv])
        for process in (still, moving):
            process.wait_mark("ready", 60)
        machine.write_file(f"{KSM}/run", b"1\n")
        try:
            for cpu in (0, 2, 3, 0):
                assert machine.run(["taskset", "-apc", str(cpu), str(moving.pid)]).ok
                took, passes = until_pages_are_on(machine, cpu, PAGES * 0.95)
                at_most = metrics.follow_bound(sample / 1000, took, passes, PAGES, 100_000)
                assert took <= at_most, (cpu, took, passes)
        finally:
            for process in (still, moving):
                process.kill(15)
        for process in (still, moving):
            assert process.wait(60).ok


def until_pages_are_on(machine: Machine, node: int, wanted: float) -> tuple[float, int]:
    """Wait until `wanted` merged pages are on a node; return the guest's seconds and the passes that took."""
    began, passes = uptime(machine), ksm.counters(machine)["full_scans"]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        pages = ksm.parse_nodes(machine.read_file(f"{KSM}/numa_pages").decode())
        if pages.get(node, 0) >= wanted:
            return uptime(machine) - began, ksm.counters(machine)["full_scans"] - passes
        time.sleep(0.05)
    raise AssertionError(f"merged pages are not on node {node} after two minutes: {pages}")


def uptime(machine: Machine) -> float:
    return float(machine.read_file("/proc/uptime").split()[0])


@NUKSM
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("smart", [0, 1])
def test_several_threads_find_what_one_finds(machine: Machine, threads: int, smart: int) -> None:
    each = tuple(Instance(node) for node in range(4))
    found = {}
    for number in (1, threads):
        seen = run(
            machine, SCAN_THREADS, {**SCAN, "smart": smart, "threads": number}, each=each, order=range(4), same=75
        )
        found[number] = seen.savings
        # What processes report of KSM is what KSM says, each counter under its own name.
        assert seen.value("ksm_pages_shared") == [seen.savings.shared] * 4
        assert seen.value("ksm_pages_sharing") == [seen.savings.sharing] * 4
        same = np.array([frames[: PAGES * 3 // 4] for frames in seen.frames])
        assert (same == same[0]).all()
        assert len(np.unique(same[0])) == PAGES * 3 // 4
    assert found[threads] == found[1] == Savings(PAGES * 3 // 4, 3 * PAGES * 3 // 4)


@NUKSM
def test_workers_and_merger_are_told_apart(machine: Machine) -> None:
    bound = SCAN_THREADS.bind({**SCAN, "threads": 4}, machine.topology)
    with applied(machine, bound):
        scan = ksm.parse_workers(machine.read_file(f"{KSM}/scan_workers").decode())
        assert len(scan.workers) == 4
        assert [worker.number for worker in scan.workers] == [0, 1, 2, 3]
        assert sorted(worker.node for worker in scan.workers) == [0, 1, 2, 3]


@NUKSM
@pytest.mark.parametrize(
    ("first", "second", "errno_name"),
    [
        (("merge_across_nodes", "0"), ("numa_policy", "fair"), "EINVAL"),
        (("numa_policy", "fair"), ("merge_across_nodes", "0"), "EBUSY"),
        (("numa_force_node", "1"), ("merge_across_nodes", "0"), "EBUSY"),
        (("numa_max_copies", "2"), ("merge_across_nodes", "0"), "EBUSY"),
        (None, ("numa_policy", "unfair"), "EINVAL"),
        (None, ("numa_nodes", "7"), "EINVAL"),
        (None, ("numa_force_node", "9"), "EINVAL"),
        (None, ("numa_copies_percent", "101"), "EINVAL"),
        (None, ("numa_max_copies", "0"), "EINVAL"),
        (None, ("scan_threads", "0"), "EINVAL"),
    ],
)
def test_what_cannot_be_is_refused(
    machine: Machine, first: tuple[str, str] | None, second: tuple[str, str], errno_name: str
) -> None:
    import errno

    before = knobs(machine)
    with applied(machine, OFF):
        try:
            if first:
                machine.write_file(f"{KSM}/{first[0]}", first[1].encode() + b"\n")
            said = len(machine.run(["dmesg"]).stdout)
            with pytest.raises(GuestFileError) as caught:
                machine.write_file(f"{KSM}/{second[0]}", second[1].encode() + b"\n")
            assert caught.value.errno == getattr(errno, errno_name)
            if first:
                assert b"ksm" in machine.run(["dmesg"]).stdout[said:].lower()
        finally:
            if first:
                value = re.sub(r".*\[(\S+)\].*", r"\1", before[first[0]])
                machine.write_file(f"{KSM}/{first[0]}", value.encode() + b"\n")
    assert knobs(machine) == before


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


def trace(machine: Machine, tracing: str) -> str:
    done = machine.run(["cat", f"{tracing}/trace"])
    assert done.ok, done.stderr
    return done.stdout.decode()


@NUKSM
def test_what_happened_is_counted(machine: Machine, stack: ExitStack) -> None:
    def vmstat() -> dict[str, int]:
        pairs = (line.split() for line in machine.read_file("/proc/vmstat").decode().splitlines())
        return {name: int(value) for name, value in pairs if name.startswith("ksm_numa")}

    tracing = "/sys/kernel/tracing"
    event = f"{tracing}/events/ksm/ksm_numa_migrate/enable"
    machine.write_file(event, b"1\n")
    stack.callback(machine.write_file, event, b"0\n")
    machine.write_file(f"{tracing}/trace", b"\n")
    before = vmstat()
    migrated = ksm.counters(machine)["numa_migrated"]
    assert set(before) == {"ksm_numa_sampled", "ksm_numa_migrated", "ksm_numa_migrate_failed", "ksm_numa_copied"}
    each = (Instance(0), Instance(1, params={"hot": 0}))
    # Node 1 is scanned second, so that pages have to move to node 0, where they are read.
    seen = run(machine, FAIR, PLACED, each=each, passes=MANY)
    after = vmstat()
    assert seen.counters["numa_sampled"] > 0
    assert after["ksm_numa_sampled"] > before["ksm_numa_sampled"]
    assert seen.shares[0] >= 0.95
    # Wherever they were when they were merged: some of them have moved, and three accounts of it agree.
    moved = after["ksm_numa_migrated"] - before["ksm_numa_migrated"]
    assert moved > 0
    assert seen.counters["numa_migrated"] - migrated == moved
    traced = re.findall(r"ksm_numa_migrate: pfn \d+ from (\d+) to (\d+) moved 1$", trace(machine, tracing), re.M)
    assert traced == [("1", "0")] * moved


@pytest.mark.slow
def test_passes_cost_what_they_cost(stock: KernelImage, tmp_path: Path) -> None:
    """Counted twice, on two boots: alike, and in the order of what a pass has to do."""
    counts = [
        passes_on(stock, "1M", "merged", 1, 4, log_dir=tmp_path, kept=Kept(tmp_path / str(boot)))[0]
        for boot in range(2)
    ]
    for first, second, *later in counts:
        assert [each.scanned for each in (first, second, *later)] == [512] * 4
        assert (first.sharing, second.sharing) == (0, 256)
        # A checksum of each page; merging each; nothing new.
        assert second.per_page > first.per_page > later[0].per_page > 100
        assert later[0].per_page == pytest.approx(later[1].per_page, rel=0.02)
    for one, other in zip(*counts, strict=True):
        assert one.instructions == pytest.approx(other.instructions, rel=0.005)


@NUKSM
@pytest.mark.slow
def test_four_threads_scan_two_and_a_half_times_the_pages(patched: KernelImage, tmp_path: Path) -> None:
    kept = Kept(tmp_path / "counted")
    cases = [
        Case("32M", "merged", threads, passes_on(patched, "32M", "merged", threads, 4, log_dir=tmp_path, kept=kept)[0])
        for threads in (1, 4)
    ]
    table = Table(patched, patched, cases)
    assert cases[0].passes[-1].sharing == cases[1].passes[-1].sharing == 8192
    assert (table.broken, table.unknown) == ([], []), table.to_markdown()
