"""The result directory: names, links, atomicity; and reading it back across schemas."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from numalab import results
from numalab.errors import UserError
from numalab.results import CorruptResultError, NewerSchemaError, load_result, load_results
from numalab.run import store

TODAY = date(2026, 11, 21)
RESULT: dict[str, Any] = {
    "schema": 2,
    "kind": "numalab-result",
    "cell": {
        "id": "0123456789abcdef",
        "experiment": "x",
        "kernel": "stock",
        "topology": "four",
        "workload": "gups",
        "policy": "none",
        "interference": "none",
        "repeat": 0,
        "params": {},
    },
    "outcome": {"type": "exit", "status": 0},
    "samples": [],
    "interference": [],
    "counters": {},
    "placement": [],
    "provenance": {},
    "started": "2026-11-21T03:00:00+00:00",
    "seconds": 1.5,
}


def write(top: Path, value: object, name: str = "0123456789abcdef") -> Path:
    path = top / "cells" / name / "result.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


def test_default_directories(tmp_path: Path) -> None:
    def place(*, resume: bool = False, today: date = TODAY) -> str:
        return store.default_directory("x", resume=resume, today=today, base=tmp_path).name

    assert place() == "x-2026-11-21"
    assert place(resume=True) == "x-2026-11-21"
    for name in ("x-2026-11-20", "x-2026-11-21", "x-2026-11-21-2", "x-2026-11-21-10", "x-y-2027-01-01"):
        (tmp_path / name).mkdir()
    assert place() == "x-2026-11-21-3"
    assert place(resume=True) == "x-2026-11-21-10"
    assert place(today=date(2026, 12, 1)) == "x-2026-12-01"


def test_latest_follows(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        store.point_latest(tmp_path / name)
        assert (tmp_path / "_latest").readlink() == Path(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_latest", "one", "two"]


def test_a_cell_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with store.opened(tmp_path / "out") as opened:
        with pytest.raises(ValueError, match="midway"), opened.new_cell("0123456789abcdef") as partial:
            (partial / "stdout.txt").write_text("half")
            raise ValueError("midway")
        assert list(opened.cells.iterdir()) == []
        with opened.new_cell("0123456789abcdef") as partial:
            (partial / "stdout.txt").write_text("all")
            assert not list(opened.cells.glob("[0-9a-f]*"))
            opened.commit(partial, {key: RESULT[key] for key in RESULT if key not in ("schema", "kind")})
        assert [path.name for path in opened.cells.iterdir()] == ["0123456789abcdef"]
        assert load_result(opened.cells / "0123456789abcdef" / "result.json") == RESULT


def test_nothing_is_overwritten_when_moved_aside(tmp_path: Path) -> None:
    opened = store.Store(tmp_path)
    for text in ("a", "b", "c"):
        write(tmp_path, text.encode())
        opened.move_aside("0123456789abcdef", "corrupt")
    found = {path.parent.name: path.read_text() for path in tmp_path.glob("cells/*/result.json")}
    base = "0123456789abcdef.corrupt"
    assert found == {base: "a", f"{base}-2": "b", f"{base}-3": "c"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (b"", "Expecting value"),
        (b'{"schema": 1', "Expecting ',' delimiter"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (b"[]", 'it lacks "kind"'),
        ({"kind": "else"}, 'it lacks "kind": "numalab-result"'),
        ({"schema": "1"}, "schema is '1', not a number from 1"),
        ({"schema": True}, "schema is True, not a number from 1"),
        ({"samples": None}, "samples is NoneType"),
        ({"outcome": {}}, "outcome.type is missing"),
        ({"cell": {**RESULT["cell"], "repeat": "0"}}, "cell.repeat is str"),
        ({"cell": {**RESULT["cell"], "id": "f" * 16}}, "it is the result of cell ffffffffffffffff"),
    ],
)
def test_a_broken_result_is_named(tmp_path: Path, change: object, why: str) -> None:
    path = write(tmp_path, change if isinstance(change, bytes) else RESULT | change)  # type: ignore[operator]
    with pytest.raises(CorruptResultError) as caught:
        load_result(path)
    assert str(caught.value).startswith(f"{path}: not a result file: ")
    assert why in str(caught.value)


def test_broken_results_are_listed_beside_the_good_ones(tmp_path: Path) -> None:
    write(tmp_path, RESULT)
    broken = write(tmp_path, b"{", "1" * 16)
    write(tmp_path, b"{", "2" * 16 + ".corrupt")
    write(tmp_path, b"{", ".partial-" + "3" * 16)
    loaded = load_results(tmp_path)
    assert loaded.results == [RESULT]
    assert [error.path for error in loaded.corrupt] == [broken]


def test_no_results(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results here"):
        load_results(tmp_path)


def test_older_schemas_are_upgraded_and_newer_ones_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_2(value: dict[str, Any]) -> dict[str, Any]:
        return {**value, "schema": 3, "seconds": value["seconds"] * 1000}

    path = write(tmp_path, RESULT)
    monkeypatch.setattr(results, "RESULT_SCHEMA", 3)
    monkeypatch.setattr(results, "UPGRADERS", {2: from_2})
    assert load_result(path)["seconds"] == 1500
    monkeypatch.undo()
    path.write_text(json.dumps(RESULT | {"schema": 7}))
    with pytest.raises(NewerSchemaError, match="schema 7 is newer than the schema 2"):
        load_results(tmp_path)


def test_schema_1_knew_no_interference(tmp_path: Path) -> None:
    cell = {key: value for key, value in RESULT["cell"].items() if key != "interference"}
    old = {key: value for key, value in RESULT.items() if key != "interference"} | {"schema": 1, "cell": cell}
    assert load_result(write(tmp_path, old)) == RESULT
    index = {"schema": 1, "kind": "numalab-experiment", "name": "x", "seed": 1, "order": [], "cells": [cell]}
    (tmp_path / "experiment.json").write_text(json.dumps(index))
    assert results.load_experiment(tmp_path)["cells"] == [RESULT["cell"]]


@pytest.mark.parametrize("cell", [None, "x", 3])
def test_an_old_result_of_another_shape(tmp_path: Path, cell: object) -> None:
    with pytest.raises(CorruptResultError, match="cell is "):
        load_result(write(tmp_path, RESULT | {"schema": 1, "cell": cell}))
    index = {"schema": 1, "kind": "numalab-experiment", "name": "x", "seed": 1, "order": [], "cells": cell}
    (tmp_path / "experiment.json").write_text(json.dumps(index))
    with pytest.raises(CorruptResultError, match="cells is "):
        results.load_experiment(tmp_path)


def test_every_schema_has_a_way_up() -> None:
    assert set(results.UPGRADERS) == set(range(1, results.RESULT_SCHEMA))
