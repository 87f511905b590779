"""Counters of the kernel and perf, on recorded texts."""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from numalab.errors import ExperimentError, UserError
from numalab.machine.outcome import Completed, GuestFileError
from numalab.measure import counters, perf
from numalab.measure.counters import Counters, parse_status, parse_vmstat
from numalab.run.machines import Live

FIXTURES = Path(__file__).parent.parent / "fixtures"


class Files:
    """A machine that has only these files."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []

    def read_file(self, path: str) -> bytes:
        self.asked.append(path)
        if path not in self.files:
            raise GuestFileError(path, errno.ENOENT)
        return self.files[path]


def recorded(name: str) -> str:
    return (FIXTURES / name).read_text()


def test_vmstat() -> None:
    found = parse_vmstat(recorded("counters/vmstat.txt"))
    assert found["nr_page_table_pages"] > 100
    assert found["pgfault"] > 60_000
    assert "numa_hint_faults" in found
    assert len(found) == len(recorded("counters/vmstat.txt").splitlines())


def test_numastat() -> None:
    assert set(parse_vmstat(recorded("counters/numastat.txt"))) == {
        "numa_hit",
        "numa_miss",
        "numa_foreign",
        "interleave_hit",
        "local_node",
        "other_node",
    }


@pytest.mark.parametrize("text", ["pgfault", "pgfault x", "pgfault 1 2", "pgfault 1.5"])
def test_other_lines_are_refused(text: str) -> None:
    with pytest.raises(ExperimentError, match="pgfault"):
        parse_vmstat(f"nr_free_pages 7\n{text}\n")


def test_change_between_two_readings() -> None:
    before = Counters({"pgfault": 10, "nr_free_pages": 500, "gone": 1}, {0: {"numa_hit": 5}, 1: {"numa_hit": 1}})
    after = Counters({"pgfault": 25, "nr_free_pages": 400, "new": 3}, {0: {"numa_hit": 9}, 2: {"numa_hit": 7}})
    change = after.since(before)
    assert change.vmstat == {"pgfault": 15, "nr_free_pages": -100}
    assert change.numastat == {0: {"numa_hit": 4}}
    assert change.to_json() == {
        "vmstat": {"pgfault": 15, "nr_free_pages": -100},
        "numastat": {"node0": {"numa_hit": 4}},
    }


def test_reading_a_machine() -> None:
    machine = Files(
        {
            "/proc/vmstat": b"pgfault 12\n",
            "/sys/devices/system/node/online": b"0,2-3\n",
            **{f"/sys/devices/system/node/node{n}/numastat": b"numa_hit %d\n" % n for n in (0, 2, 3)},
        }
    )
    found = counters.read(machine)
    assert found.vmstat == {"pgfault": 12}
    assert found.numastat == {n: {"numa_hit": n} for n in (0, 2, 3)}
    assert machine.asked[0] == "/proc/sys/vm/stat_refresh"


def test_a_kernel_without_numa_has_no_numastat() -> None:
    assert counters.read(Files({"/proc/vmstat": b"pgfault 12\n"})).numastat == {}


def test_status() -> None:
    found = parse_status(recorded("counters/status.txt"))
    assert (found.name, found.state, found.threads) == ("toucher", "S", 1)
    assert found.page_tables == 704 * 1024
    assert found.resident is not None
    assert found.hugetlb == 0
    assert found.mems_allowed == (0, 1, 2, 3)
    assert counters.status(Files({"/proc/9/status": recorded("counters/status.txt").encode()}), 9) == found


def test_status_of_a_kernel_thread_lacks_sizes() -> None:
    found = parse_status(recorded("counters/status-kthread.txt"))
    assert found.name == "kthreadd"
    assert found.page_tables is None
    assert found.resident is None


@pytest.mark.parametrize("text", ["", "Name:\tsh\n", "Name:\tsh\nState:\tS\nPid:\tx\nThreads:\t1\n"])
def test_what_is_no_status(text: str) -> None:
    with pytest.raises(ExperimentError, match="status"):
        parse_status(text)


def test_perf_without_a_pmu_is_missing_not_zero() -> None:
    report = perf.parse(recorded("perf/no-pmu.txt"))
    values = report.to_json()
    assert values["cycles:u"] is None
    assert values["instructions:u"] is None
    assert values["page-faults"] == 49
    cycles, _, faults, clock = report.events
    assert cycles.missing == "<not supported>"
    assert cycles.running is None
    assert (faults.running, faults.unit, clock.unit) == (100.0, "", "msec")
    assert clock.value == pytest.approx(0.682082)
    assert report.broken == ()


def test_perf_on_stderr() -> None:
    report = perf.parse(recorded("perf/stderr.txt"))
    assert [each.event for each in report.events] == ["task-clock", "page-faults", "cycles"]


def test_perf_cut_short_keeps_what_is_whole() -> None:
    report = perf.parse(recorded("perf/cut.txt"), ["cycles:u", "page-faults", "task-clock"])
    values = report.to_json()
    assert len(report.broken) == 1
    assert values["task-clock"] is None
    assert [each.missing for each in report.events if each.event == "task-clock"] == ["<not reported>"]


def test_perf_events_with_a_modifier_perf_added() -> None:
    report = perf.parse('{"counter-value" : "5.0", "event" : "cycles:u"}', ["cycles", "instructions"])
    assert report.to_json() == {"cycles:u": 5.0, "instructions": None}


def test_perf_lines_of_other_shapes() -> None:
    text = "\n".join(
        [
            "# started on Sat Nov 21 2026",
            "",
            '{"counter-value" : "12.0", "unit" : "", "event" : "a", "pcnt-running" : 33.10, "metric-value" : -nan}',
            '{"counter-value" : "<not counted>", "unit" : "", "event" : "b", "pcnt-running" : 0.00}',
            '{"metric-value" : "0.5", "metric-unit" : "GHz"}',
            '{"counter-value" : "12,000000", "event" : "locale"}',
            '{"event" : "valueless"}',
            "Killed",
        ]
    )
    report = perf.parse(text)
    a, b = report.events
    assert (a.value, a.running) == (12.0, 33.1)
    assert (b.value, b.missing) == (None, "<not counted>")
    assert len(report.broken) == 3


def test_perf_command() -> None:
    words = perf.argv_prefix("/tmp/perf.json", ["cycles:u", "page-faults"])
    assert words[:4] == ["env", "LC_ALL=C", "perf", "stat"]
    assert words[-3:] == ["-e", "cycles:u,page-faults", "--"]
    assert words[words.index("-o") + 1] == "/tmp/perf.json"
    for bad in ([], [""], ["a,b"], ["a b"]):
        with pytest.raises(UserError):
            perf.argv_prefix("/tmp/perf.json", bad)


class WithPerf:
    """A machine whose perf knows some events, and ends with a syntax error when it is given another among them."""

    def __init__(self, *events: str) -> None:
        self.events, self.asked = events, 0

    def aside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def run(self, argv: list[str]) -> Completed:
        self.asked += 1
        assert argv[-2:] == ["--", "true"]
        given = argv[argv.index("-e") + 1].split(",")
        bad = [each for each in given if each.partition(":")[0] not in self.events]
        return Completed(argv, 129 if bad else 0, None, b"", b"event syntax error" if bad else b"")


def test_events_that_perf_does_not_know_are_left_out() -> None:
    intel, amd = "mem_load_l3_miss_retired.local_dram", "ls_dmnd_fills_from_sys.dram_io_near"
    wanted = ["node-loads", intel, amd, "instructions:u"]
    assert perf.known(WithPerf("node-loads", "instructions", intel), wanted) == ("node-loads", intel, "instructions:u")
    assert perf.known(WithPerf("node-loads", "instructions", amd), wanted) == ("node-loads", amd, "instructions:u")
    assert perf.known(WithPerf(), wanted) == ()
    all_of_them = WithPerf("node-loads", "instructions", intel, amd)
    assert perf.known(all_of_them, wanted) == tuple(wanted)
    assert all_of_them.asked == 1
    report = perf.parse('{"event": "node-loads", "counter-value": "5"}', wanted)
    assert report.to_json() == {"node-loads": 5.0, intel: None, amd: None, "instructions:u": None}, "missing, not 0"


def test_a_machine_is_asked_once_and_one_without_a_pmu_never() -> None:
    machine = WithPerf("cycles")
    live = Live(machine, {}, 1, perf=True)
    assert [live.events(("cycles", "x")) for _ in range(2)] == [("cycles",)] * 2
    assert machine.asked == 3
    assert Live(machine, {}, 1, perf=False).events(("cycles",)) == ()
    assert machine.asked == 3


def test_pmu_probe() -> None:
    assert not perf.has_pmu(Files({}))
    assert perf.has_pmu(Files({"/sys/bus/event_source/devices/cpu/type": b"4\n"}))
    assert perf.has_pmu(Files({"/sys/bus/event_source/devices/cpu_core/type": b"4\n"}))
