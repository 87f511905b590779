"""What vmitosis promises, all of it, on the kernel as it is now (`make test-full`): costs in bounds, guests survive."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from numalab.kernel.images import resolve
from numalab.paths import ROOT
from numalab.run.counting import UNPATCHED
from vmitosis.cost.__main__ import command as cost
from vmitosis.survival.__main__ import command as survival
from vmitosis.survival.scenarios import SCENARIOS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0), pytest.mark.patch_set("vmitosis")]


def test_no_bound_of_the_costs_is_exceeded() -> None:
    for name in ("patched", UNPATCHED):
        resolve(name, build=True)
    out = ROOT / "results" / "vmitosis-cost"
    done = CliRunner().invoke(cost, ["--out", str(out)], standalone_mode=False, catch_exceptions=False)
    value = json.loads((out / "cost.json").read_text())
    assert (value["differences"], value["missing"]) == ([], {})
    modes = {run["mode"]: run for run in value["runs"]}
    assert modes.keys() == {"kernel", "off", "local", "replicate"}
    # Without these numbers no bound can be exceeded.
    assert modes["off"]["fault_ratio"]
    assert modes["off"]["exit_ratio"]
    assert value["followed"]["old_gone"] <= value["followed"]["promised"]
    assert done.return_value == 0


@pytest.mark.parametrize("mode", ["off", "local", "replicate"])
def test_guests_survive_in_every_mode(mode: str) -> None:
    """All scenarios; what has survived on this very kernel before is not run again."""
    image = resolve("patched", build=True)
    out = ROOT / "results" / "survival"
    words = ["--mode", mode, "--resume", "--out", str(out)]
    done = CliRunner().invoke(survival, words, standalone_mode=False, catch_exceptions=False)
    runs = json.loads((out / "survival.json").read_text())["runs"]
    here = {each["scenario"]: each for each in runs if (each["mode"], each["kernel"]) == (mode, image.build_id)}
    assert here.keys() == set(SCENARIOS)
    assert {name: each.get("error") for name, each in here.items() if not each["survived"]} == {}
    assert done.return_value == 0
