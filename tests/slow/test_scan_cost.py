"""What scanning for equal pages costs, counted in instructions, against what is promised (`make test-full`)."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from nuksm.cost.__main__ import command
from numalab.kernel.images import resolve
from numalab.paths import ROOT
from numalab.run.counting import UNPATCHED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0), pytest.mark.patch_set("nuksm")]

PASSES = 4


def test_no_bound_is_exceeded() -> None:
    for name in ("patched", UNPATCHED):
        resolve(name, build=True)
    out = ROOT / "results" / "scan-cost"
    words = ["--out", str(out), "--size", "8M", "--size", "32M", "--policy", "fair", "--passes", str(PASSES)]
    done = CliRunner().invoke(command, words, standalone_mode=False, catch_exceptions=False)
    value = json.loads((out / "cost.json").read_text())
    assert (value["differences"], value["missing"], value["complaints"]) == ([], {}, [])
    # Two sizes, equal memory and not, 1, 2 and 4 threads and `fair`.
    assert len(value["cases"]) == 2 * 2 * 4
    off = [case for case in value["cases"] if (case["threads"], case["policy"]) == (1, "none")]
    assert [len(case["ratio_by_pass"]) for case in off] == [PASSES] * 4
    # 2 × 8M is over before four threads have shared it: of 2 × 32M their speed has to be known.
    fast = [case for case in value["cases"] if (case["threads"], case["size"]) == (4, "32M")]
    assert all(case["speedup"] is not None for case in fast)
    assert value["broken"] == []
    assert done.return_value in (0, 3)
