"""`make bench`: the laboratory's own speed, as pyperf JSON, beside what is promised.

The numbers are wall times of the laboratory's own work on this host. None is a speed of a system
under study.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyperf

from numalab.kernel.images import resolve
from numalab.machine.outcome import Mark
from numalab.machine.session import Machine
from numalab.machine.topology import uniform
from numalab.measure.benchmark import SyntheticTree, parse_rate, snapshot_seconds
from numalab.measure.placement import detach
from workloads.build import binaries

NUMALAB = [sys.executable, "-m", "numalab"]


@dataclass(frozen=True)
class Promise:
    """A bound on a benchmark's median: at most, or at least, `bound` of `unit`."""

    bound: float
    at_most: bool = True

    def kept(self, value: float) -> bool:
        """Whether `value` is within the bound."""
        return value <= self.bound if self.at_most else value >= self.bound


def boot_to_answer() -> float:
    """Seconds from starting the emulated 4-node machine to its first command's answer."""
    kernel = resolve("patched")
    begin = time.perf_counter()
    with Machine(kernel, uniform(4, 1, "512M"), accel="tcg") as machine:
        machine.run(["true"], check=True)
        return time.perf_counter() - begin


def snapshots(samples: int) -> list[float]:
    """Seconds of a snapshot of a process with 1 GiB in 4K pages, attaching to the machine included."""
    values: list[float] = []
    files = {"/bin/gups": binaries()["gups"]}
    argv = ["gups", "--size", "1G", "--updates", "1000", "--memory", "interleave:0-3", "--huge", "never"]

    def measure(mark: Mark, machine: Machine) -> None:
        if mark.name == "ready":
            values.extend(snapshot_seconds(machine, process.pid, attach=True) for _ in range(samples))

    with Machine(resolve("patched"), uniform(4, 1, "512M"), accel="tcg", extra_files=files) as machine:
        process = machine.start(argv, on_mark=measure)
        process.wait(timeout=300, check=True)
        detach(machine)
    return values


def command_seconds(*argv: str) -> float:
    """Seconds of wall time of a command of ours."""
    begin = time.perf_counter()
    subprocess.run([*NUMALAB, *argv], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def cached_run(samples: int) -> list[float]:
    """Seconds of `numalab run` when every cell is done."""
    with tempfile.TemporaryDirectory() as top:
        argv = ["run", "mitosis/quickstart", "--out", str(Path(top, "out")), "--resume", "--repeat", "1"]
        argv += ["--only", "workload=gups", "--only", "policy=first-touch"]
        command_seconds(*argv)
        return [command_seconds(*argv) for _ in range(samples)]


def main() -> int:
    """Run all benchmarks, write pyperf JSON, print the table; 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("bench.json"))
    parser.add_argument("--samples", type=int, default=5)
    options = parser.parse_args()
    n = options.samples

    def repeat(work: Callable[[], float]) -> list[float]:
        return [work() for _ in range(n)]

    tree = SyntheticTree(1 << 14)

    def parsed() -> float:
        return parse_rate(tree)

    cases: list[tuple[str, str, Callable[[], list[float]], Promise]] = [
        ("boot to first answer, 4 nodes", "second", lambda: repeat(boot_to_answer), Promise(5.0)),
        ("snapshot of 1 GiB in 4K pages", "second", lambda: snapshots(n), Promise(1.0)),
        (
            "entries parsed per second",
            "integer",
            lambda: repeat(lambda: parse_rate(tree)),
            Promise(50e6, at_most=False),
        ),
        ("numalab --help", "second", lambda: repeat(lambda: command_seconds("--help")), Promise(0.2)),
        ("numalab run, all cells done", "second", lambda: cached_run(n), Promise(1.0)),
    ]
    benchmarks: list[pyperf.Benchmark] = []
    broken = 0
    for name, unit, measure, promise in cases:
        values = measure()
        metadata = {"name": name, "unit": unit, "promise": promise.bound, "description": "wall time of the laboratory"}
        runs = [pyperf.Run([float(value)], metadata=metadata, collect_metadata=not benchmarks) for value in values]
        benchmarks.append(pyperf.Benchmark(runs))
        median = float(np.median(values))
        kept = promise.kept(median)
        broken += not kept
        relation = "at most" if promise.at_most else "at least"
        print(
            f"{name:40} {median:14.4g}   promised {relation} {promise.bound:g}   {'ok' if kept else 'BROKEN'}",
            flush=True,
        )
    options.output.unlink(missing_ok=True)
    pyperf.BenchmarkSuite(benchmarks).dump(str(options.output))
    print(f"written to {options.output} (pyperf show, pyperf compare_to)")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
