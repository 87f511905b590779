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
from numalab.machine.session import Machine
from numalab.machine.topology import uniform
from numalab.measure import pagetable, take
from numalab.measure.nodes import NodeMap, Span
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
    """Seconds of a snapshot of a process with 1 GiB in 4K pages; the first one attaches, too."""
    values: list[float] = []
    files = {"/bin/gups": binaries()["gups"]}
    with Machine(resolve("patched"), uniform(4, 1, "512M"), accel="tcg", extra_files=files) as machine:
        argv = ["gups", "--size", "1G", "--updates", "1000", "--memory", "interleave:0-3", "--huge", "never"]
        process = machine.start(argv)
        process.wait_mark("init")

        def measure() -> None:
            for _ in range(samples):
                begin = time.perf_counter()
                snapshot = take.take(machine, [process.pid])
                values.append(time.perf_counter() - begin)
                assert snapshot.processes[0].leaf.sum() >= 1 << 18, "a GiB has 2^18 leaf entries"

        process._on_mark = lambda mark, _: measure() if mark.name == "ready" else None
        process.wait(timeout=300, check=True)
        take.detach(machine)
    return values


def parse_rate(entries: int = 1 << 23) -> float:
    """Page-table entries parsed per second, by the walk itself over synthetic full tables."""
    tables = entries // 512
    nodes = NodeMap([Span(0, 1 << 24, 0), Span(1 << 24, 1 << 25, 1)])
    rng = np.random.default_rng(1)
    base = 1 << 20
    # A 4-level tree: PGD -> PUDs -> PMDs -> full PTE tables, pages scattered over both nodes.
    pmds = -(-tables // 512)
    puds = -(-pmds // 512)
    frames = {0: base, 1: base + 1, 2: base + 1 + puds, 3: base + 1 + puds + pmds}
    memory = np.zeros((1 + puds + pmds + tables, 512), np.uint64)
    flags = np.uint64(0x67)

    def link(first_parent: int, first_child: int, count: int) -> None:
        row, column = np.divmod(np.arange(count), 512)
        memory[first_parent - base + row, column] = (np.arange(count, dtype=np.uint64) + np.uint64(first_child)) << np.uint64(12) | flags

    link(frames[0], frames[1], puds)
    link(frames[1], frames[2], pmds)
    link(frames[2], frames[3], tables)
    data = rng.integers(1, 1 << 25, (tables, 512), dtype=np.uint64)
    memory[frames[3] - base :] = data << np.uint64(12) | flags
    begin = time.perf_counter()
    found = pagetable.walk([base], 4, lambda pfns: memory[np.asarray(pfns) - base], nodes, huge_zero_frame=-1)
    seconds = time.perf_counter() - begin
    assert found.frame.size == 1 + puds + pmds + tables
    return memory.size / seconds


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
    repeat: Callable[[Callable[[], float]], list[float]] = lambda work: [work() for _ in range(n)]  # noqa: E731
    cases: list[tuple[str, str, Callable[[], list[float]], Promise]] = [
        ("boot to first answer, 4 nodes", "second", lambda: repeat(boot_to_answer), Promise(5.0)),
        ("snapshot of 1 GiB in 4K pages", "second", lambda: snapshots(n), Promise(1.0)),
        ("page-table entries parsed per second", "integer", lambda: repeat(parse_rate), Promise(50e6, at_most=False)),
        ("numalab --help", "second", lambda: repeat(lambda: command_seconds("--help")), Promise(0.2)),
        ("numalab run, all cells done", "second", lambda: cached_run(n), Promise(1.0)),
    ]
    benchmarks, broken = [], 0
    for name, unit, measure, promise in cases:
        values = measure()
        metadata = {"name": name, "unit": unit, "promise": promise.bound, "description": "wall time of the laboratory"}
        runs = [pyperf.Run([float(value)], metadata=metadata, collect_metadata=not benchmarks) for value in values]
        benchmarks.append(pyperf.Benchmark(runs))
        median = float(np.median(values))
        kept = promise.kept(median)
        broken += not kept
        relation = "at most" if promise.at_most else "at least"
        print(f"{name:40} {median:14.4g}   promised {relation} {promise.bound:g}   {'ok' if kept else 'BROKEN'}", flush=True)
    options.output.unlink(missing_ok=True)
    pyperf.BenchmarkSuite(benchmarks).dump(str(options.output))
    print(f"written to {options.output} (pyperf show, pyperf compare_to)")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
