"""A second program beside the measured one: between its marks "ready" and "done", and never longer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from numalab.errors import UserError
from numalab.machine.topology import Node, Topology, uniform
from numalab.results import Json, load_results, succeeded
from numalab.run import interference
from numalab.run.check import load
from numalab.run.plan import commands, plan
from numalab.run.runner import Options, select
from tests.unit.fake_lab import POLICIES, WORKLOADS, boot_failure
from tests.unit.test_run_runner import Bench

TEXT = """\
repeats = 1
[matrix]
workload = "gups"
interference = ["far"]
[workloads.gups]
act = "{act}"
[interference.far]
workload = "noise"
node = {node}
act = "{beside}"
[topologies.four]
node_memory = "64M"
[measure]
snapshots = ["ready", "done"]
"""
NOISE = WORKLOADS["noise"]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def one(bench: Bench, *, act: str = "ok", beside: str = "ok", node: str = "1") -> Json:
    [result] = bench.run(TEXT.format(act=act, beside=beside, node=node)).done
    assert bench.world.open == 0
    return result


def test_it_runs_between_the_marks_and_snapshots_do_not_see_it(bench: Bench) -> None:
    result = one(bench)
    assert succeeded(result)
    assert bench.world.events == [
        "gups init",
        "gups ready",
        "snapshot ready",
        "noise ready",
        "gups done",
        "noise told to end by signal 15",
        "snapshot done",
    ]
    argv = ["noise", "--forever", "True", "--memory", "bind:1", "--cpus", "1", "--threads", "1", "--act", "ok"]
    [recorded] = result["interference"]
    assert recorded == {
        "workload": "noise",
        "node": 1,
        "argv": argv,
        "outcome": {"type": "exit", "status": 0, "signal": None},
        "samples": [{"metric": "updates", "value": 9, "unit": "", "kind": "counted"}],
    }
    assert result["cell"]["interference"] == "far"
    assert result["cell"]["params"]["interference"] == {
        "name": "far",
        "programs": [{"workload": "noise", "node": 1, "argv": argv, "sha256": None}],
    }
    assert "--only interference=far" in result["provenance"]["reproduce"]
    assert load_results(bench.out).results[0]["interference"] == [recorded]


def test_a_program_on_each_node_that_is_named(bench: Bench) -> None:
    result = one(bench, node="[3, 1]")
    assert [each["node"] for each in result["interference"]] == [3, 1]
    assert bench.world.events.count("noise ready") == bench.world.events.count("noise told to end by signal 15") == 2


def test_none_is_nothing_and_keeps_the_names_of_cells(bench: Bench) -> None:
    text = TEXT.format(act="ok", beside="ok", node="1").replace('["far"]', '["none", "far"]')
    without, beside = sorted(bench.run(text).done, key=lambda result: len(result["interference"]))
    assert (without["cell"]["interference"], without["interference"]) == ("none", [])
    assert "interference" not in without["cell"]["params"]
    assert without["cell"]["id"] != beside["cell"]["id"]


def test_equal_programs_under_two_labels_are_two_cells(bench: Bench) -> None:
    text = TEXT.format(act="ok", beside="ok", node="1").replace('["far"]', '["far", "too"]')
    summary = bench.run(text + '[interference.too]\nworkload = "noise"\nnode = 1\nact = "ok"\n')
    assert len({result["cell"]["id"] for result in summary.done}) == 2


@pytest.mark.parametrize(
    ("beside", "detail"),
    [
        (
            "no-start",
            "interference noise on node 1: noise exited with status 2 before its mark 'ready': words on stderr",
        ),
        ("slow-start", "interference noise on node 1: noise did not reach its mark 'ready' within 600 s"),
        (
            "early",
            "interference noise on node 1 ended before the measured program was done: noise was killed by signal 9 "
            "(Killed)",
        ),
        ("stubborn", "interference noise on node 1 did not stop within 120 s and was killed"),
    ],
)
def test_interference_that_fails_is_an_error_of_its_cell(bench: Bench, beside: str, detail: str) -> None:
    result = one(bench, beside=beside)
    assert result["outcome"]["type"] == "error"
    assert result["outcome"]["detail"].startswith(detail)
    assert result["samples"], "what the measured program reported is kept"


@pytest.mark.parametrize(
    ("act", "kind"), [("fail", "exit"), ("signal", "signal"), ("silent", "no-result"), ("timeout", "timeout")]
)
def test_it_is_stopped_however_the_program_ends(bench: Bench, act: str, kind: str) -> None:
    result = one(bench, act=act)
    assert result["outcome"]["type"] == kind
    assert bench.world.events[-1] == "noise told to end by signal 15"


def test_the_end_of_the_program_hides_no_failure_beside(bench: Bench) -> None:
    assert one(bench, act="silent", beside="early")["outcome"]["type"] == "error"


def test_a_program_without_marks_has_nothing_beside_it(bench: Bench) -> None:
    outcome = one(bench, act="unmarked")["outcome"]
    assert outcome["type"] == "error"
    assert outcome["detail"] == "the program announced no mark 'ready', so nothing ran beside it"


@pytest.mark.parametrize("act", ["panic", "hang", "qemu-died"])
def test_a_lost_machine_is_not_told_anything(bench: Bench, act: str) -> None:
    result = one(bench, act=act)
    assert result["outcome"]["type"] == act
    assert result["interference"] == []


def test_no_machine_no_interference(bench: Bench) -> None:
    bench.world.boot_error = boot_failure()
    [result] = bench.run(TEXT.format(act="ok", beside="ok", node="1")).done
    assert (result["outcome"]["type"], result["interference"]) == ("boot-failure", [])


def test_a_policy_may_bring_it(bench: Bench) -> None:
    """The papers' codes with an I are policies that load a node."""
    file = bench.top / "exp.toml"
    file.write_text('[matrix]\nworkload = "gups"\npolicy = ["none", "crowded"]\n[policies.crowded]\naway = 2\n')
    experiment = load(file, bench.lab)
    cells, _ = plan(experiment, select(experiment, Options(given="x")), bench.lab, accel="tcg")
    by_policy = {cell.point.policy: cell for cell in cells}
    assert by_policy["none"].beside == []
    [load_beside] = by_policy["crowded"].beside
    assert (load_beside.workload.name, load_beside.node) == ("stream", 2)
    assert by_policy["crowded"].params["policy"]["interference"] == [2]
    assert "interference" not in by_policy["none"].params["policy"]
    assert by_policy["crowded"].machine.files.keys() == by_policy["none"].machine.files.keys()
    lines = commands(by_policy["crowded"].policy, by_policy["crowded"].argv, by_policy["crowded"].beside)
    assert lines[0].startswith("stream --forever True --memory bind:2 ")
    assert lines[0].endswith("&  # between the program's marks ready and done")


