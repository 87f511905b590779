"""What a snapshot says: counts, shares, replicas, the kernel's account; and its archive."""

from __future__ import annotations

import io
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from numalab.errors import ExperimentError, UserError
from numalab.measure import archive, selfcheck
from numalab.measure.counters import parse_status
from numalab.measure.pagetable import UNLINKED, Tables
from numalab.measure.snapshot import SCHEMA, Root, Seen, Snapshot
from tests.unit.guest_memory import GuestMemory
from tests.unit.snapshots import lazily_replicated, placement, replicated, snapshot, tree, unreplicated


def test_table_pages_by_level_and_node() -> None:
    assert unreplicated().table_pages.tolist() == [[0, 1, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]]


def test_leaves_by_size_table_node_and_data_node() -> None:
    process = unreplicated()
    assert process.leaf[0].tolist() == [[0, 0, 0], [4, 2, 0], [0, 0, 0]]
    assert process.leaf[1].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert process.leaf[2].sum() == 0
    assert process.leaf_zero[0].tolist() == [0, 1, 0]
    assert process.leaf_other[0].tolist() == [0, 1, 0]


def test_shares_as_seen_from_each_node() -> None:
    process = unreplicated()
    assert [process.local_share(node) for node in (0, 1, 2)] == [0.0, 1.0, 0.0]
    assert [process.remote_share(node) for node in (0, 1, 2)] == [1.0, 0.0, 1.0]


def test_each_node_sees_its_own_replica() -> None:
    process = replicated()
    assert [process.root_seen_from(node) for node in (0, 1, 2)] == [0, 1, 0]
    assert [process.local_share(node) for node in (0, 1, 2)] == [1.0, 1.0, 0.0]
    assert [process.remote_share(node) for node in (0, 1, 2)] == [0.0, 0.0, 1.0]
    assert [process.remote_share_of_primary(node) for node in (0, 1, 2)] == [0.0, 1.0, 1.0]
    assert process.table_pages.tolist() == [[1, 1, 0]] * 4
    assert process.table_pages_of(0).tolist() == [[1, 0, 0]] * 4
    assert process.table_pages_of(1).tolist() == process.replica_pages.tolist() == [[0, 1, 0]] * 4
    assert process.leaf_of(0).sum() == process.leaf_of(1).sum() == 9
    assert process.leaf[0].sum() == 12


def test_a_lazy_replica_has_a_part_of_the_entries() -> None:
    process = lazily_replicated()
    # Node 1: three entries in its own page, two behind the pass-through; the primary has eight, two, and one of 2M.
    assert [process.seen_from(node) for node in (0, 1, 2)] == [Seen(9, 2, 0), Seen(5, 0, 6), Seen(0, 0, 11)]
    assert {process.seen_from(node).entries for node in (0, 1, 2)} == {11}
    assert process.local_share(1) == pytest.approx(5 / 11)
    assert process.unfilled_share(1) == pytest.approx(6 / 11)
    assert process.remote_share(1) == 0.0
    assert process.remote_share(2) is None  # a walk finds nothing yet: missing, not zero
    assert process.remote_share_of_primary(2) == 1.0


def test_a_pass_through_is_the_primarys_table() -> None:
    process = lazily_replicated()
    assert process.passthrough == (1, 0)
    assert process.table_pages_of(0).sum() == 5
    assert process.replica_pages.tolist() == [[0, 2, 0], [0, 1, 0], [0, 1, 0], [0, 2, 0]]
    assert process.table_pages.sum() == 5 + 6
    far = replace(process, roots=(*process.roots[:1], replace(process.roots[1], home=0), *process.roots[2:]))
    assert far.passthrough == (0, 1)


def test_replicas_that_no_root_reaches_hold_memory_and_nothing_else() -> None:
    process = lazily_replicated()
    assert process.table_pages_of(UNLINKED).tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert process.leaf_of(UNLINKED).sum() == 0
    # 4 of the primary below its top, 1 deposited, and of 6 replicas those that are no top pages.
    assert process.accounted_bytes() == (4 + 1 + 4) * 4096
    assert process.to_json()["replication"]["unlinked_pages"][0] == [0, 1, 0]


