"""The long tests, `make test-full` only: hours in emulation.

Each keeps its results below results/ or in the cache and goes on with what is not done yet, so that they can be
interrupted at any moment, and repeated at next to no cost.
"""

from __future__ import annotations

import pytest

from numalab.kernel import each
from numalab.kernel.images import resolve
from numalab.machine import accel
from numalab.paths import ROOT
from numalab.run import check, runner
from numalab.run.lab import default_lab
from numalab.run.runner import Options, describe
from numalab.run.system import find_experiment, systems
from numalab.selftest import matrix
from numalab.selftest.matrix import Point, Rig
from numalab.selftest.sources import built_programs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

MATRIX = matrix.load()
RESULTS = ROOT / "results"
#: `make quickstart` is the other one.
EXPERIMENTS = [name for name in systems()["mitosis"].experiments() if name != "mitosis/quickstart"]


def test_each_patch_builds_and_boots() -> None:
    found = list(each.each(each.boot_on_four_nodes()))
    assert found
    assert [
        f"{tried.patch}: {tried.state}: {tried.detail}" for tried in found if tried.state is not each.State.OK
    ] == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_of_the_papers(name: str) -> None:
    """All its cells, once each where it does not say how noisy it is itself: placement and counts are exact."""
    lab = default_lab()
    experiment = check.load(find_experiment(name), lab)
    for kernel in experiment.kernels:
        resolve(kernel, build=True)
    repeats = None if name == "mitosis/placement" else 1
    wanted = Options(given=name, out=RESULTS / name.partition("/")[2], retry_failed=True, repeats=repeats)
    summary = runner.run(experiment, lab, wanted)
    assert len(summary.done) + len(summary.skipped) == len(list(experiment.kept())) * (repeats or experiment.repeats)
    assert [f"{result['cell']['id']}: {describe(result)}" for result in summary.failed] == []
    assert summary.left == 0
    assert [result["complaints"] for result in [*summary.done, *summary.skipped] if result["complaints"]] == []


@pytest.fixture(scope="module")
def rig() -> Rig:
    built = built_programs()
    assert built.failed == {}
    return Rig(resolve(MATRIX.kernel, build=True), resolve(MATRIX.against, build=True), built, accel.choose("auto"))


@pytest.mark.parametrize("point", matrix.points(MATRIX), ids=lambda point: point.name)
def test_the_kernels_own_tests(point: Point, rig: Rig) -> None:
    outcome = matrix.run(point, rig, RESULTS / "selftests")
    assert outcome.lost == ""
    blamed = [each for each in outcome.differences if each.blames]
    assert [f"{each.judgement}: {each.name}: {each.explanation}" for each in blamed] == []
