"""Experiments on real machines: from the file to results about real page tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mitosis.policies import ALLOC_NODE
from numalab.kernel.image import KernelImage
from numalab.results import Json, load_results, succeeded
from numalab.run import check, runner
from numalab.run.lab import Lab, default_lab
from numalab.run.policy import BALANCING, Policy
from numalab.run.runner import Options, Summary

pytestmark = pytest.mark.vm

EXPERIMENT = """
repeats = 1
[matrix]
kernel = ["{kernel}"]
policy = {policies}
workload = ["gups"]
topology = ["two"]
[workloads.gups]
size = "32M"
updates = "100k"
{cpus}
huge = "never"
[topologies.two]
nodes = 2
node_memory = "256M"
"""
#: Tables of the lowest level that 32 MiB in pages of 4K need.
TABLES = 16
#: Those of text, data and stack: by first touch as well, but before the program has pinned itself.
OTHERS = 6


def run(
    top: Path, policies: str, *, kernel: str = "stock", cpus: str = 'cpus = "0"', lab: Lab | None = None, **options: Any
) -> Summary:
    file = top / "exp.toml"
    file.write_text(EXPERIMENT.format(kernel=kernel, policies=policies, cpus=cpus))
    chosen = lab or default_lab()
    wanted = Options(given=str(file), out=top / "out", accel="tcg", **options)
    return runner.run(check.load(file, chosen), chosen, wanted)


def by_policy(summary: Summary) -> dict[str, Json]:
    assert not summary.failed, [result["outcome"] for result in summary.failed]
    assert summary.left == 0
    found = {result["cell"]["policy"]: result for result in load_results(summary.directory).results}
    return found


def tables_of(result: Json) -> list[int]:
    """Pages of the lowest level of page tables, by node, when the program was ready."""
    [process] = result["placement"][0]["summary"]["processes"]
    assert process["comm"] == "gups"
    pages: list[int] = process["table_pages"][0]
    return pages


def test_placement_on_debians_kernel(tmp_path: Path, stock: KernelImage) -> None:
    summary = run(tmp_path, '["first-touch", "interleave", "bound-tables"]')
    found = by_policy(summary)
    first, spread, bound = (found[name] for name in ("first-touch", "interleave", "bound-tables"))
    # The thread runs on node 0, so that is where the region's tables are by first touch.
    assert tables_of(first)[0] >= TABLES
    assert tables_of(first)[1] <= OTHERS
    assert tables_of(bound)[1] >= TABLES
    assert tables_of(bound)[0] <= OTHERS
    assert min(tables_of(spread)) >= TABLES // 2 - 1
    for result in found.values():
        assert result["provenance"]["kernel"]["release"] == stock.release
        machine = result["provenance"]["machine"]
        assert machine["accel"] == "tcg"
        assert any("qemu-system" in word for word in machine["qemu_argv"])
        before, after = result["provenance"]["sysctls_before"], result["provenance"]["sysctls_after"]
        assert before[BALANCING] == after[BALANCING]
        setting = next(each for each in result["provenance"]["policy"] if each["path"] == BALANCING)
        assert (setting["before"], setting["got"], setting["restored"]) == (before[BALANCING], "0", True)
        assert result["counters"]["vmstat"]["pgfault"] >= 32 * 256
        # Balancing is off and everything was touched before: the measured phase takes next to no faults.
        assert result["counters"]["measured"]["vmstat"]["pgfault"] < 1000
        assert result["counters"]["perf"]["cycles:u"] is None
        kinds = {sample["metric"]: sample["kind"] for sample in result["samples"]}
        assert (kinds["updates"], kinds["updates_per_second"]) == ("counted", "emulation-time")
        values = {sample["metric"]: sample["value"] for sample in result["samples"]}
        assert values["updates"] == 100_000
    # Three cells, one boot; and what is done stays done.
    assert {result["provenance"]["machine"]["boot"] for result in found.values()} == {1}
    again = run(tmp_path, '["first-touch", "interleave", "bound-tables"]', resume=True)
    assert (len(again.skipped), again.done) == (3, [])


def test_remote_tables_on_the_patched_kernel(tmp_path: Path, patched: KernelImage) -> None:
    free, placed = tmp_path / "free", tmp_path / "placed"
    free.mkdir()
    placed.mkdir()
    found = by_policy(run(free, '["first-touch", "remote-tables"]', kernel="patched"))
    # The paper's placements pin the threads themselves.
    found |= by_policy(run(placed, '["RPLD", "LPRD"]', kernel="patched", cpus=""))
    wanted = {"first-touch": (0, 0), "remote-tables": (1, 0), "RPLD": (1, 0), "LPRD": (0, 1)}
    for policy, (tables, data) in wanted.items():
        pages = tables_of(found[policy])
        assert pages[tables] >= TABLES
        assert pages[1 - tables] <= (OTHERS if policy == "first-touch" else 0)
        sampled = {s["metric"]: s["value"] for s in found[policy]["samples"] if s["metric"].startswith("sampled")}
        assert sampled[f"sampled_pages_node{data}"] == 1024
        assert sampled[f"sampled_pages_node{1 - data}"] == 0
    knob = found["RPLD"]["provenance"]["sysctls_before"][ALLOC_NODE]
    assert knob == found["RPLD"]["provenance"]["sysctls_after"][ALLOC_NODE] == "-1"
    assert (
        found["RPLD"]["provenance"]["kernel"]["image_sha256"] == found["LPRD"]["provenance"]["kernel"]["image_sha256"]
    )


def test_interference_loads_its_node_and_leaves_the_tables_alone(tmp_path: Path, stock: KernelImage) -> None:
    text = EXPERIMENT.format(kernel="stock", policies='["none"]', cpus='cpus = "0"')
    text = text.replace("[workloads.gups]", 'interference = ["none", "far"]\n[workloads.gups]').replace("100k", "400k")
    file = tmp_path / "exp.toml"
    file.write_text(text + '[interference.far]\nnode = 1\nsize = "24M"\n')
    lab = default_lab()
    summary = runner.run(check.load(file, lab), lab, Options(given="x", out=tmp_path / "out", accel="tcg"))
    assert not summary.failed, [result["outcome"] for result in summary.failed]
    found = {result["cell"]["interference"]: result for result in summary.done}
    assert found["none"]["interference"] == []
    [beside] = found["far"]["interference"]
    assert (beside["workload"], beside["node"], beside["outcome"]["status"]) == ("stream", 1, 0)
    values = {sample["metric"]: sample["value"] for sample in beside["samples"]}
    assert values["iterations"] >= 1
    assert values["errors"] == 0
    assert values["sampled_pages_node1"] > 0
    assert values["sampled_pages_node0"] == 0
    # Snapshot and first touch are over before it starts.
    assert tables_of(found["far"])[0] == pytest.approx(tables_of(found["none"])[0], abs=OTHERS)
    left = found["far"]["provenance"]["machine"]["boot"], found["none"]["provenance"]["machine"]["boot"]
    assert left == (1, 1), "stopped for good: the next cell has the machine to itself"


def test_a_panic_is_a_result_and_the_run_goes_on(tmp_path: Path, stock: KernelImage) -> None:
    crash = Policy("crash", "", wrap=("sh", "-c", "echo c > /proc/sysrq-trigger; sleep 60"))
    real = default_lab()
    lab = replace(real, policies=lambda: {**real.policies(), "crash": crash})
    summary = run(tmp_path, '["none", "crash"]', lab=lab, repeats=2)
    ends = {(r["cell"]["policy"], r["cell"]["repeat"]): r for r in summary.done}
    assert len(ends) == 4
    for (policy, _), result in ends.items():
        if policy == "none":
            assert succeeded(result), result["outcome"]
        else:
            assert result["outcome"]["type"] == "panic"
            assert "sysrq" in result["outcome"]["oops"]
            assert result["samples"] == []
            log = summary.directory / "cells" / result["cell"]["id"] / "console.log"
            assert "Kernel panic" in log.read_text(errors="replace")


def test_a_program_the_machine_has_no_memory_for(tmp_path: Path, stock: KernelImage) -> None:
    file = tmp_path / "exp.toml"
    file.write_text(EXPERIMENT.format(kernel="stock", policies='["none"]', cpus="").replace("32M", "4G"))
    lab = default_lab()
    summary = runner.run(check.load(file, lab), lab, Options(given="x", out=tmp_path / "out", accel="tcg"))
    [result] = summary.done
    assert (result["outcome"]["type"], result["samples"]) == ("exit", [])
    assert result["outcome"]["status"] not in (0, None)
    text = (summary.directory / "cells" / result["cell"]["id"] / "stderr.txt").read_text()
    assert "4096 MiB of memory are needed" in text
