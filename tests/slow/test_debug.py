"""The debug flavour: KASAN, lockdep, page-table checks and fault injection, while replicas are used by everybody.

Three boots, each shared by all that is run in it: replication there and never asked for, forced on every process
lazily, and eagerly. Hours in emulation, and nothing is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pytest

from numalab.kernel import series
from numalab.kernel.images import resolve
from numalab.machine.session import Machine
from numalab.machine.topology import uniform
from numalab.selftest import catalogue, runner
from numalab.selftest.build import Programs
from numalab.selftest.sources import built_programs
from numalab.selftest.verdict import Verdict
from tests.vm.kernel_programs import kunit_results, run_in

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(0), pytest.mark.patch_set("mitosis")]

KERNEL = "debug"
#: A debug kernel is three to ten times slower than the one that the time-outs of the groups are made for.
PATIENCE = 10.0
OFF, LAZY, EAGER = "", "pgtable_repl=force", "pgtable_repl=force,eager"

#: It counts what the whole machine has, which says nothing of one process when all have replicas.
SKIPPED_IF_FORCED = {("pgtable_repl_memory", "others have replicas, too")}
#: Programs of the other groups; of mm what fits into the machine and takes minutes.
GROUPS: dict[str, Sequence[str]] = {
    "futex": (),
    "proc": (),
    "x86": (),
    "mm": (
        "map_fixed_noreplace",
        "map_populate",
        "madv_populate",
        "mkdirty",
        "mremap_dontunmap",
        "gup_test -u",
        "hugepage-mremap",
        "hugetlb-madvise",
        "hugetlb-soft-offline",
        "uffd-stress anon 20 16",
        "mrelease_test",
        "ksm_tests -M -p 10",
        "soft-dirty",
        "pagemap_ioctl",
        "migration",
    ),
}
#: Not run: it takes an emulated machine with it, also under Debian's kernel (QEMU's SYSRET).
NOT_RUN = {"sysret_ss_attrs_64"}
#: Run for what the kernel says meanwhile; they fail on Debian's kernel too, and the matrix compares the two.
EITHER_WAY = {
    "futex_wait": "at times, on a busy host",
    "futex_requeue": "at times, on a busy host",
    "mov_ss_trap_64": "always, in emulation",
    "test_shadow_stack_64": "always, where there are none",
}


@pytest.fixture(scope="module")
def built() -> Programs:
    return built_programs()


@pytest.fixture(scope="module", params=[OFF, LAZY, EAGER], ids=["off", "lazy", "eager"])
def machine(request: pytest.FixtureRequest, built: Programs) -> Iterator[Machine]:
    image = resolve(KERNEL, build=True)
    shape = uniform(4, 1, "1G")
    with Machine(
        image, shape, accel="tcg", append=request.param, share=built.top, boot_timeout=900, hang_after=600
    ) as machine:
        yield machine


def ran(machine: Machine, built: Programs, name: str, only: Sequence[str] = ()) -> list[runner.Result]:
    """What the programs of a group came to, which have not made the kernel complain."""
    group = catalogue.group(name)
    programs = [program for program in group.select(tuple(only)) if program.name not in NOT_RUN]
    results = run_in(machine, group, programs, built, PATIENCE)
    assert [(result.program, line) for result in results for line in result.complaints] == []
    return results


def forced(machine: Machine) -> bool:
    """Whether every process has replicas."""
    return "pgtable_repl=force" in machine.spec.cmdline


def tables_of_replicas(machine: Machine) -> int:
    """How many there have been so far."""
    counts = dict(line.split() for line in machine.read_file("/proc/vmstat").decode().splitlines())
    return int(counts["pgrepl_table_alloc"])


def cases_of_the_series() -> set[str]:
    """Names of all KUnit cases that our patches add."""
    text = "".join(patch.path.read_text() for patch in series.read().patches)
    return set(re.findall(r"^\+\s*KUNIT_CASE\w*\((\w+)", text, re.MULTILINE))


def test_every_kunit_case_passes(machine: Machine) -> None:
    found: dict[str, Verdict] = {}
    for suite, output in kunit_results(machine).items():
        assert output.problems == (), (suite, output.problems)
        assert output.verdict is Verdict.PASS, (suite, output.leaves())
        found |= {name.rpartition("/")[2]: verdict for name, (verdict, _) in output.leaves().items()}
    assert {name: verdict for name, verdict in found.items() if verdict is not Verdict.PASS} == {}
    promised = cases_of_the_series()
    assert len(promised) > 20
    assert promised - found.keys() == set()


def test_what_programs_see_of_replicas(machine: Machine, built: Programs) -> None:
    results = ran(machine, built, "pgrepl")
    assert "pgtable_repl_fault_inject" in [result.program for result in results]
    assert [(r.program, r.verdict, r.reason) for r in results if r.verdict is not Verdict.PASS] == []
    skipped = {(r.program, name) for r in results for name, (verdict, _) in r.tests.items() if verdict is Verdict.SKIP}
    assert skipped == (SKIPPED_IF_FORCED if forced(machine) else set())


@pytest.mark.parametrize("group", GROUPS)
def test_the_kernels_own_tests(machine: Machine, built: Programs, group: str) -> None:
    before = tables_of_replicas(machine)
    results = ran(machine, built, group, GROUPS[group])
    assert [(r.program, r.reason) for r in results if r.verdict.bad and r.program not in EITHER_WAY] == []
    assert any(r.verdict is Verdict.PASS for r in results)
    made = tables_of_replicas(machine) - before
    assert made > 100 if forced(machine) else made == 0


def test_the_kernel_has_not_complained(machine: Machine) -> None:
    """Last of each machine: all that was run in it."""
    assert machine.complaints == []
