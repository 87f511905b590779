"""Experiments on this very host: real programs, the running kernel, no machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from numalab.errors import MissingError, UserError
from numalab.kernel.running import RUNNING
from numalab.machine.host import this_host
from numalab.results import Json, load_results, succeeded
from numalab.run import on_host, runner
from numalab.run.check import load
from numalab.run.lab import default_lab
from numalab.run.on_host import lab_for, require_rights
from numalab.run.policy import NONE, Knob, Policy
from numalab.run.runner import Options, Summary
from numalab.run.spec import Experiment, Running
from tests.unit.fake_lab import World, make_lab

TINY = """\
repeats = 1
[matrix]
workload = ["gups"]
interference = ["none", "near"]
[interference.near]
node = 0
size = "1M"
[workloads.gups]
size = "8M"
updates = "50k"
{more}
[run]
machine = "host"
timeout = 60
"""


def read(tmp_path: Path, text: str, *, host: bool = False) -> Experiment:
    file = tmp_path / "exp.toml"
    file.write_text(text)
    return load(file, make_lab(World(), tmp_path), host=host)


def complaints(tmp_path: Path, text: str, *, host: bool = False) -> list[str]:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text, host=host)
    return [line.replace(f"{tmp_path}/", "") for line in str(caught.value).splitlines()]


# A real one.


def run(tmp_path: Path, text: str) -> Summary:
    file = tmp_path / "exp.toml"
    file.write_text(text)
    lab = default_lab()
    experiment = load(file, lab)
    options = Options(given=str(file), out=tmp_path / "out", accel="host")
    return runner.run(experiment, lab_for(experiment, lab), options)


def test_a_tiny_experiment_on_this_machine(tmp_path: Path) -> None:
    """The policy that needs no knobs; everything else is as in a machine, and measured."""
    summary = run(tmp_path, TINY.format(more=""))
    assert not summary.failed, [result["outcome"] for result in summary.failed]
    found: dict[str, Json] = {
        result["cell"]["interference"]: result for result in load_results(tmp_path / "out").results
    }
    assert set(found) == {"none", "near"}
    for result in found.values():
        assert succeeded(result)
        cell, provenance = result["cell"], result["provenance"]
        assert (cell["kernel"], cell["topology"]) == (RUNNING, "host")
        assert cell["params"]["kernel"]["release"] == provenance["kernel"]["release"] == os.uname().release
        assert provenance["machine"]["accel"] == "host"
        assert "--host" in provenance["reproduce"]
        assert {sample["kind"] for sample in result["samples"]} == {"measured"}
        assert [mark["name"] for mark in result["marks"]] == ["init", "ready", "done"]
        assert result["counters"]["kind"] == "measured"
        assert result["counters"]["vmstat"]["pgfault"] > 0
        assert set(result["counters"]["perf"]) >= {"cycles:u"}
        [placed] = result["placement"]
        # Only a kernel of ours can tell where page tables are; elsewhere it is missing, and no error.
        assert (placed["summary"] is not None) == Path("/proc/self/numa_pgtables").exists()
        assert placed["file"] is None
        assert provenance["sysctls_before"]
    [beside] = found["near"]["interference"]
    assert (beside["workload"], beside["outcome"]["status"]) == ("stream", 0)
    assert found["none"]["interference"] == []


def test_a_program_that_does_not_end_is_killed(tmp_path: Path) -> None:
    text = TINY.format(more="").replace('"near"]', "]").replace("50k", "1000G").replace("timeout = 60", "timeout = 1")
    text = text.replace('[interference.near]\nnode = 0\nsize = "1M"\n', "").replace('["none", ]', '["none"]')
    [result] = run(tmp_path, text).done
    assert result["outcome"]["type"] == "timeout"


# The file, and the option.


def test_what_a_file_for_the_host_means(tmp_path: Path) -> None:
    experiment = read(tmp_path, '[matrix]\nworkload = "gups"\n[run]\nmachine = "host"\n')
    assert experiment.kernels == (RUNNING,)
    assert experiment.topologies == {"host": this_host()}
    assert experiment.baseline_kernel == RUNNING


def test_a_file_for_machines_is_moved_to_the_host_by_an_option(tmp_path: Path) -> None:
    text = """
    baseline = { kernel = "patched", policy = "none" }
    [matrix]
    kernel = ["stock", "patched"]
    policy = ["none", "first-touch"]
    workload = "gups"
    topology = ["two", "four"]
    [topologies.two]
    nodes = 2
    [[exclude]]
    kernel = "stock"
    policy = "none"
    [run]
    nested = true
    append = "quiet"
    timeout = 7
    """
    experiment = read(tmp_path, text, host=True)
    assert experiment.axes == {
        "kernel": (RUNNING,),
        "policy": ("none", "first-touch"),
        "workload": ("gups",),
        "topology": ("host",),
        "interference": ("none",),
    }
    assert len(list(experiment.kept())) == 2, "what was left out for the stock kernel is not left out here"
    assert experiment.running == Running(machine="host", timeout=7)
    assert experiment.baseline_kernel == RUNNING


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[run]\nmachine = "hots"', "exp.toml: run.machine: 'hots' is not 'qemu' or 'host' (did you mean 'host'?)"),
        (
            '[run]\nmachine = "host"\nnested = true',
            'exp.toml: run.nested: is about machines that are booted; it goes not with machine = "host"',
        ),
        (
            '[run]\nmachine = "host"\n[topologies.two]\nnodes = 2',
            "exp.toml: topologies.two: is described here and not used in matrix.topology",
        ),
    ],
)
def test_what_goes_not_with_the_host(tmp_path: Path, text: str, message: str) -> None:
    assert message in complaints(tmp_path, f'[matrix]\nworkload = "gups"\n{text}\n')


def test_kernels_and_topologies_that_are_not_the_hosts(tmp_path: Path) -> None:
    text = '[matrix]\nworkload = "gups"\nkernel = "patched"\ntopology = "four"\n[run]\nmachine = "host"\n'
    assert complaints(tmp_path, text) == [
        "exp.toml: matrix.kernel[0]: 'patched': the kernel of the host is the one that runs, 'running'",
        "exp.toml: matrix.topology[0]: 'four': this host has one shape, called 'host'",
    ]
    assert "unknown kernel 'running'" in complaints(tmp_path, '[matrix]\nworkload = "gups"\nkernel = "running"\n')[0]


def test_knobs_need_root(tmp_path: Path) -> None:
    there, absent = tmp_path / "knob", tmp_path / "absent"
    there.write_text("0\n")
    writes = Policy("writes", "", knobs=(Knob(str(there), "1", optional=True),))
    would = Policy("would", "", knobs=(Knob(str(absent), "1", optional=True),))
    must = Policy("must", "", knobs=(Knob(str(absent), "1"),))
    require_rights({"none": NONE, "would": would}, root=False)
    require_rights({"writes": writes}, root=True)
    for policy in (writes, must):
        with pytest.raises(MissingError, match=f"policy '{policy.name}' writes .*: on the host itself that takes root"):
            require_rights({policy.name: policy}, root=False)


def test_only_its_own_kernel_can_be_asked_for(tmp_path: Path) -> None:
    experiment = read(tmp_path, '[matrix]\nworkload = "gups"\n[run]\nmachine = "host"\n')
    lab = lab_for(experiment, make_lab(World(), tmp_path))
    assert lab.resolve_kernel(RUNNING).release == os.uname().release
    with pytest.raises(UserError, match="on the host itself it is the one that runs"):
        lab.resolve_kernel("stock")
    assert on_host.not_for_the_host(Running(machine="host", timeout=1)) == []
