"""KSM on a kernel that looks for data races (KCSAN), under the stress in which everything happens at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nuksm.stress import data_races, stress
from numalab.kernel.images import resolve
from numalab.machine.session import Machine
from numalab.machine.topology import uniform
from tests.vm.conftest import guest_programs

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(4 * 3600), pytest.mark.patch_set("nuksm")]

SECONDS = 600.0


@pytest.fixture(scope="module")
def watched() -> Iterator[Machine]:
    image = resolve("races", build=True)
    with Machine(image, uniform(4, 1, "768M"), accel="tcg", extra_files=guest_programs()) as machine:
        yield machine


def watchpoints(machine: Machine) -> int:
    """How many accesses have been held up so far."""
    text = machine.read_file("/sys/kernel/debug/kcsan").decode()
    return int(dict(line.split(": ") for line in text.splitlines() if ": " in line)["setup_watchpoints"])


def test_no_data_race_in_ksm(watched: Machine) -> None:
    before = watchpoints(watched)
    found = stress(watched, SECONDS)
    assert found.wrong == []
    assert found.vmstat["ksm_numa_migrated"] > 0
    assert found.turns.keys() >= {"numa_policy", "numa_max_copies", "scan_threads", "run"}
    assert watchpoints(watched) - before > 100_000, "it has hardly looked"
    assert data_races(watched) == []
