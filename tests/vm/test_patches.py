"""The patches' own self tests, on the patched kernel: four and five levels, with and without page-table isolation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from numalab.features import KNOWN, survey
from numalab.kernel.image import KernelImage
from numalab.machine.session import Machine
from numalab.machine.topology import Topology, uniform
from numalab.selftest import catalogue, runner
from numalab.selftest.sources import built_programs
from numalab.selftest.verdict import Verdict
from tests.vm.kernel_programs import run_in
from tests.vm.two_level_guests import BY_NODE

#: A busy host may take long for the programs of a group.
pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

#: By group, what may be skipped, and why. What is skipped beside these fails, and so does what is here and runs.
LACKS = {
    "pgtables": {
        "hugetlb, PUD size": "the machine of the tests has no 1 GB pages",
        "hugetlb, PROT_NONE, PUD size": "as above",
        "swapped out": "it has no swap",
    },
    # Programs that are skipped as a whole are in NOT_HERE.
    "pgrepl": {},
    "domains": {},
    "numa-mmu": {"allocation_failure": "fault injection is in the debug flavour only"},
    "ksm-numa": {"isolated CPUs: there are none, or one CPU": "the tests boot without isolcpus="},
}
#: Skipped or not, as chance will have it: in memory this small most blocks hold what cannot move.
MAY_LACK = {"ksm-numa": ("memory offline: no block could be",)}


def unexpected_skips(group: str, results: Sequence[runner.Result]) -> list[str]:
    """Cases that are skipped and are not to be, and those that were expected to be and are not."""
    skipped = {f"{result.program}: {name}": name for result in results for name in skips_of(result)}
    known = LACKS[group]
    allowed = (*known, *MAY_LACK.get(group, ()))
    wrong = [where for where, name in skipped.items() if not name.startswith(allowed)]
    idle = [lack for lack in known if not any(name.startswith(lack) for name in skipped.values())]
    return [*wrong, *(f"no longer skipped: {lack}" for lack in idle)]


def skips_of(result: runner.Result) -> list[str]:
    """Names of the cases that a program skipped; one that was skipped as a whole has none."""
    if result.verdict is Verdict.SKIP:
        return []
    return [name for name, (verdict, _) in result.tests.items() if verdict is Verdict.SKIP]


def said(results: Sequence[runner.Result]) -> str:
    """All that the programs that did not pass have said."""
    return "\n".join(
        f"{each}\n{each.stdout.decode(errors='replace')}{each.stderr.decode(errors='replace')}"
        for each in results
        if each.verdict is not Verdict.PASS
    )


@contextmanager
def self_tests_run(
    kernel: KernelImage, name: str, shape: Topology, append: str, log_dir: Path, only: Sequence[str] = ()
) -> Iterator[tuple[Machine, list[runner.Result]]]:
    """A machine in which the programs of a group (those in `only`, or all) have run, and what they said."""
    built = built_programs()
    group = catalogue.group(name)
    programs = [program for program in group.programs if not only or program.name in only]
    with Machine(
        kernel, shape, accel="tcg", nested=group.nested, share=built.top, log_dir=log_dir, append=append
    ) as machine:
        yield machine, run_in(machine, group, programs, built)


@pytest.mark.parametrize(("levels", "pti"), [(4, "off"), (5, "on")])
def test_the_patches_own_tests_pass(patched: KernelImage, tmp_path: Path, levels: int, pti: str) -> None:
    shape = uniform(4, 1, "512M", paging_levels=levels)
    append = f"pti={pti} transparent_hugepage=madvise"
    with self_tests_run(patched, "pgtables", shape, append, tmp_path) as (machine, results):
        # A CPU that goes offline leaves its page table for the kernel's own, and comes back to it.
        for state in (b"0", b"1"):
            machine.write_file("/sys/devices/system/cpu/cpu3/online", state)
            assert machine.read_file("/sys/devices/system/cpu/online").strip() == (b"0-2" if state == b"0" else b"0-3")
        assert machine.run(["taskset", "8", "true"]).ok
        brought = {f.name: has for f, has in survey(machine, [f for f in KNOWN if "common" in f.brought_by]).items()}
    assert brought
    assert all(brought.values()), brought
    assert not machine.complaints
    for result in results:
        assert result.verdict is Verdict.PASS, result
        assert len(result.tests) - len(skips_of(result)) >= 15
    assert unexpected_skips("pgtables", results) == []


#: Fault injection is in the debug flavour only.
NOT_HERE = {"pgtable_repl_fault_inject"}


@pytest.mark.parametrize(("levels", "pti"), [(4, "on"), pytest.param(5, "off", marks=pytest.mark.slow)])
def test_replicas_say_what_the_page_tables_say(patched: KernelImage, tmp_path: Path, levels: int, pti: str) -> None:
    shape = uniform(4, 1, "512M", paging_levels=levels)
    with self_tests_run(patched, "pgrepl", shape, f"pti={pti}", tmp_path) as (machine, results):
        pass
    assert not machine.complaints
    assert len(results) == len(catalogue.group("pgrepl").programs)
    for result in results:
        assert result.verdict is (Verdict.SKIP if result.program in NOT_HERE else Verdict.PASS), result
    assert unexpected_skips("pgrepl", results) == []


#: What a program sees, not where its tables are: true of any domains.
ONE_NODE_LACKS = [("pgtable_repl_features", "lazy: move_pages"), ("pgtable_repl_features", "eager: move_pages")]
SEEN_BY_PROGRAMS = ("access", "coherence", "dirty", "features", "fork", "futex", "storm")


def test_one_node_with_domains_by_cpu_parity(patched: KernelImage, tmp_path: Path) -> None:
    only = [f"pgtable_repl_{name}" for name in SEEN_BY_PROGRAMS]
    shape = uniform(1, 4, "2G")
    with self_tests_run(patched, "pgrepl", shape, "pgtable_repl=force,parity", tmp_path, only) as (machine, results):
        counts = dict(line.split() for line in machine.read_file("/proc/vmstat").decode().splitlines())
    assert not machine.complaints
    assert [(r.program, r.verdict) for r in results] == [(name, Verdict.PASS) for name in only]
    assert [(name, case) for r in results for name in [r.program] for case in skips_of(r)] == ONE_NODE_LACKS
    # Both domains are on the one node: replicas must have been used, and none be a pass-through.
    assert int(counts["pgrepl_fill"]) > 1000
    assert int(counts["pgrepl_passthru"]) == 0


@pytest.mark.parametrize(
    ("group", "append"),
    [
        pytest.param("domains", "numa=off", marks=pytest.mark.patch_set("vmitosis")),
        # Threads move every millisecond in guests of an emulated machine.
        pytest.param("numa-mmu", "", marks=[pytest.mark.patch_set("vmitosis"), BY_NODE]),
        pytest.param("ksm-numa", "", marks=pytest.mark.patch_set("nuksm")),
    ],
)
def test_the_other_sets_own_tests_pass(patched: KernelImage, tmp_path: Path, group: str, append: str) -> None:
    with self_tests_run(patched, group, uniform(4, 1, "512M"), append, tmp_path) as (machine, results):
        pass
    assert not machine.complaints
    assert [(result.program, result.verdict) for result in results] == [
        (program.name, Verdict.PASS) for program in catalogue.group(group).programs
    ], said(results)
    assert unexpected_skips(group, results) == []
