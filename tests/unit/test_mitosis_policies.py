"""The policies and experiments of mitosis fit the laboratory they are made for."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mitosis.policies import ALLOC_NODE, FIRST_TOUCH, INTERLEAVE, PLACEMENTS, REMOTE_TABLES
from mitosis.replication import FRAGMENTED, MIGRATE, MODE, OF_PROCESS, REPLICAS_ON, REPLICATION
from mitosis.system import SYSTEM
from numalab.errors import UserError
from numalab.machine.topology import uniform
from numalab.run import check, matrix
from numalab.run.lab import default_lab
from numalab.run.plan import commands
from numalab.run.policy import BALANCING, NodeNumber, Policy
from numalab.run.spec import Experiment
from numalab.run.system import find_experiment, policies
from workloads import catalogue

LAB = replace(default_lab(download=False), host_memory=lambda: 16 << 30)
EXPERIMENTS = sorted(SYSTEM.experiments())


def test_registered() -> None:
    assert {policy.name for policy in SYSTEM.policies} <= set(policies())
    figures = ("figure6", "figure9a", "figure9b", "figure10a", "figure10b", "figure11", "table4", "table5")
    assert {f"mitosis/{name}" for name in ("quickstart", "placement", *figures)} == set(EXPERIMENTS)
    assert {feature.brought_by for feature in SYSTEM.features} == {"patch set mitosis"}
    assert find_experiment("mitosis/placement") == SYSTEM.experiments()["mitosis/placement"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_good(name: str) -> None:
    experiment = check.load(find_experiment(name), LAB)
    assert experiment.title
    assert matrix.points(experiment)


@pytest.mark.parametrize("policy", SYSTEM.policies, ids=lambda policy: policy.name)
def test_every_option_is_one_of_gups(policy: Policy) -> None:
    """GUPS has all options of placement; the catalogue checks their values."""
    bound = policy.bind({}, uniform(4, 2, "64M"))
    catalogue.get("gups").argv(bound.options)
    # A policy that sets the knob to a node cannot do without the patch; one that leaves the default can.
    tables = [knob for knob in bound.knobs if knob.path == ALLOC_NODE]
    needs = any(knob.value != "-1" for knob in tables)
    assert ("common" in policy.requires) == needs == any(not knob.optional for knob in tables)
    # The same for replication: only what wants none can do without.
    replicates = [knob for knob in bound.knobs if "pgtable_repl" in knob.path and not knob.optional]
    assert ("mitosis" in policy.requires) == bool(replicates or "pgtable_repl" in " ".join(bound.wrap))


@pytest.mark.parametrize("policy", SYSTEM.policies, ids=lambda policy: policy.name)
def test_balancing_is_off_but_where_it_is_meant(policy: Policy) -> None:
    assert [knob.value for knob in policy.knobs if knob.path == BALANCING] == [
        "1" if policy.name.startswith("autonuma") else "0"
    ]


@pytest.mark.parametrize(("code", "tables", "data"), [("LPLD", 2, 2), ("LPRD", 2, 0), ("RPLD", 0, 2), ("RPRD", 0, 0)])
def test_the_codes_of_the_papers(code: str, tables: int, data: int) -> None:
    """Threads on node 2, remote is node 0: P is where the page tables are, D where the data."""
    policy = next(policy for policy in PLACEMENTS if policy.name == code)
    bound = policy.bind({"home": 2, "away": 0}, uniform(3, 2, "64M"))
    assert commands(bound, ["true"])[-2:] == [f"echo {tables} > {ALLOC_NODE}", "true"]
    assert bound.wrap == ("taskset", "-c", "4-5")
    assert bound.options == {"cpus": "4-5", "memory": f"bind:{data}"}


def test_the_codes_with_interference_load_the_remote_node() -> None:
    loaded = {policy.name for policy in SYSTEM.policies if policy.interference}
    assert loaded == {"LPRDI", "RPILD", "RPIRDI", "RPILD+M"} | {f"RPILD{m}-fragmented" for m in ("", "+M")}
    for name in loaded:
        assert policies()[name].bind({"away": 2}, uniform(3)).interference == ("2",)


def test_replicas_are_for_every_new_process_and_the_mode_comes_first() -> None:
    for name, mode in (("lazy", "lazy"), ("eager", "eager"), ("interleave+M", "eager"), ("RPLD+M", "eager")):
        bound = policies()[name].bind({}, uniform(2))
        assert [(knob.path, knob.value) for knob in bound.knobs[-2:]] == [(MODE, mode), (REPLICATION, "2")]
    lazily = policies()["RPLD+M"].bind({"mode": "lazy"}, uniform(2))
    assert lazily.knobs[-2].value == "lazy"
    assert policies()["RPLD+M"].problems({"mode": "lasy"}) == [
        ("mode", "'lasy' is none of 'lazy', 'eager' (did you mean 'lazy'?)")
    ]


def test_replicas_on_chosen_nodes() -> None:
    every, some = (REPLICAS_ON.bind(values, uniform(4)).wrap for values in ({}, {"on": "0,2-3", "mode": "lazy"}))
    assert every[2] == 'echo eager 0-3 fork exec > /proc/$$/pgtable_repl && exec "$@"'
    assert some[2].startswith("echo lazy 0,2-3 fork exec > ")
    with pytest.raises(UserError, match="on = 7: there is no such node"):
        REPLICAS_ON.bind({"on": "0,7"}, uniform(4))
    with pytest.raises(UserError, match="on = 'x': no list of nodes"):
        REPLICAS_ON.bind({"on": "x"}, uniform(4))
    assert REPLICAS_ON.problems({"on": 3}) == [("on", "must be a list of nodes, not an integer (3)")]


def test_page_tables_are_moved_when_the_measured_phase_begins() -> None:
    late = MIGRATE.bind({"node": 1, "away": 0}, uniform(2)).knobs[-1]
    assert (late.path, late.value, late.mark) == (OF_PROCESS, "migrate 1", "ready")


def test_descriptions_say_when_and_where(capsys: pytest.CaptureFixture[str]) -> None:
    from numalab.cli import policies as verb

    for name, words in (
        ("migrate", "writes migrate {node} to /proc/PID/pgtable_repl when the program announces its mark ready"),
        ("RPILD", "loads the memory of node {away} meanwhile"),
    ):
        verb.describe.main([name], standalone_mode=False)
        assert words in capsys.readouterr().out
    verb.list_all.main(["--json"], standalone_mode=False)
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["RPILD"]["interference"] == ["{away}"]


def test_fragmented_memory_fails_huge_pages_only() -> None:
    assert {policy.name for policy in FRAGMENTED} >= {"LPLD-fragmented", "RPILD+M-fragmented"}
    for policy in FRAGMENTED:
        knobs = {knob.path.rpartition("/")[2]: knob for knob in policy.bind({"failing": 70}, uniform(2)).knobs}
        assert (knobs["min-order"].value, knobs["probability"].value) == ("9", "70")
        assert not knobs["probability"].optional, "a kernel that cannot must not pretend"
        assert "debug" in knobs["probability"].brought_by


def test_pages_of_the_data_by_policy_or_by_workload() -> None:
    assert FIRST_TOUCH.bind({}, uniform(2)).options == {}
    assert FIRST_TOUCH.bind({"huge": "always"}, uniform(2)).options == {"huge": "always"}
    assert FIRST_TOUCH.problems({"huge": "allways"})[0][0] == "huge"


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if "# full: " in find_experiment(name).read_text()])
def test_the_sizes_of_the_paper_are_good(name: str, tmp_path: Path) -> None:
    """The command in the file's head makes an experiment of it that a large machine could run."""
    source = find_experiment(name)
    words = next(line for line in source.read_text().splitlines() if "sed -E" in line).lstrip("# ").split(" > ")[0]
    command = shlex.split(words.replace(f"mitosis/experiments/{source.name}", str(source)))
    assert command[-1] == str(source)
    file = tmp_path / "full.toml"
    file.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    assert "full:" not in file.read_text().partition("[matrix]")[2]
    large = check.load(file, replace(LAB, host_memory=lambda: 1 << 40))
    small = check.load(source, LAB)
    assert large.axes == {**small.axes, "kernel": large.kernels}
    assert max(topology.memory for topology in large.topologies.values()) > 100 << 30


