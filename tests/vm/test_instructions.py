"""Counting instructions: the counter counts, it is the same each time and on each boot, and what memops makes of it.

On Debian's kernel, which needs no build; nothing here depends on patches.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from numalab.kernel.image import KernelImage
from numalab.kinds import Kind
from numalab.machine.session import Machine
from numalab.machine.topology import uniform
from tests.vm.conftest import guest_programs
from workloads import catalogue

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]  # one thread of the host, however busy that is

SOURCE = Path(__file__).parent.parent / "fixtures" / "counter.c"
MEMOPS = catalogue.get("memops")
OPS = ["mmap", "mprotect", "munmap", "fault", "forkexit"]


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = tmp_path_factory.mktemp("counter") / "counter"
    subprocess.run(["gcc", "-O2", "-static", "-Wall", "-Werror", "-o", binary, SOURCE], check=True)
    return binary


def machine_that_counts(stock: KernelImage, counter: Path) -> Machine:
    files = {**guest_programs(), "/bin/counter": counter}
    return Machine(stock, uniform(4, 1, "512M"), count_instructions=True, extra_files=files)


@pytest.fixture(scope="module")
def _counting(stock: KernelImage, counter: Path) -> Iterator[Machine]:
    with machine_that_counts(stock, counter) as machine:
        quieten(machine)
        yield machine


@pytest.fixture
def counting(_counting: Machine) -> Iterator[Machine]:
    yield _counting
    assert not _counting.complaints


def quieten(machine: Machine) -> None:
    machine.write_file("/proc/sys/kernel/numa_balancing", b"0")


def loops(machine: Machine, *turns: int) -> list[int]:
    done = machine.run(["taskset", "1", "counter", *map(str, turns)], check=True)
    return [int(word) for word in done.stdout.split()]


def count(machine: Machine, **params: Any) -> dict[str, float]:
    """Metrics of a run of memops on CPU 0, one page size."""
    given = {"count": True, "ops": OPS, "cpus": "0", "huge": "never", **params}
    done = machine.run(MEMOPS.argv(given), check=True)
    samples = MEMOPS.samples(done.stdout, machine.accel)
    kinds = {sample["kind"] for sample in samples if "_instructions_" in sample["metric"]}
    assert kinds == {Kind.COUNTED.value}
    return {sample["metric"]: sample["value"] for sample in samples}


def test_a_loop_counts_exactly(counting: Machine) -> None:
    turns = (0, 1, 2, 10, 1000, 12_345, 100_000, 1_000_000)
    # Timer interrupts, and turns of other CPUs, come on top (docs/instructions.md): nothing is ever missing.
    least = [min(counts) for counts in zip(*(loops(counting, *turns) for _ in range(5)), strict=True)]
    assert least == [2 * number for number in turns]


def test_the_same_each_time_and_on_each_boot(counting: Machine, stock: KernelImage, counter: Path) -> None:
    params: dict[str, Any] = {"size": "8M", "iterations": 20}
    first = count(counting, **params)
    with machine_that_counts(stock, counter) as machine:
        quieten(machine)
        second = count(machine, **params)
        small = count(machine, size="4K", iterations=100)
    assert first["mprotect_count"] == 20
    for found in (first, second):
        assert found["mprotect_instructions_median"] / found["mprotect_instructions_min"] < 1.001
    assert second["mprotect_instructions_min"] == pytest.approx(first["mprotect_instructions_min"], rel=0.0001)
    for op in ("mmap", "munmap", "fault"):
        metric = f"{op}_instructions_median"
        assert second[metric] == pytest.approx(first[metric], rel=0.005), op
    again = count(counting, size="4K", iterations=100)
    for op in ("mmap", "mprotect", "munmap", "fault"):
        metric = f"{op}_instructions_median"
        assert again[metric] == pytest.approx(small[metric], rel=0.001), op
    assert again["forkexit_instructions_median"] == pytest.approx(small["forkexit_instructions_median"], rel=0.02)


@pytest.mark.parametrize("mapping", ["private", "shared"])
def test_every_node_finds_what_was_written(counting: Machine, mapping: str) -> None:
    """The program fails when a page is not what it should be; what it counts grows with the pages."""
    small, large = (count(counting, size=size, mapping=mapping, iterations=5, touchers="all") for size in ("1M", "4M"))
    for op in ("mmap", "mprotect", "munmap", "fault"):
        assert large[f"{op}_instructions_median"] > 2 * small[f"{op}_instructions_median"], op
    assert large["pages"] == 1024
    assert large["fault_instructions_per_page_min"] == pytest.approx(large["fault_instructions_min"] / 1024)
    # Page tables are copied for private memory only.
    copied = large["forkexit_instructions_median"] - small["forkexit_instructions_median"]
    assert (copied > 100_000) is (mapping == "private")


def test_a_machine_that_does_not_count_is_refused(stock4: Machine) -> None:
    done = stock4.run(MEMOPS.argv({"count": True, "size": "64K"}), timeout=60)
    assert done.status == 1
    assert b"does not count instructions" in done.stderr
    assert b"numalab boot --count-instructions" in done.stderr
