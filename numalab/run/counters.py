"""Counters around a run: /proc/vmstat, numastat of each node, and perf where there is a PMU.

A counter that is not there is missing (None, or absent), never 0.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numalab.errors import ExperimentError
from numalab.machine.accel import parse_cpu_list
from numalab.machine.outcome import Completed, GuestFileError

PERF_OUTPUT = "/tmp/numalab-perf.json"
_NODES = "/sys/devices/system/node"
#: Reading it folds in the per-CPU parts, so that /proc/vmstat is exact (admin-guide/sysctl/vm.rst).
_REFRESH = "/proc/sys/vm/stat_refresh"
_PERF_SECONDS = 60.0
_PMU = "/sys/bus/event_source/devices/cpu/type"


class FileHost(Protocol):
    """What counters need of a machine."""

    def read_file(self, path: str) -> bytes:
        """Return a file of the guest."""


class CommandHost(FileHost, Protocol):
    """What finding perf needs of a machine."""

    def run(self, argv: Sequence[str], *, timeout: float | None = None) -> Completed:
        """Run a command to its end."""


@dataclass(frozen=True)
class Reading:
    """Counters at one moment: vmstat by name, numastat by node ("node0") and name."""

    vmstat: dict[str, int]
    numastat: dict[str, dict[str, int]]


def read(machine: FileHost) -> Reading:
    """Read the counters of a machine; a kernel without NUMA has no numastat."""
    with contextlib.suppress(GuestFileError):
        machine.read_file(_REFRESH)
    numastat = {}
    with contextlib.suppress(GuestFileError):
        for number in parse_cpu_list(machine.read_file(f"{_NODES}/online").decode()):
            numastat[f"node{number}"] = parse_pairs(machine.read_file(f"{_NODES}/node{number}/numastat"))
    return Reading(parse_pairs(machine.read_file("/proc/vmstat")), numastat)


def parse_pairs(text: bytes) -> dict[str, int]:
    """Return the counters of a file with a name and a number per line."""
    found = {}
    for line in text.decode(errors="replace").splitlines():
        name, _, number = line.partition(" ")
        if number.strip().lstrip("-").isdigit():
            found[name] = int(number)
    return found


def change(before: Reading, after: Reading) -> dict[str, Any]:
    """Return after - before: for events how many happened, for amounts (nr_*) how they changed."""
    return {
        "vmstat": _minus(before.vmstat, after.vmstat),
        "numastat": {
            node: _minus(before.numastat[node], counters)
            for node, counters in after.numastat.items()
            if node in before.numastat
        },
    }


def _minus(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    return {name: value - before[name] for name, value in after.items() if name in before}


def has_pmu(machine: FileHost) -> bool:
    """Whether the guest's CPUs have a performance monitoring unit."""
    try:
        machine.read_file(_PMU)
    except GuestFileError:
        return False
    return True


def has_perf(machine: CommandHost) -> bool:
    """Whether the guest has a perf that runs."""
    try:
        return bool(machine.run(["perf", "--version"], timeout=_PERF_SECONDS).ok)
    except (GuestFileError, ExperimentError):
        return False


def perf_argv(events: Sequence[str]) -> list[str]:
    """Return what goes in front of a program so that perf counts `events` over its whole run."""
    return ["perf", "stat", "-j", "-o", PERF_OUTPUT, "-e", ",".join(events), "--"]


@dataclass(frozen=True)
class PerfCounts:
    """What perf counted: per event the count (None: missing) and the percentage of time it was counted."""

    counts: dict[str, float | None]
    running: dict[str, float | None]


def no_perf(events: Sequence[str]) -> PerfCounts:
    """Return the counts of a machine that has no PMU or no perf: all missing."""
    return PerfCounts(dict.fromkeys(events), dict.fromkeys(events))


def parse_perf(text: bytes, events: Sequence[str]) -> PerfCounts:
    """Read the output of `perf stat -j`: one JSON object per event, values as strings.

    "<not supported>", "<not counted>" and events perf said nothing about are None.
    """
    found = no_perf(events)
    for line in text.decode(errors="replace").splitlines():
        if not line.startswith("{"):
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        event = str(entry.get("event", ""))
        name = event if event in found.counts else event.split(":", maxsplit=1)[0]
        if name in found.counts:
            found.counts[name] = _number(entry.get("counter-value"))
            found.running[name] = None if found.counts[name] is None else _number(entry.get("pcnt-running"))
    return found


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None
