"""Results as frames and placements: every value once, kinds kept, missing stays missing."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import dataset, export, frames
from analysis.files import write_file
from analysis.placement import grouped, placements
from numalab.errors import ExperimentError, MissingError, UserError
from numalab.kinds import Kind
from numalab.measure.pagetable import Tables
from numalab.measure.snapshot import ProcessPlacement, Root, Snapshot
from numalab.results import succeeded
from tests.unit import synthetic_results as synthetic

FIXTURE = Path(__file__).parents[1] / "fixtures" / "results" / "two-cells"


@pytest.fixture
def data(tmp_path: Path) -> dataset.Dataset:
    return dataset.load(synthetic.write(tmp_path / "run", synthetic.many(synthetic.emulated)))


def test_every_sample_is_one_row(data: dataset.Dataset) -> None:
    samples = data.values[data.values["source"] == "workload"]
    assert len(samples) == sum(len(result["samples"]) for result in data.results) == 2 * 24
    assert list(data.values.columns) == list(frames.COLUMNS)
    assert set(samples["kind"]) == {"emulation-time", "counted"}
    first = data.results[0]["samples"][0]
    row = samples.iloc[0]
    assert (row["metric"], row["unit"], row["value"]) == (first["metric"], first["unit"], first["value"])


def test_missing_stays_missing(data: dataset.Dataset) -> None:
    perf = data.values[data.values["metric"] == "perf:cycles"]
    assert len(perf) == 24 and perf["value"].isna().all()
    result = synthetic.result(samples=[synthetic.sample("rate", None, "1/s", "measured")])
    assert frames.values([result]).query("metric == 'rate'")["value"].isna().all()
    text = export.to_bytes(frames.values([result]), "csv").decode()
    assert next(line for line in text.splitlines() if ",rate," in line).endswith(",NA")


@pytest.mark.parametrize(
    ("value", "wanted"), [(3, 3.0), (0, 0.0), (None, None), ("7", None), (True, None), (float("nan"), None)]
)
def test_only_numbers_are_numbers(value: object, wanted: float | None) -> None:
    assert frames.number(value) == wanted


def test_counters_are_named_in_full_and_carry_a_kind(data: dataset.Dataset) -> None:
    names = set(data.values["metric"])
    assert {"vmstat:pgfault", "numastat:node0:numa_hit", "measured:vmstat:pgfault", "perf:cycles"} <= names
    counters = data.values[data.values["source"].isin(["vmstat", "numastat", "measured", "perf"])]
    assert set(counters["kind"]) == {"counted"}
    result = synthetic.result()
    result["counters"] |= {"vmstat": None, "numastat": None, "measured": None, "kind": None}
    result["provenance"]["machine"] = None
    found = frames.values([result])
    assert not found["metric"].str.startswith("vmstat").any()
    assert found.loc[found["metric"] == "perf:cycles", "kind"].isna().all()


def test_failed_cells_are_rows_that_are_not_ok() -> None:
    bad = synthetic.result(outcome={"type": "panic", "status": None}, samples=[])
    nonzero = synthetic.result(repeat=1, outcome={"status": 3})
    good = synthetic.result(repeat=2)
    cells = frames.outcomes([bad, nonzero, good])
    assert list(cells["ok"]) == [succeeded(bad), succeeded(nonzero), succeeded(good)] == [False, False, True]
    assert pd.isna(cells["status"][0]) and cells["status"][1] == 3
    assert not frames.values([nonzero])["ok"].any()


def test_placement_frames_add_up(data: dataset.Dataset) -> None:
    pages = frames.table_pages(data.placements)
    leaf = frames.leaf_entries(data.placements)
    for placement in data.placements:
        mine = pages[pages["cell"] == placement.cell["id"]]
        assert mine["pages"].sum() == placement.pages.sum()
        assert leaf[leaf["cell"] == placement.cell["id"]]["entries"].sum() == placement.leaf.sum()
    assert set(pages["level"]) == {"PTE", "PMD", "PUD", "PGD"}
    assert set(pages["kind"]) == {"counted"}


def test_shares_of_nodes_without_cpus_are_missing() -> None:
    result = synthetic.result()
    result["placement"][0]["summary"] = synthetic.summary("interleave", cpu_nodes=[0, 1])
    [placement] = placements(result, None)
    assert list(np.isnan(placement.remote)) == [False, False, True, True]
    shares = frames.remote_shares([placement])
    assert list(shares["remote_share"].isna()) == [False, False, True, True]


def test_processes_weigh_as_much_as_they_map() -> None:
    result = synthetic.result()
    big, small = synthetic.summary("remote-tables", leaves=3000), synthetic.summary("first-touch", leaves=1000)
    summary = result["placement"][0]["summary"] = big
    big["processes"] += small["processes"]
    [placement] = placements(result, Kind.COUNTED)
    assert placement.remote[0] == pytest.approx((3000 * 1.0 + 1000 * 0.5) / 4000)
    assert placement.remote[3] == pytest.approx((3000 * 0.0 + 1000 * 0.9) / 4000)
    assert placement.leaf.sum() == 4000
    assert len(summary["processes"]) == len(placement.processes) == 2


def test_a_snapshot_that_failed_gives_nothing() -> None:
    result = synthetic.result()
    result["placement"] = [{"mark": "ready", "file": None, "summary": None}]
    assert placements(result, Kind.COUNTED) == []
    result["placement"] = [{"mark": "ready", "file": "x", "summary": synthetic.summary("none") | {"processes": []}}]
    assert placements(result, Kind.COUNTED) == []


def test_groups_are_one_point_and_mark_each(data: dataset.Dataset) -> None:
    groups = grouped(data.placements)
    assert len(groups) == 8 and {group.n for group in groups} == {3}
    assert {group.mark for group in groups} == {"ready"}


def test_what_the_laboratory_writes_is_what_is_read_here() -> None:
    """A real snapshot object, through its own JSON: two trees, one of them a replica for node 1."""
    tables = Tables(
        root=np.array([0, 0, 1, 1], np.int32),
        level=np.array([4, 1, 4, 1], np.int8),
        frame=np.array([10, 11, 110, 111], np.int64),
        va=np.zeros(4, np.uint64),
        parent=np.array([-1, 0, -1, 2], np.int32),
        refs=np.ones(4, np.int32),
        leaves=np.array([[0, 0, 0, 0], [6, 2, 1, 0], [0, 0, 0, 0], [6, 2, 1, 0]], np.int32),
    )
    process = ProcessPlacement(
        pid=7,
        comm="gups",
        nodes=(0, 1),
        levels=4,
        roots=(Root((0,), 10), Root((1,), 110)),
        tables=tables,
        table_node=np.array([0, 0, 1, 1], np.int16),
        deposited=np.zeros(2, np.int64),
    )
    snapshot = Snapshot((process,), nodes=(0, 1), cpu_nodes=(0, 1), levels=4, kind=Kind.COUNTED)
    result = synthetic.result()
    result["placement"] = [{"mark": "ready", "file": "snapshot-ready.npz", "summary": snapshot.to_json()}]
    [placement] = placements(result, None)
    assert placement.pages.tolist() == snapshot.table_pages.tolist()
    assert placement.leaf.tolist() == process.leaf.tolist()
    assert list(placement.remote) == [process.remote_share(0), process.remote_share(1)] == [0.0, 0.0]
    assert placement.trees == 2 and placement.kind is Kind.COUNTED
    assert placement.apart == pytest.approx(1 - (6 + 2) / 16)


def test_the_format_of_yesterday_is_still_read() -> None:
    data = dataset.load(FIXTURE)
    assert len(data.results) == 2 and data.corrupt == [] and data.waiting == 0
    assert data.axis("policy") == ["first-touch", "interleave"]
    assert data.baseline("policy") == "first-touch"
    [touch, interleave] = [each.remote.tolist() for each in data.placements]
    assert interleave == [0.75] * 4 and touch[0] == pytest.approx(0.5, abs=1e-3)


# Directories that are not as they should be.


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        dataset.load(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not a directory"):
        dataset.load(tmp_path / "file")
    with pytest.raises(UserError, match="no results here"):
        dataset.load(tmp_path)


def test_damaged_results_are_left_out_and_named(tmp_path: Path) -> None:
    results = synthetic.many(synthetic.emulated, repeats=1)
    directory = synthetic.write(tmp_path / "run", results)
    broken = directory / "cells" / results[0]["cell"]["id"] / "result.json"
    broken.write_text(broken.read_text()[:500])
    data = dataset.load(directory)
    assert len(data.results) == 7
    assert [error.path for error in data.corrupt] == [broken]
    assert data.waiting == 1


def test_all_damaged(tmp_path: Path) -> None:
    results = synthetic.many(synthetic.emulated, repeats=1, workloads=("gups",), policies=("none",))
    directory = synthetic.write(tmp_path / "run", results)
    for path in directory.glob("cells/*/result.json"):
        path.write_bytes(b"\x00\xff junk")
    with pytest.raises(ExperimentError, match="all 1 result files are damaged"):
        dataset.load(directory)


def test_newer_results_are_refused(tmp_path: Path) -> None:
    result = synthetic.result() | {"schema": 99}
    with pytest.raises(UserError, match="schema 99 is newer"):
        dataset.load(synthetic.write(tmp_path / "run", [result]))


def test_a_directory_without_experiment_file(tmp_path: Path) -> None:
    directory = synthetic.write(tmp_path / "run", synthetic.many(synthetic.emulated, repeats=1), experiment=False)
    data = dataset.load(directory)
    assert data.experiment is None and data.waiting == 0
    assert data.axis("workload") == ["btree", "gups"]
    (directory / "experiment.json").write_text("{")
    data = dataset.load(directory)
    assert data.experiment is None and [error.path.name for error in data.corrupt] == ["experiment.json"]


# Export.


def test_csv_reads_back(data: dataset.Dataset, tmp_path: Path) -> None:
    write_file(tmp_path / "values.csv", export.to_bytes(data.values, "csv"))
    back = pd.read_csv(tmp_path / "values.csv", na_values=["NA"], keep_default_na=False)
    assert len(back) == len(data.values)
    assert back["value"].isna().sum() == data.values["value"].isna().sum() > 0
    assert back["value"].sum() == pytest.approx(float(data.values["value"].sum()))


def test_json_has_null_for_missing(data: dataset.Dataset) -> None:
    records = pd.read_json(io.BytesIO(export.to_bytes(data.values, "json")))
    assert records["value"].isna().sum() == data.values["value"].isna().sum()
    assert b'"value":null' in export.to_bytes(data.values, "json")


def test_parquet_without_pyarrow_names_the_extra(data: dataset.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(MissingError) as caught:
        export.to_bytes(data.values, "parquet")
    assert "numalab[parquet]" in caught.value.remedy


def test_parquet_reads_back(data: dataset.Dataset, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")
    write_file(tmp_path / "values.parquet", export.to_bytes(data.values, "parquet"))
    back = pd.read_parquet(tmp_path / "values.parquet")
    assert back["value"].isna().sum() == data.values["value"].isna().sum()
    assert list(back["metric"]) == list(data.values["metric"])


def test_export_into_a_directory_is_refused(data: dataset.Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        write_file(tmp_path, export.to_bytes(data.values, "csv"))


def test_analysis_knows_nothing_of_machines() -> None:
    """It may import of numalab only what describes results."""
    allowed = {"results", "kinds", "errors", "paths", "units"}
    root = Path(dataset.__file__).parent
    modules = sorted(root.glob("*.py"))
    assert len(modules) > 10
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if name.split(".")[0] == "numalab":
                    assert name.split(".")[1] in allowed, f"{path.name} imports {name}"