def test_replication_in_json() -> None:
    found = lazily_replicated().to_json()
    assert found["replication"] | {"unlinked_pages": []} == {
        "mode": "lazy",
        "active": True,
        "domains": [1, 2],
        "primary_pages": [[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]],
        "replica_pages": [[0, 2, 0], [0, 1, 0], [0, 1, 0], [0, 2, 0]],
        "unlinked_pages": [],
        "passthrough": {"local": 1, "remote": 0},
    }
    assert [(root["domain"], root["nodes"]) for root in found["roots"]] == [(None, [0]), (1, [1]), (2, [2])]
    assert found["seen"]["1"] == {"local": 5, "remote": 0, "unfilled": 6}
    assert found["remote_share"] == {"0": pytest.approx(2 / 11), "1": 0.0, "2": None}
    plain = unreplicated().to_json()
    assert plain["replication"] is None
    assert plain["remote_share"] == plain["remote_share_of_primary"]
    assert set(plain["unfilled_share"].values()) == {0.0}


def test_a_page_that_replicas_share_counts_once() -> None:
    memory = GuestMemory(4)
    first = tree(memory, [0x10, 0x11, 0x12, 0x13])
    memory.table(0x1010)
    memory.link(0x1010, 1, 0x11)
    process = placement(memory, [Root((0,), first), Root((1,), 0x1010)])
    assert process.table_pages.sum() == 5
    assert process.table_pages_of(0).sum() == process.table_pages_of(1).sum() == 4
    assert process.leaf.sum() + process.leaf_zero.sum() + process.leaf_other.sum() == 9


def test_nothing_mapped_is_missing_not_zero() -> None:
    memory = GuestMemory(4)
    memory.table(0x10)
    process = placement(memory, [Root((0, 1, 2), 0x10)])
    assert process.local_share(0) is None
    assert process.remote_share(0) is None
    assert process.to_json()["local_share"] == {"0": None, "1": None, "2": None}


def test_pages_that_processes_share_count_once_in_all() -> None:
    both = snapshot(unreplicated(), replace(unreplicated(), pid=44))
    assert both.table_pages.tolist() == unreplicated().table_pages.tolist()


def test_agreement_with_the_kernels_account() -> None:
    process = unreplicated()
    assert process.accounted_bytes() == 4 * 4096  # PUD, PMD, PTE and one deposited; not the PGD
    assert selfcheck.against_account(snapshot(process, replicated(), lazily_replicated())) == []
    selfcheck.check(snapshot(process))
    wrong = replace(process, pgtables_bytes=5 * 4096)
    (difference,) = selfcheck.against_account(snapshot(wrong))
    assert str(difference) == "process 42: page-table bytes: walked 16384, the kernel says 20480"
    with pytest.raises(ExperimentError, match="process 42"):
        selfcheck.check(snapshot(wrong))
    assert selfcheck.against_account(snapshot(replace(process, pgtables_bytes=None))) == []


def test_agreement_with_status(fixtures: Path) -> None:
    status = parse_status((fixtures / "counters" / "status.txt").read_text())
    assert status.page_tables == 176 * 4096
    assert len(selfcheck.against_status(unreplicated(), status)) == 1
    assert selfcheck.against_status(unreplicated(), replace(status, page_tables=4 * 4096)) == []


def test_a_table_shared_inside_a_process_is_accounted_per_entry() -> None:
    memory = GuestMemory(4)
    top = tree(memory, [0x10, 0x11, 0x12, 0x13])
    memory.link(0x11, 200, 0x12)  # hugetlb PMD sharing
    process = placement(memory, [Root((0, 1, 2), top)])
    assert process.table_pages.sum() == 4
    assert process.accounted_bytes() == (3 + 1 + 1) * 4096


