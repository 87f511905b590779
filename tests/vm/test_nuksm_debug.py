"""KSM on the debug kernel (KASAN, lockdep, checks of lists and reference counts): nothing to complain of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nuksm.stress import stress
from numalab.kernel.images import resolve
from numalab.machine.session import Machine
from numalab.machine.topology import uniform
from numalab.selftest import catalogue
from numalab.selftest.build import Programs
from numalab.selftest.sources import built_programs
from numalab.selftest.verdict import Verdict
from tests.vm.conftest import guest_programs
from tests.vm.kernel_programs import kunit_results, run_in

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(6 * 3600), pytest.mark.patch_set("nuksm")]

SECONDS = 120.0
#: Of every time-out: this kernel is some times slower.
PATIENCE = 8.0
KSM_PROGRAMS = ("ksm_tests", "ksm_functional_tests")


@pytest.fixture(scope="module")
def built() -> Programs:
    return built_programs()


@pytest.fixture(scope="module")
def _debugged(built: Programs) -> Iterator[Machine]:
    image = resolve("debug", build=True)
    with Machine(
        image, uniform(4, 1, "1G"), accel="tcg", share=built.top, extra_files=guest_programs(), boot_timeout=900.0
    ) as machine:
        yield machine


@pytest.fixture
def debugged(_debugged: Machine) -> Iterator[Machine]:
    """Whatever is done to it, it does not complain of itself, and goes on looking."""
    watches(_debugged)
    yield _debugged
    assert _debugged.complaints == []
    watches(_debugged)


def watches(machine: Machine) -> None:
    """Lockdep switches itself off when it has found something, or run out of memory for what it knows."""
    stats = machine.read_file("/proc/lockdep_stats").decode()
    assert [line.split()[-1] for line in stats.splitlines() if "debug_locks:" in line] == ["1"]
    assert b"KernelAddressSanitizer initialized" in machine.console.read_bytes()


def test_kunit(debugged: Machine) -> None:
    """They have run when it booted."""
    suites = {name: said for name, said in kunit_results(debugged).items() if "ksm" in name}
    assert list(suites) == ["ksm_numa"]
    for said in suites.values():
        assert said.problems == ()
        leaves = said.leaves()
        assert len(leaves) >= 5
        assert {name: verdict for name, (verdict, _) in leaves.items() if verdict is not Verdict.PASS} == {}


@pytest.mark.parametrize("name", ["ksm-numa", "mm"])
def test_the_kernels_own_tests_of_ksm(debugged: Machine, built: Programs, name: str) -> None:
    """Whether each passes is held against a baseline elsewhere; here it has to end, and nothing be complained of."""
    group = catalogue.group(name)
    programs = [each for each in group.programs if name == "ksm-numa" or each.argv[0] in KSM_PROGRAMS]
    assert len(programs) == (2 if name == "ksm-numa" else 7)
    results = run_in(debugged, group, programs, built, PATIENCE)
    for result in results:
        print(f"{result.verdict.value}: {result.program} [{len(result.tests)} tests] {result.reason}")
    assert [result.program for result in results] == [each.name for each in programs]
    ended = (Verdict.PASS, Verdict.FAIL, Verdict.SKIP, Verdict.XFAIL)
    assert {result.program: result.reason for result in results if result.verdict not in ended} == {}
    assert {result.program: result.complaints for result in results if result.complaints} == {}


def test_stress(debugged: Machine) -> None:
    found = stress(debugged, SECONDS)
    assert found.wrong == []
    assert found.verified, "it has not checked its merged pages"
    assert found.vmstat["ksm_numa_migrated"] > 0
    assert found.turns.keys() >= {"numa_policy", "numa_max_copies", "scan_threads", "run"}
