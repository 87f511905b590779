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
#: Everything that tells of merged pages is read all the time.
READ = (
    "while :; do cat /sys/kernel/mm/ksm/* /sys/kernel/debug/ksm/* /proc/[0-9]*/ksm_stat /proc/vmstat "
    ">/dev/null 2>&1; done"
)


@pytest.fixture(scope="module")
def watched() -> Iterator[Machine]:
    image = resolve("races", build=True)
    with Machine(image, uniform(4, 1, "768M"), accel="tcg", extra_files=guest_programs()) as machine:
        yield machine


def counters(machine: Machine) -> dict[str, int]:
    """What KCSAN counts: accesses held up (setup_watchpoints), races found, by anybody and anywhere ..."""
    text = machine.read_file("/sys/kernel/debug/kcsan").decode()
    return {
        name: int(value) for name, _, value in (line.partition(": ") for line in text.splitlines()) if value.isdigit()
    }


def test_no_data_race_in_ksm(watched: Machine) -> None:
    before = counters(watched)
    reader = watched.start(["sh", "-c", READ])
    found = stress(watched, SECONDS)
    reader.kill()
    reader.wait(60)
    assert found.wrong == []
    assert found.vmstat["ksm_numa_migrated"] > 0
    assert found.turns.keys() >= {"numa_policy", "numa_max_copies", "scan_threads", "run"}
    after = counters(watched)
    assert after["setup_watchpoints"] - before["setup_watchpoints"] > 100_000, "it has hardly looked"
    # Linux has races that it lives with: a machine on which none shows up cannot show any.
    assert after["data_races"] + after["races_unknown_origin"] > before["data_races"] + before["races_unknown_origin"]
    assert data_races(watched) == []