def test_threads_on_all_cpus_of_the_node_unless_told_otherwise() -> None:
    shape = uniform(2, 4, "64M")
    assert interference.bind(NOISE, [1], {}, shape)[0].argv[-4:] == ["--cpus", "4-7", "--threads", "4"]
    assert interference.bind(NOISE, [1], {"cpus": "0,2"}, shape)[0].argv[-4:] == ["--cpus", "0,2", "--threads", "2"]
    assert interference.bind(NOISE, [1], {"threads": 1}, shape)[0].argv[-4:] == ["--cpus", "4-7", "--threads", "1"]
    far = Topology((Node(1, 64 << 20), Node(0, 64 << 20)), ((10, 20), (20, 10)))
    assert "bind:1" in interference.bind(NOISE, [1], {"cpus": [0]}, far)[0].argv
    with pytest.raises(UserError, match="ends by itself"):
        interference.bind(WORKLOADS["gups"], [1], {}, shape)


def test_bound_policies_keep_their_nodes() -> None:
    bound = POLICIES["crowded"].bind({"away": 3}, uniform())
    assert bound.interference == ("3",)
    assert replace(bound, interference=()).to_json().keys() == POLICIES["none"].to_json().keys()


def test_streams_own_catalogue_entry_can_run_beside() -> None:
    from workloads import catalogue

    [load_beside] = interference.bind(catalogue.get("stream"), [1], {"size": "8M"}, uniform(2, 2, "64M"))
    assert load_beside.argv == [
        *("stream", "--forever", "--size", str(8 << 20), "--memory", "bind:1", "--cpus", "2-3", "--threads", "2"),
    ]
