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
    words = ["--out", str(out), "--policy", "fair", "--passes", str(PASSES)]
    done = CliRunner().invoke(command, words, standalone_mode=False, catch_exceptions=False)
    value = json.loads((out / "cost.json").read_text())
    assert (value["differences"], value["missing"], value["complaints"]) == ([], {}, [])
    # Two sizes, equal memory and not, 1, 2 and 4 threads and `fair`.
    assert len(value["cases"]) == 2 * 2 * 4
    off = [case for case in value["cases"] if (case["threads"], case["policy"]) == (1, "none")]
    assert [len(case["ratio_by_pass"]) for case in off] == [PASSES] * 4
    fast = [case["speedup"] for case in value["cases"] if case["threads"] == 4]
    assert len(fast) == 4
    assert None not in fast
    assert (value["broken"], value["unknown"]) == ([], [])
    assert done.return_value == 0
