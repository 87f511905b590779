"""A guest with replicated second-level tables survives what happens to virtual machines; its memory is compared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from numalab.kernel.image import KernelImage
from vmitosis.survival.rig import Rig, machine_for
from vmitosis.survival.scenarios import SCENARIOS

#: Of a machine in a machine, both emulated: a busy host may take minutes to boot it.
pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800), pytest.mark.patch_set("vmitosis")]


@pytest.fixture(scope="module")
def rig(patched: KernelImage) -> Iterator[Rig]:
    with machine_for(patched, accel="tcg") as machine:
        made = Rig(machine, patched)
        made.prepare()
        yield made
        assert not machine.complaints


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) for name in SCENARIOS],
)
def test_a_replicated_guest_survives(rig: Rig, name: str) -> None:
    # What is lost raises; here is only what shows that the scenario was one.
    facts = SCENARIOS[name](rig)
    assert facts
    for key in ("compared_bytes", "checked_since", "pages_merged", "collapsed", "bytes_taken"):
        assert facts.get(key, 1) > 0
