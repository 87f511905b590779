"""What replication costs, counted in instructions, against what is promised (`make test-full`: most of an hour)."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from mitosis.cost.__main__ import command
from numalab.kernel.images import resolve
from numalab.paths import ROOT
from numalab.run.counting import UNPATCHED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]


def test_no_bound_is_exceeded() -> None:
    for name in ("patched", UNPATCHED):
        resolve(name, build=True)
    out = ROOT / "results" / "cost"
    done = CliRunner().invoke(command, ["--out", str(out)], standalone_mode=False, catch_exceptions=False)
    value = json.loads((out / "cost.json").read_text())
    assert (value["differences"], value["missing"], value["complaints"]) == ([], {}, [])
    rows = [(each["name"], row) for each in value["scenarios"] for row in each["rows"]]
    assert len(rows) == 4 * 5 * 2 * 3
    bad = [
        f"{name}: {row['op']} of {row['size']} {row['mapping']}: {row['ratio']}"
        for name, row in rows
        if row["exceeded"]
    ]
    assert bad == []
    assert done.return_value == 0
