"""docs/experiments.md and docs/results.md name every key there is."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from numalab.paths import ROOT
from numalab.results import OUTCOMES, load_experiment, load_results
from numalab.run import spec
from tests.unit.test_run_runner import ONE, Bench

WORDS = {
    name: set(re.findall(r"`([\w-]+)`", (ROOT / "docs" / name).read_text()))
    for name in ("experiments.md", "results.md")
}


def test_every_key_of_an_experiment_file() -> None:
    source = Path(spec.__file__).read_text()
    read = set(re.findall(r"\.(?:get|count|seconds|size|words|table|tables)\(\s*\"(\w+)\"", source))
    keys = {*read, *spec.AXES, *(field.name for field in (*fields(spec.Running), *fields(spec.Measure)))}
    described = WORDS["experiments.md"] | {"matrix", "exclude", "policies", "workloads", "topologies", "measure", "run"}
    # The two keys of a node stand in an example.
    assert keys - described == {"cpus", "memory"}
    assert len(keys) > 30


def test_every_field_of_the_results(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run("repeats = 1\n" + ONE)
    result = load_results(bench.out).results[0]
    names = {*result, *load_experiment(bench.out), *result["cell"], *result["outcome"], *result["counters"]}
    names |= {*result["provenance"], *result["provenance"]["host"], *result["provenance"]["git"]}
    names |= {
        *result["samples"][0],
        *result["placement"][0],
        *result["marks"][0],
        *load_experiment(bench.out)["runs"][0],
    }
    assert names - WORDS["results.md"] == set()


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_every_outcome(outcome: str) -> None:
    assert outcome in WORDS["results.md"]
