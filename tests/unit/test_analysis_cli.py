"""The verbs report, compare and export: what they print, and their exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from numalab.cli.main import main
from tests.unit import synthetic_results as synthetic


@pytest.fixture
def run(tmp_path: Path) -> Path:
    policies = ("first-touch", "interleave")
    return synthetic.write(tmp_path / "run", synthetic.many(synthetic.emulated, repeats=4, policies=policies))


def numalab(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_report_prints_tables_and_path(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = numalab(capsys, "report", run)
    assert (status, err) == (0, "")
    assert f"report: {run / 'report.html'}" in out
    assert "remote share" in out and "PTE" in out and "counted in emulation" in out
    assert (run / "report.html").stat().st_size > 50_000


def test_report_quiet_and_json(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "x.html"
    assert numalab(capsys, "report", run, "--quiet", "--out", target) == (0, f"{target}\n", "")
    status, out, _ = numalab(capsys, "report", run, "--json", "--out", target)
    assert status == 0 and json.loads(out)["report"] == str(target) and json.loads(out)["cells"] == 16


def test_compare_within_and_between(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = numalab(capsys, "compare", run)
    assert status == 0 and "interleave" in out and "walk_references" in out
    status, out, _ = numalab(capsys, "compare", run, run, "--json")
    found = json.loads(out)["comparisons"]
    assert status == 0 and {each["finding"] for each in found} <= {"same", "no difference shown", "undecided"}
    status, out, _ = numalab(capsys, "compare", run, "--by", "policy", "--baseline", "interleave", "--json")
    assert status == 0 and {each["a"]["name"] for each in json.loads(out)["comparisons"]} == {"interleave"}


def test_export_formats(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = numalab(capsys, "export", run)
    assert status == 0 and out.startswith("cell,experiment,kernel,") and "emulation-time" in out
    status, out, _ = numalab(capsys, "export", run, "--what", "cells", "--json")
    assert status == 0 and len(json.loads(out)) == 16
    target = tmp_path / "pages.csv"
    status, out, err = numalab(capsys, "export", run, "--what", "table-pages", "--out", target)
    assert (status, out) == (0, "") and "256 rows" in err
    assert len(target.read_text().splitlines()) == 257


def test_damaged_files_are_named_and_do_not_stop_the_rest(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next(run.glob("cells/*/result.json"))
    path.write_text("no json")
    for verb in (("report", run), ("export", run)):
        status, _, err = numalab(capsys, *verb)
        assert status == 0 and f"left out: {path}" in err
    assert "1 planned cells have no result" in numalab(capsys, "report", run)[2]


@pytest.mark.parametrize("verb", ["report", "compare", "export"])
def test_bad_directories(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = numalab(capsys, verb, tmp_path / "nowhere")
    assert status == 2 and "no such directory" in err
    status, _, err = numalab(capsys, verb, tmp_path)
    assert status == 2 and "no results here" in err and "→" in err
    synthetic.write(tmp_path / "newer", [synthetic.result() | {"schema": 7}])
    status, _, err = numalab(capsys, verb, tmp_path / "newer")
    assert status == 2 and "newer than the schema" in err
    cells = synthetic.write(tmp_path / "broken", [synthetic.result()])
    next(cells.glob("cells/*/result.json")).write_bytes(b"")
    status, _, err = numalab(capsys, verb, tmp_path / "broken")
    assert status == 1 and "damaged" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "RUN", "--metric", "walk_refs"], "no metric 'walk_refs'"),
        (["compare", "RUN", "--baseline", "interleaf"], "did you mean 'interleave'"),
        (["compare", "RUN", "--by", "kernel"], "the only one"),
        (["compare", "RUN", "RUN", "--by", "policy"], "within one directory"),
        (["compare", "RUN", "RUN", "RUN"], "one directory or two"),
        (["export", "RUN", "--format", "parquet"], "--out"),
        (["export", "RUN", "--json", "--format", "csv"], "contradict"),
        (["report", "RUN", "--out", "RUN"], "RUN"),
    ],
)
def test_bad_usage_is_status_2(words: list[str], said: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = numalab(capsys, *(run if word == "RUN" else word for word in words))
    assert status == 2 and said.replace("RUN", str(run)) in err
