"""Counters: what is missing is missing, never 0."""

from __future__ import annotations

from pathlib import Path

from numalab.machine.outcome import GuestFileError
from numalab.run import counters

FIXTURES = Path(__file__).parent.parent / "fixtures" / "run"


class Files:
    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.read: list[str] = []

    def read_file(self, path: str) -> bytes:
        self.read.append(path)
        if path not in self.files:
            raise GuestFileError(path, 2)
        return self.files[path]


def test_the_perf_of_a_machine_without_a_pmu() -> None:
    """Recorded: perf 6.1 on a machine without a PMU."""
    text = (FIXTURES / "perf-stat-no-pmu.json").read_bytes()
    found = counters.parse_perf(text, ["cycles", "instructions", "dTLB-load-misses", "page-faults", "unheard-of"])
    assert found.counts == {
        "cycles": None,
        "instructions": None,
        "dTLB-load-misses": None,
        "page-faults": 48.0,
        "unheard-of": None,
    }
    assert found.running == {**dict.fromkeys(found.counts), "page-faults": 100.0}


def test_perf_output_that_is_cut_short_or_odd() -> None:
    text = b'{"counter-value" : "5.0", "event" : "cycles:u", "pcnt-running" : 33.3}\n{"counter-value" : "7.0", "ev'
    found = counters.parse_perf(text, ["cycles", "instructions"])
    assert found.counts == {"cycles": 5.0, "instructions": None}
    assert found.running == {"cycles": 33.3, "instructions": None}


def test_readings_and_their_change() -> None:
    base = "/sys/devices/system/node"
    files = {
        "/proc/vmstat": b"nr_free_pages 10\npgfault 5\n",
        f"{base}/online": b"0,2\n",
        f"{base}/node0/numastat": b"numa_hit 1\nnuma_miss 0\n",
        f"{base}/node2/numastat": b"numa_hit 4\nnuma_miss 0\n",
    }
    machine = Files(files)
    first = counters.read(machine)
    assert machine.read[0] == "/proc/sys/vm/stat_refresh"
    files["/proc/vmstat"] = b"nr_free_pages 7\npgfault 9\nnew_counter 3\n"
    files[f"{base}/node2/numastat"] = b"numa_hit 6\nnuma_miss 0\n"
    assert counters.change(first, counters.read(machine)) == {
        "vmstat": {"nr_free_pages": -3, "pgfault": 4},
        "numastat": {"node0": {"numa_hit": 0, "numa_miss": 0}, "node2": {"numa_hit": 2, "numa_miss": 0}},
    }


def test_a_kernel_without_numa() -> None:
    assert counters.read(Files({"/proc/vmstat": b"pgfault 5\n"})).numastat == {}


def test_a_pmu_is_seen_in_sysfs() -> None:
    assert not counters.has_pmu(Files({}))
    assert counters.has_pmu(Files({"/sys/bus/event_source/devices/cpu/type": b"4\n"}))