def equal(one: Snapshot, other: Snapshot) -> bool:
    plain = all(getattr(one, f.name) == getattr(other, f.name) for f in fields(Snapshot) if f.name != "processes")
    for mine, yours in zip(one.processes, other.processes, strict=True):
        for field in fields(mine):
            left, right = getattr(mine, field.name), getattr(yours, field.name)
            if isinstance(left, Tables):
                plain &= all(np.array_equal(getattr(left, f.name), getattr(right, f.name)) for f in fields(Tables))
            else:
                plain &= bool(np.all(left == right))
    return plain


@pytest.mark.parametrize(
    "made",
    [snapshot(unreplicated(), replicated()), snapshot(lazily_replicated()), snapshot(unreplicated()), snapshot()],
)
def test_archive_round_trip(made: Snapshot, tmp_path: Path) -> None:
    path = tmp_path / "snapshot.npz"
    archive.save(made, path)
    again = archive.load(path)
    assert equal(made, again)
    assert json.dumps(made.to_json()) == json.dumps(again.to_json())


def rewrite(path: Path, change: dict[str, Any], drop: str = "") -> None:
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files if name != drop}
    meta = json.loads(arrays["meta"].tobytes()) if "meta" in arrays else {}
    for key, value in change.items():
        if key in arrays:
            arrays[key] = value
        else:
            meta[key] = value
            arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    path.write_bytes(out.getvalue())


def test_an_archive_of_schema_1_is_still_read(tmp_path: Path) -> None:
    """It knew no replicas: roots without a domain, processes without a word on replication."""
    path = tmp_path / "old.npz"
    archive.save(snapshot(unreplicated()), path)
    with np.load(path) as stored:
        processes = json.loads(stored["meta"].tobytes())["processes"]
    for process in processes:
        assert process.pop("replication") is None
        process["roots"] = [{"nodes": root["nodes"], "frame": root["frame"]} for root in process["roots"]]
    rewrite(path, {"schema": 1, "processes": processes})
    assert equal(archive.load(path), snapshot(unreplicated()))


def test_a_newer_archive_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "future.npz"
    archive.save(snapshot(unreplicated()), path)
    rewrite(path, {"schema": SCHEMA + 1})
    with pytest.raises(UserError, match=rf"future\.npz: a snapshot of schema {SCHEMA + 1}") as caught:
        archive.load(path)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("drop", ["meta", "frame", "leaves", "process", "deposited"])
def test_an_archive_that_lacks_something_is_refused(drop: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.npz"
    archive.save(snapshot(unreplicated()), path)
    rewrite(path, {}, drop)
    with pytest.raises(UserError, match=r"broken\.npz: .*damaged"):
        archive.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"frame": np.zeros(3, np.int64)},
        {"leaves": np.zeros((4, 9), np.int16)},
        {"process": np.array([0, 0, 0, 1], np.int32)},
        {"root": np.array([0, 0, 0, 1], np.int32)},
        {"root": np.array([0, 0, 0, -2], np.int32)},
        {"node": np.array([0, 0, 0, 3], np.int16)},
        {"node": np.array([0, 0, 0, -1], np.int16)},
        {"level": np.array([4, 3, 2, 0], np.int8)},
        {"level": np.array([5, 3, 2, 1], np.int8)},
        {"format": "something else"},
        {"number_kind": "guessed"},
        {"processes": [{}]},
        {"nodes": [0, 1, 2, 3]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_archive_that_contradicts_itself_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "odd.npz"
    archive.save(snapshot(unreplicated()), path)
    rewrite(path, change)
    with pytest.raises(UserError, match=r"odd\.npz: "):
        archive.load(path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.npz"
    archive.save(snapshot(unreplicated()), path)
    whole = path.read_bytes()
    for content in (b"", b"not a zip at all", whole[: len(whole) // 2], whole[:300] + b"\xff" * 40 + whole[340:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"cut\.npz"):
            archive.load(path)
    with pytest.raises(UserError, match="no such file"):
        archive.load(tmp_path / "absent.npz")


@pytest.fixture
def fixtures() -> Path:
    return Path(__file__).parent.parent / "fixtures"
