"""Six ways of changing merged memory at once, while KSM's settings change: contents stay what they are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nuksm.stress import SWAP, Stressed, stress
from numalab.errors import MissingError
from numalab.machine.session import Machine
from numalab.machine.swap import swap_on

pytestmark = pytest.mark.vm

WAYS = ("merge", "unmerge", "fork", "exit", "migrate", "swap")
TWO_MINUTES, HOUR = 120, 3600


@pytest.fixture
def patched_with_swap(patched4: Machine) -> Iterator[Machine]:
    before = patched4.read_file("/proc/swaps")
    yield patched4
    assert patched4.read_file("/proc/swaps") == before


def all_went_well(found: Stressed, times: int) -> None:
    """Every way was gone often, at least `times` times, pages were merged, and nothing was wrong."""
    assert found.wrong == []
    assert {way: found.counts[f"{way}_count"] for way in WAYS if found.counts[f"{way}_count"] < times} == {}
    assert found.counts["swapped_pages"] > 0
    assert found.vmstat["cow_ksm"] > 0, "no merged page was written to"
    assert found.counts["checked_pages"] > 10_000


@pytest.mark.timeout(900)
@pytest.mark.patch_set("nuksm")
def test_two_minutes_of_six_ways(patched_with_swap: Machine) -> None:
    found = stress(patched_with_swap, TWO_MINUTES)
    all_went_well(found, 20)
    assert found.verified is not None, "this kernel cannot check its merged pages: no CONFIG_KSM_NUMA_DEBUG"
    assert found.verified >= 6
    assert found.turns.keys() >= {"numa_policy", "numa_max_copies", "scan_threads", "run"}
    assert found.vmstat["ksm_numa_sampled"] > 0
    assert found.vmstat["ksm_numa_migrated"] > 0


@pytest.mark.slow
@pytest.mark.timeout(4 * HOUR)
@pytest.mark.patch_set("nuksm")
def test_an_hour_of_six_ways(patched_with_swap: Machine) -> None:
    found = stress(patched_with_swap, HOUR, seed=2)
    all_went_well(found, 1000)
    assert found.verified is not None
    assert found.verified >= 100
    assert found.vmstat["ksm_numa_copied"] > 0


@pytest.mark.slow
def test_stock_ksm_is_stressed_alike(stock4: Machine) -> None:
    """The stress itself: on a kernel that has been used for years nothing is wrong."""
    try:
        found = stress(stock4, 60)
    except MissingError as error:
        pytest.skip(f"no swap: {error}")
    all_went_well(found, 10)
    assert found.verified is None


def test_swap_is_there_and_gone(patched4: Machine) -> None:
    with swap_on(patched4, SWAP):
        [line] = patched4.read_file("/proc/swaps").decode().splitlines()[1:]
        assert line.split()[0] == "/dev/zram0"
        assert int(line.split()[2]) == 128 * 1024 - 4
    assert len(patched4.read_file("/proc/swaps").splitlines()) == 1
