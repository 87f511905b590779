"""What the kernel says of KSM, what programs print over time, and the tables made of results. No kernel: texts."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nuksm import figures, kernel, overtime, points, runs
from nuksm.metrics import Savings, Worker
from nuksm.policies import KSM
from numalab.cli.main import execute
from numalab.errors import ExperimentError
from numalab.kinds import Kind
from numalab.machine.outcome import Completed, GuestFileError

STAT = """\
ksm_rmap_items 1024
ksm_zero_pages 0
ksm_merging_pages 512
ksm_process_profit -4096
ksm_merge_any: no
ksm_mergeable: yes
ksm_numa_local 77
ksm_numa_remote 5
"""
WORKERS = """\
worker 0 node 0 scanned 1000 time_ns 500000
worker 1 node 1 scanned 900 time_ns 450000
merger handed 300 time_ns 200000
"""


class Guest:
    """Files, and dd."""

    def __init__(self, files: dict[str, bytes], pagemap: bytes = b"", status: int = 0) -> None:
        self.files, self.pagemap, self.status = files, pagemap, status
        self.ran: list[list[str]] = []

    def read_file(self, path: str) -> bytes:
        if path not in self.files:
            raise GuestFileError(path, 2)
        return self.files[path]

    def run(self, argv: list[str]) -> Completed:
        self.ran.append(argv)
        return Completed(argv, self.status, None, self.pagemap, b"dd: no such process\n")


def test_stat_of_a_process() -> None:
    found = kernel.parse_stat(STAT)
    assert found == {
        "ksm_rmap_items": 1024,
        "ksm_zero_pages": 0,
        "ksm_merging_pages": 512,
        "ksm_process_profit": -4096,
        "ksm_numa_local": 77,
        "ksm_numa_remote": 5,
    }
    assert kernel.stat(Guest({"/proc/7/ksm_stat": STAT.encode()}), 7) == found


def test_counters_that_a_kernel_lacks_are_missing() -> None:
    files = {f"{KSM}/{name}": b"5\n" for name in (*kernel.COUNTERS, "numa_copies")}
    found = kernel.counters(Guest(files))
    assert found == dict.fromkeys((*kernel.COUNTERS, "numa_copies"), 5)
    assert kernel.savings(found) == Savings(5, 5, 5)
    del files[f"{KSM}/numa_copies"]
    assert "numa_copies" not in kernel.counters(Guest(files))


def test_workers() -> None:
    scan = kernel.parse_workers(WORKERS)
    assert scan.workers == (Worker(0, 0, 1000, 500_000), Worker(1, 1, 900, 450_000))
    assert (scan.handed, scan.merger, scan.scanned, scan.longest) == (300, 200_000, 1900, 500_000)
    assert kernel.parse_workers("merger handed 0 time_ns 0\n").workers == ()


@pytest.mark.parametrize("text", ["", "worker 0 node 0 scanned 1 time_ns 2\n", WORKERS + "worker x\n"])
def test_what_is_no_account_of_workers(text: str) -> None:
    with pytest.raises(ExperimentError, match="scan_workers"):
        kernel.parse_workers(text)


def test_pages_by_node() -> None:
    assert kernel.parse_nodes("N0=12 N3=7\n") == {0: 12, 3: 7}
    assert kernel.parse_nodes("\n") == {}
    with pytest.raises(ExperimentError, match="not pages by node"):
        kernel.parse_nodes("N0=12 N1")


def entries(*frames: int | None) -> bytes:
    bits = [0 if frame is None else 1 << 63 | 1 << 61 | frame for frame in frames]
    return struct.pack(f"<{len(bits)}Q", *bits)


def test_frames_are_read_where_the_region_is() -> None:
    guest = Guest({}, entries(17, None, 0x7FFFFFFFFFFFFF & 99) + entries(*range(1, 510)))
    assert kernel.frames(guest, 7, 3).tolist() == [17, -1, 99]
    assert guest.ran == [["dd", "if=/proc/7/pagemap", "bs=4096", f"skip={(16 << 40) // 4096 * 8 // 4096}", "count=1"]]
    kernel.frames(guest, 7, 500, address=2 << 20)
    assert guest.ran[1][3:] == ["skip=1", "count=1"]


@pytest.mark.parametrize(
    ("guest", "words"),
    [
        (Guest({}, entries(1)), "pagemap"),  # too short
        (Guest({}, entries(1, 2, 3), status=1), "no such process"),
        (Guest({}, entries(0, 0, 0)), "the reader is not root"),
    ],
)
def test_frames_that_cannot_be_seen(guest: Guest, words: str) -> None:
    with pytest.raises(ExperimentError, match=words):
        kernel.frames(guest, 7, 3)


# Points.

OUT = """\
numalab-point: {"seconds": 0.5, "work": 1000, "passes": 1, "pages_sharing": 50, "node0": 3, "node1": 1}
numalab-point: {"seconds": 1.5, "work": 3000, "passes": 3, "pages_sharing": 100, "node1": 4}
btree: words for people
numalab-result: {}
"""


def test_points_of_a_program(tmp_path: Path) -> None:
    found = points.parse(OUT)
    assert len(found) == 2
    assert points.throughput(found) == [(1.5, 2000.0)]
    assert points.saved(found) == [(1.0, 50.0), (3.0, 100.0)]
    assert points.share_on(found, 0) == [(0.5, 0.75), (1.5, 0.0)]
    (tmp_path / "stdout-1.txt").write_text(OUT)
    assert points.of_cell(tmp_path, 1) == found


def test_points_of_a_kernel_without_ksm() -> None:
    found = points.parse('numalab-point: {"seconds": 1.0, "work": 5}\nnumalab-point: {"seconds": 1.0, "work": 6}\n')
    assert points.saved(found) == []
    assert points.share_on(found, 0) == []
    assert points.throughput(found) == [], "no time between two points: no rate"


@pytest.mark.parametrize("line", ["{", "[1]", '{"seconds": "x"}', '{"seconds": null}', "3"])
def test_what_is_no_point(line: str) -> None:
    with pytest.raises(ExperimentError, match="not a point"):
        points.parse(f"numalab-point: {line}\n")


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 10**9)), max_size=10))
def test_points_survive_printing(values: list[tuple[float, int]]) -> None:
    text = "".join(f"numalab-point: {json.dumps({'seconds': at, 'work': work})}\n" for at, work in values)
    assert [(point["seconds"], point["work"]) for point in points.parse(text)] == values


# Results.


def samples(**values: Any) -> list[dict[str, Any]]:
    return [{"metric": metric, "value": value, "unit": "", "kind": "counted"} for metric, value in values.items()]


def instance(number: int, *, begun: int, nice: int = 0, **values: Any) -> dict[str, Any]:
    return {"instance": number, "node": number, "nice": nice, "begun": begun, "samples": samples(**values)}


def result(*instances: dict[str, Any], **cell: Any) -> dict[str, Any]:
    place = {"kernel": "stock", "policy": "KSM", "workload": "reads", "repeat": 0, **cell}
    return {"cell": place, "outcome": {"type": "exit", "status": 0}, "instances": list(instances)}


def test_what_a_run_says(tmp_path: Path) -> None:
    (tmp_path / "stdout-0.txt").write_text(OUT)
    shared = {"ksm_pages_shared": 100, "ksm_pages_sharing": 100, "ksm_numa_copies": None}
    found = runs.run_of(
        result(
            instance(0, begun=1, nice=-11, local_share=0.25, numa_local=30, numa_remote=70, **shared),
            instance(1, begun=0, nice=-20, local_share=0.75, **{**shared, "ksm_pages_sharing": 90}),
        ),
        tmp_path,
    )
    assert found is not None
    assert (found.order, found.shares, found.weights) == ((1, 0), (0.25, 0.75), (1, 10))
    assert found.used == (0.3, None)
    assert found.savings == Savings(100, 100)
    assert found.passes == 3.0
    said = found.to_json()
    assert (said["spread_points"], said["ordered_by_weight"], said["tax"]) == (50.0, True, 0.5)
    assert said["weighted_tax"] == pytest.approx((0.75 + 10 * 0.25) / 11)
    json.dumps(said)


def test_shares_of_a_workload_that_only_samples_its_pages() -> None:
    one = instance(1, begun=0, sampled_pages_node0=256, sampled_pages_node1=768)
    assert runs.share_of(one) == 0.75
    assert runs.share_of(instance(1, begun=0, local_share=None)) is None
    assert runs.nodes_of(one["samples"], "sampled_pages") == {0: 256, 1: 768}


def test_what_says_nothing_is_left_out(tmp_path: Path) -> None:
    two = [instance(number, begun=number, local_share=0.5) for number in (0, 1)]
    assert runs.run_of(result(), tmp_path) is None
    assert runs.run_of(result(two[0]), tmp_path) is None
    assert runs.run_of(result(two[0], instance(1, begun=1)), tmp_path) is None
    failed = result(*two)
    failed["outcome"] = {"type": "exit", "status": 1}
    assert runs.run_of(failed, tmp_path) is None
    before_instances = result(*two)
    del before_instances["instances"]
    assert runs.run_of(before_instances, tmp_path) is None
    found = runs.run_of(result(*two), tmp_path)
    assert found is not None
    assert (found.savings, found.passes) == (None, None), "not counted is missing, not 0"


def test_snapshots_by_node() -> None:
    process = {"leaf": {"4K": [[10, 2], [0, 5]], "2M": [[0, 0], [0, 0]]}}
    assert runs.nodes_of_snapshot(process, [0, 1]) == {0: 10, 1: 7}


def write(directory: Path, cell_id: str, value: dict[str, Any], *, params: dict[str, Any] | None = None) -> None:
    place = directory / "cells" / cell_id
    place.mkdir(parents=True)
    cell = {
        **value["cell"],
        "id": cell_id,
        "experiment": "x",
        "topology": "two",
        "interference": "none",
        "params": params or {},
    }
    rest = {"samples": [], "interference": [], "counters": {}, "placement": [], "provenance": {}, "seconds": 1.0}
    whole = {**rest, **value, "cell": cell, "started": "now", "schema": 2, "kind": "numalab-result"}
    (place / "result.json").write_text(json.dumps(whole))


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for repeat, (first, second) in enumerate([(1.0, 0.0), (0.0, 1.0)]):
        shared = {"ksm_pages_shared": 10, "ksm_pages_sharing": 10}
        each = (instance(0, begun=0, local_share=first, **shared), instance(1, begun=1, local_share=second, **shared))
        write(tmp_path, f"{repeat:016x}", result(*each, repeat=repeat))
    with pytest.raises(SystemExit) as ended:
        execute(figures.command, [str(tmp_path)], name="figures")
    out = capsys.readouterr().out
    assert ended.value.code in (0, None)
    assert "0.50 (0.00–1.00)" in out
    assert "100.0 points" in out
    assert "missing" in out  # passes
    with pytest.raises(SystemExit):
        execute(figures.command, [str(tmp_path), "--json"], name="figures")
    assert [each["repeat"] for each in json.loads(capsys.readouterr().out)] == [0, 1]


# Over time.


def timed(number: int, **values: Any) -> dict[str, Any]:
    one = instance(number, begun=number, nice=-20, **values)
    one["samples"].append({"metric": "seconds", "value": 2.0, "unit": "s", "kind": "emulation-time"})
    return one


def test_over_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, f"{1:016x}", result(timed(0), timed(1)))
    cell = tmp_path / "cells" / f"{1:016x}"
    (cell / "stdout-0.txt").write_text(OUT)
    (cell / "stdout-1.txt").write_text("nothing\n")
    [series] = overtime.series_in(tmp_path)
    assert (series.instance, series.node, series.nice, series.kind) == (0, 0, -20, Kind.EMULATION_TIME)
    assert series.rows() == [(0.5, None, 0.75), (1.5, 2000.0, 0.0)]
    assert figures_status(tmp_path, "--over-time") == 0
    out = capsys.readouterr().out
    assert "wall time of the emulation (not a speed)" in out
    assert "2,000" in out
    assert "missing" in out, "of the first point there is no rate"
    assert figures_status(tmp_path, "--over-time", "--json") == 0
    [said] = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["throughput"]) == ("emulation-time", [[1.5, 2000.0]])
    (cell / "stdout-0.txt").unlink()
    assert figures_status(tmp_path, "--over-time") == 3


def test_times_without_a_kind_are_no_times(tmp_path: Path) -> None:
    write(tmp_path, f"{1:016x}", result(instance(0, begun=0), instance(1, begun=1)))
    (tmp_path / "cells" / f"{1:016x}" / "stdout-0.txt").write_text(OUT)
    with pytest.raises(ExperimentError, match="does not say of what kind its times are"):
        overtime.series_in(tmp_path)


def figures_status(directory: Path, *words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        execute(figures.command, [str(directory), *words], name="figures")
    return int(ended.value.code or 0)
