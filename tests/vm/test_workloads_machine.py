"""The workloads in a machine of four nodes: results, and whether data and page tables lie where they were asked to."""

from __future__ import annotations

from typing import Any

import pytest

from numalab.machine.session import Machine
from numalab.measure.placement import take
from workloads import catalogue
from workloads.metrics import Sample

pytestmark = pytest.mark.vm

#: 16 MiB in 4K pages: 4096 leaf entries in 8 tables.
REGION = {"size": "16M", "huge": "never"}


def run(machine: Machine, name: str, **params: Any) -> tuple[dict[str, Sample], list[int], list[int]]:
    """Run a workload; return its samples, and leaf entries by the node of their table and by the node of their data."""
    workload = catalogue.get(name)
    found: list[list[int]] = []

    def look(mark: Any, _: Machine) -> None:
        if mark.name == "ready":
            process = take(machine, names=[name], label="ready").processes[0]
            found.append([int(count) for count in process.leaf.sum(axis=(0, 2))])
            found.append([int(count) for count in process.leaf.sum(axis=(0, 1))])

    done = machine.run(workload.argv(params), on_mark=look, timeout=120)
    assert done.ok, done.stderr
    assert [mark.name for mark in done.marks] == ["init", "ready", "done"]
    return {sample.metric: sample for sample in workload.parse(done.stdout)}, found[0], found[1]


@pytest.mark.parametrize("name", ["gups", "btree", "stream"])
def test_first_touch_decides_for_tables_and_data(stock4: Machine, name: str) -> None:
    samples, tables, data = run(stock4, name, **REGION, **{"init-cpu": 2, "memory": "local"})
    assert tables[2] >= 4000
    assert data[2] >= 4000
    assert samples["sampled_pages_node2"].value == 1024
    assert samples["errors"].value in (0, None)


def test_tables_and_data_apart(stock4: Machine) -> None:
    samples, tables, data = run(stock4, "gups", **REGION, memory="bind:0", tables="bind:3", verify=True)
    assert tables[3] >= 4096
    assert data[0] >= 4096
    assert samples["errors"].value == 0
    assert samples["sampled_pages_node0"].value == 1024


def test_tables_alone_leave_data_to_first_touch(stock4: Machine) -> None:
    _, tables, data = run(stock4, "btree", **REGION, cpus="1", tables="bind:3")
    assert tables[3] >= 4000
    assert data[1] >= 4000


def test_interleave(stock4: Machine) -> None:
    samples, tables, data = run(stock4, "gups", **REGION, memory="interleave:all", tables="interleave:all")
    assert all(count >= 1024 for count in data)
    assert all(count >= 512 for count in tables)
    assert all(200 < (samples[f"sampled_pages_node{node}"].value or 0) < 312 for node in range(4))


def test_each_thread_touches_its_share(stock4: Machine) -> None:
    _, tables, data = run(stock4, "gups", **REGION, threads=4, cpus="0-3", memory="local")
    assert all(900 <= count <= 1500 for count in data)
    assert all(900 <= count <= 1500 for count in tables)


def test_stream_hammers_a_node_until_it_is_told_to_stop(stock4: Machine) -> None:
    stream = catalogue.get("stream")
    process = stock4.start(stream.argv({"size": "3M", "node": 1, "forever": True}))
    done = stock4.run(catalogue.get("gups").argv({"size": "4M", "verify": True}), timeout=60)
    assert done.ok
    process.kill(15)
    ended = process.wait(60)
    samples = {sample.metric: sample.value for sample in stream.parse(ended.stdout)}
    assert ended.ok
    assert samples["sampled_pages_node1"] == 768
    assert samples["iterations"]


def test_memops_on_chosen_nodes(stock4: Machine) -> None:
    memops = catalogue.get("memops")
    marks: list[str] = []
    params = {"size": "4M", "iterations": 2, "memory": "bind:2", "tables": "bind:1", "huge": "never", "mark-ops": True}

    def look(mark: Any, _: Machine) -> None:
        marks.append(mark.name)
        if mark.name == "mmap-end":
            leaf = take(stock4, names=["memops"], label=mark.name).processes[0].leaf
            assert leaf.sum(axis=0)[1][2] >= 1024  # tables on node 1, data on node 2

    done = stock4.run(memops.argv(params), on_mark=look, timeout=60)
    assert done.ok, done.stderr
    assert marks.count("mprotect-begin") == 2
    assert {sample.metric: sample.value for sample in memops.parse(done.stdout)}["munmap_count"] == 2


def test_usage_is_checked_against_this_machine(stock4: Machine) -> None:
    for options, words in ((["--cpus", "4"], b"has 0-3"), (["--memory", "bind:4"], b"these have: 0 1 2 3")):
        done = stock4.run(["gups", *options], timeout=60)
        assert done.status == 2
        assert words in done.stderr
    done = stock4.run(["gups", "--size", "64G"], timeout=60)
    assert done.status == 1
    assert b"65536 MiB of memory are needed" in done.stderr
