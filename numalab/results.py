"""Reading a result directory: the one contract between the room that runs and the room that analyses.

Nothing here touches a machine; the format is documented field by field in `docs/results.md`.
A file of an older schema is upgraded while it is read, one of a newer schema is refused by name,
and a broken one is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numalab.errors import ExperimentError, UserError

Json = dict[str, Any]

RESULT_SCHEMA = 2
EXPERIMENT_SCHEMA = 2
RESULT_KIND = "numalab-result"
EXPERIMENT_KIND = "numalab-experiment"
RESULT_FILE = "result.json"
EXPERIMENT_FILE = "experiment.json"
CELLS = "cells"

#: The policy label of the A/A repetition of the baseline (`placebo = true` in an experiment file); no policy may be
#: called so.
PLACEBO = "placebo"
#: The label of cells in which nothing runs beside the program.
NO_INTERFERENCE = "none"

#: How a cell can end. The first seven are ends of the program or its machine; "no-result" is a program
#: that left with status 0 and printed no result line, "error" is the laboratory failing (a policy that
#: did not take, a snapshot that could not be made).
OUTCOMES = ("exit", "signal", "panic", "hang", "boot-failure", "qemu-died", "timeout", "no-result", "error")

#: What snapshots are compared by: metrics of a placement, behind its mark and ":"; and those there are of each node,
#: behind which stands ":node0" and so on.
PLACEMENT_METRICS = ("table_pages", "table_bytes", "table_overhead", "replica_pages", "table_apart_from_data")
PLACEMENT_METRICS_BY_NODE = ("table_pages", "remote_share")

#: Ends at which the machine was lost.
LOST = ("panic", "hang", "boot-failure", "qemu-died")


def _interference_in_result(value: Json) -> Json:
    """Schema 1 knew no interference: nothing ran beside the program."""
    return {**value, "schema": 2, "cell": _without_interference(value.get("cell")), "interference": []}


def _interference_in_experiment(value: Json) -> Json:
    cells = value.get("cells")
    if isinstance(cells, list):
        cells = [_without_interference(cell) for cell in cells]
    return {**value, "schema": 2, "cells": cells}


def _without_interference(cell: Any) -> Any:
    """A cell's place in the matrix with the axis that it lacks; what is no such thing is left for the checks."""
    return {**cell, "interference": NO_INTERFERENCE} if isinstance(cell, dict) else cell


#: Reads schema n, returns schema n + 1.
UPGRADERS: dict[int, Callable[[Json], Json]] = {1: _interference_in_result}
_EXPERIMENT_UPGRADERS: dict[int, Callable[[Json], Json]] = {1: _interference_in_experiment}

_CELL_ID = re.compile(r"[0-9a-f]{16}")
_SHAPE: Mapping[str, type | tuple[type, ...]] = {
    "cell": dict,
    "outcome": dict,
    "samples": list,
    "interference": list,
    "counters": dict,
    "placement": list,
    "provenance": dict,
    "started": str,
    "seconds": (int, float),
}
_CELL_SHAPE: Mapping[str, type] = {
    "id": str,
    "experiment": str,
    "kernel": str,
    "topology": str,
    "workload": str,
    "policy": str,
    "interference": str,
    "repeat": int,
    "params": dict,
}


class CorruptResultError(ExperimentError):
    """A result file that is no result: cut short, no JSON, or of another shape."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"{path}: not a result file: {why}",
            remedy="`numalab run ... --resume` moves it aside as .corrupt and runs the cell again",
        )
        self.path = path
        self.why = why


class NewerSchemaError(UserError):
    """A file written by a newer numalab than this one."""

    def __init__(self, path: Path, schema: int, known: int) -> None:
        super().__init__(
            f"{path}: schema {schema} is newer than the schema {known} that this numalab reads",
            remedy="upgrade numalab, or use the version that wrote the file",
        )


@dataclass(frozen=True)
class Results:
    """What a result directory holds: good results in order of cell id, and the files that are broken."""

    directory: Path
    results: list[Json]
    corrupt: list[CorruptResultError]


def succeeded(result: Json) -> bool:
    """Whether the cell's program ran to its end with status 0 and left a result."""
    outcome = result["outcome"]
    return bool(outcome["type"] == "exit" and outcome["status"] == 0)


def load_result(path: Path) -> Json:
    """Return the result in `path`, upgraded to the present schema.

    Raises:
        CorruptResultError: the file is damaged.
        NewerSchemaError: a newer numalab wrote it.
    """
    value = _upgraded(path, _read(path, RESULT_KIND), RESULT_SCHEMA, UPGRADERS)
    _check(path, value, _SHAPE, "")
    _check(path, value["cell"], _CELL_SHAPE, "cell.")
    _check(path, value["outcome"], {"type": str}, "outcome.")
    if value["cell"]["id"] != path.parent.name:
        raise CorruptResultError(path, f"it is the result of cell {value['cell']['id']}")
    return value


def result_files(directory: Path) -> list[Path]:
    """Return the result files of `directory` by cell id; what was moved aside is not among them."""
    found = directory.joinpath(CELLS).glob(f"*/{RESULT_FILE}")
    return sorted(path for path in found if _CELL_ID.fullmatch(path.parent.name))


def load_results(directory: Path) -> Results:
    """Return all results of `directory`; broken files are listed, not raised.

    Raises:
        UserError: `directory` holds no results at all, or one of a newer schema.
    """
    files = result_files(directory)
    if not files:
        raise UserError(
            f"{directory}: no results here (expected {CELLS}/*/{RESULT_FILE})",
            remedy="name a directory that `numalab run` wrote",
        )
    good: list[Json] = []
    corrupt: list[CorruptResultError] = []
    for path in files:
        try:
            good.append(load_result(path))
        except CorruptResultError as error:
            corrupt.append(error)
    return Results(directory, good, corrupt)


def load_experiment(directory: Path) -> Json:
    """Return `experiment.json` of a result directory: the resolved experiment, its seed, the order of cells.

    Raises:
        UserError: there is none, or it is of a newer schema.
        CorruptResultError: it is damaged.
    """
    path = directory / EXPERIMENT_FILE
    if not path.exists():
        raise UserError(f"{directory}: no {EXPERIMENT_FILE} here", remedy="name a directory that `numalab run` wrote")
    value = _upgraded(path, _read(path, EXPERIMENT_KIND), EXPERIMENT_SCHEMA, _EXPERIMENT_UPGRADERS)
    _check(path, value, {"name": str, "seed": int, "order": list, "cells": list}, "")
    return value


def _read(path: Path, kind: str) -> Json:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:  # also UnicodeDecodeError
        raise CorruptResultError(path, str(error)) from None
    if not isinstance(value, dict) or value.get("kind") != kind:
        raise CorruptResultError(path, f'it lacks "kind": "{kind}"')
    schema = value.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise CorruptResultError(path, f"schema is {schema!r}, not a number from 1")
    return value


def _upgraded(path: Path, value: Json, known: int, upgraders: Mapping[int, Callable[[Json], Json]]) -> Json:
    schema = value["schema"]
    if schema > known:
        raise NewerSchemaError(path, schema, known)
    for step in range(schema, known):
        value = upgraders[step](value)
    return value


def _check(path: Path, value: Json, shape: Mapping[str, type | tuple[type, ...]], prefix: str) -> None:
    for key, wanted in shape.items():
        if key not in value:
            raise CorruptResultError(path, f"{prefix}{key} is missing")
        if not isinstance(value[key], wanted):
            raise CorruptResultError(path, f"{prefix}{key} is {type(value[key]).__name__}")
