"""docs/experiments.md and docs/results.md name every key there is."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from numalab.paths import ROOT
from numalab.results import OUTCOMES, load_experiment, load_results
from numalab.run import instances, interference, spec, topologies
from tests.unit.test_run_runner import ONE, Bench

WORDS = {
    name: set(re.findall(r"`([\w-]+)`", (ROOT / "docs" / name).read_text()))
    for name in ("experiments.md", "results.md")
}


def test_every_key_of_an_experiment_file() -> None:
    source = "".join(Path(str(each.__file__)).read_text() for each in (spec, topologies, interference, instances))
    read = set(re.findall(r"\.(?:get|count|seconds|size|words|table|tables)\(\s*\"(\w+)\"", source))
    keys = {*read, *spec.AXES, *(field.name for field in (*fields(spec.Running), *fields(spec.Measure)))}
    tables = {"matrix", "exclude", "policies", "workloads", "topologies", "interference", "measure", "run"}
    assert keys - WORDS["experiments.md"] - tables == set()
    assert len(keys) > 30


def test_every_field_of_the_results(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    beside = 'workload = "gups"\ninterference = "far"\n[interference.far]\nnode = 1'
    bench.run("repeats = 1\n" + ONE.replace('workload = "gups"', beside).replace('"64M"', '"128M"'))
    result = load_results(bench.out).results[0]
    names = {*result, *load_experiment(bench.out), *result["cell"], *result["outcome"], *result["counters"]}
    names |= {*result["provenance"], *result["provenance"]["host"], *result["provenance"]["git"]}
    names |= {
        *result["samples"][0],
        *result["interference"][0],
        *result["placement"][0],
        *result["marks"][0],
        *load_experiment(bench.out)["runs"][0],
    }
    assert names - WORDS["results.md"] == set()


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_every_outcome(outcome: str) -> None:
    assert outcome in WORDS["results.md"]
