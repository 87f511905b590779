"""The policies and experiments of mitosis fit the laboratory they are made for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mitosis.policies import ALLOC_NODE, BALANCING, INTERLEAVE, PLACEMENTS, REMOTE_TABLES
from mitosis.system import SYSTEM
from numalab.errors import UserError
from numalab.machine.topology import uniform
from numalab.run import check, matrix
from numalab.run.lab import default_lab
from numalab.run.plan import commands
from numalab.run.policy import NodeNumber, Policy
from numalab.run.spec import Experiment
from numalab.run.system import find_experiment, policies
from workloads import catalogue

LAB = replace(default_lab(download=False), host_memory=lambda: 16 << 30)
EXPERIMENTS = sorted(SYSTEM.experiments())


def test_registered() -> None:
    assert {policy.name for policy in SYSTEM.policies} <= set(policies())
    assert {"mitosis/quickstart", "mitosis/placement"} <= set(EXPERIMENTS)
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
    assert (policy.requires == ("common",)) == needs == any(not knob.optional for knob in tables)


@pytest.mark.parametrize("policy", SYSTEM.policies, ids=lambda policy: policy.name)
def test_balancing_is_off_but_where_it_is_meant(policy: Policy) -> None:
    assert [knob.value for knob in policy.knobs if knob.path == BALANCING] == [
        "1" if policy.name == "autonuma" else "0"
    ]


@pytest.mark.parametrize(("code", "tables", "data"), [("LPLD", 2, 2), ("LPRD", 2, 0), ("RPLD", 0, 2), ("RPRD", 0, 0)])
def test_the_codes_of_the_papers(code: str, tables: int, data: int) -> None:
    """Threads on node 2, remote is node 0: P is where the page tables are, D where the data."""
    policy = next(policy for policy in PLACEMENTS if policy.name == code)
    bound = policy.bind({"home": 2, "away": 0}, uniform(3, 2, "64M"))
    assert commands(bound, ["true"])[-2:] == [f"echo {tables} > {ALLOC_NODE}", "true"]
    assert bound.wrap == ("taskset", "-c", "4-5")
    assert bound.options == {"cpus": "4-5", "memory": f"bind:{data}"}


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
        ("patched", "placebo"),
    }


def test_the_template_of_init_is_good(tmp_path: Path) -> None:
    from numalab.run.scaffold import TEMPLATE

    file = tmp_path / "experiment.toml"
    file.write_text(TEMPLATE)
    assert {p.policy for p in matrix.points(check.load(file, LAB))} == {"first-touch", "interleave", "placebo"}