def test_interleave_covers_data_and_tables() -> None:
    assert INTERLEAVE.bind({}, uniform(3)).options == {"memory": "interleave:0-2", "tables": "interleave:0-2"}


def test_remote_tables_need_a_second_node() -> None:
    assert REMOTE_TABLES.params["node"].type is NodeNumber
    with pytest.raises(UserError, match="node = 1: there is no such node"):
        REMOTE_TABLES.bind({}, uniform(1))


def quickstart() -> Experiment:
    return check.load(find_experiment("mitosis/quickstart"), LAB)


def test_quickstart_compares_what_it_says() -> None:
    pairs = {(p.kernel, p.policy) for p in matrix.points(quickstart())}
    assert pairs == {
        ("stock", "first-touch"),
        ("stock", "interleave"),
        ("patched", "first-touch"),
        ("patched", "remote-tables"),
        ("patched", "interleave"),
        ("patched", "lazy"),
        ("patched", "eager"),
        ("patched", "placebo"),
    }


def test_the_template_of_init_is_good(tmp_path: Path) -> None:
    from numalab.run.scaffold import TEMPLATE

    file = tmp_path / "experiment.toml"
    file.write_text(TEMPLATE)
    assert {p.policy for p in matrix.points(check.load(file, LAB))} == {"first-touch", "interleave", "placebo"}
