"""Results as tidy data frames: one row per value, each with its kind; what is missing stays NA."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from analysis.placement import LEAF_SIZES, PAGE_SIZE, Placement, placements
from numalab.kinds import Kind
from numalab.results import Json, succeeded

#: What names a point of the matrix; rows that agree in these are repeats of one another.
POINT = ("kernel", "topology", "workload", "interference", "policy")
_TEXT = ("cell", "experiment", *POINT, "started", "outcome", "source", "metric", "unit", "kind")
_SNAPSHOT = ("cell", *POINT, "repeat", "mark", "kind", "trees")
COLUMNS = (
    "cell",
    "experiment",
    *POINT,
    "repeat",
    "started",
    "outcome",
    "ok",
    "source",
    "metric",
    "unit",
    "kind",
    "value",
)


def kind_of_machine(result: Json) -> Kind | None:
    """Return the kind of what was counted on this cell's machine; None when its accelerator is not known."""
    machine = result["provenance"].get("machine") or {}
    return {"tcg": Kind.COUNTED, "kvm": Kind.MEASURED, "host": Kind.MEASURED}.get(str(machine.get("accel")))


def values(results: Iterable[Json]) -> pd.DataFrame:
    """Return every value of every result, one a row, in the columns of `COLUMNS`.

    `source` says where the value stands in the result file: "workload" (the program's own samples), "vmstat",
    "numastat", "perf" (counters over the whole run), "measured" (those of the measured phase alone), "placement" (from
    snapshots). Counters are named like "vmstat:pgfault" or "measured:vmstat:pgfault". `ok` is False for values
    of a cell that did not end well.
    """
    rows = [row for result in results for row in _rows(result)]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    for column in _TEXT:
        frame[column] = frame[column].astype("string")
    return frame.astype({"repeat": "Int64", "ok": "boolean", "value": "Float64"})


def outcomes(results: Iterable[Json]) -> pd.DataFrame:
    """Return one row per cell: how it ended, and how many seconds of host time it took.

    `settings` is what its workload and topology were told, as JSON.
    """
    rows = [
        {
            **_cell(result),
            "settings": json.dumps(_settings(result["cell"]["params"]), sort_keys=True),
            "outcome": result["outcome"]["type"],
            "status": result["outcome"].get("status"),
            "signal": result["outcome"].get("signal"),
            "detail": result["outcome"].get("detail") or "",
            "ok": succeeded(result),
            "seconds": result["seconds"],
        }
        for result in results
    ]
    columns = ["cell", "experiment", *POINT, "repeat", "started", "settings"]
    columns += ["outcome", "status", "signal", "detail", "ok", "seconds"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype({"status": "Int64", "signal": "Int64", "ok": "boolean", "seconds": "Float64"})


def table_pages(found: Iterable[Placement]) -> pd.DataFrame:
    """Return page-table pages, one row per snapshot, level and node; `replicas` are among `pages`."""
    rows = [
        {
            **_snapshot(each),
            "level": each.level_names[level],
            "node": node,
            "pages": int(each.pages[level, column]),
            "replicas": int(each.replicas[level, column]),
        }
        for each in found
        for level in range(each.levels)
        for column, node in enumerate(each.nodes)
    ]
    return pd.DataFrame(rows, columns=[*_SNAPSHOT, "level", "node", "pages", "replicas"])


def leaf_entries(found: Iterable[Placement]) -> pd.DataFrame:
    """Return leaf entries, one row per snapshot, page size, node of the table page and node of the data page."""
    rows = [
        {
            **_snapshot(each),
            "size": size,
            "table_node": table,
            "data_node": data,
            "entries": int(each.leaf[which, row, column]),
        }
        for each in found
        for which, size in enumerate(LEAF_SIZES)
        for row, table in enumerate(each.nodes)
        for column, data in enumerate(each.nodes)
    ]
    return pd.DataFrame(rows, columns=[*_SNAPSHOT, "size", "table_node", "data_node", "entries"])


def remote_shares(found: Iterable[Placement]) -> pd.DataFrame:
    """Return the shares of leaf entries, one row per snapshot and node they are seen from.

    `remote_share` of those a walk finds, `before` the same for the primary alone, `unfilled` the share of the
    primary's that a replica does not have yet.
    """
    rows = [
        {
            **_snapshot(each),
            "node": node,
            "remote_share": number(float(each.remote[column])),
            "before": number(float(each.before[column])),
            "unfilled": number(float(each.unfilled[column])),
        }
        for each in found
        for column, node in enumerate(each.nodes)
    ]
    shares = ["remote_share", "before", "unfilled"]
    return pd.DataFrame(rows, columns=[*_SNAPSHOT, "node", *shares]).astype(dict.fromkeys(shares, "Float64"))


def _snapshot(placement: Placement) -> Json:
    cell = placement.cell
    return {
        "cell": cell["id"],
        **{axis: cell[axis] for axis in POINT},
        "repeat": cell["repeat"],
        "mark": placement.mark,
        "kind": str(placement.kind) if placement.kind else None,
        "trees": placement.trees,
    }


def _cell(result: Json) -> Json:
    cell = result["cell"]
    return {
        "cell": cell["id"],
        "experiment": cell["experiment"],
        **{key: cell[key] for key in POINT},
        "repeat": cell["repeat"],
        "started": result["started"],
    }


def _settings(params: Json) -> Json:
    workload = params.get("workload")
    given = workload.get("params") if isinstance(workload, dict) else None
    return {"topology": params.get("topology"), "workload": given}


def _rows(result: Json) -> Iterator[Json]:
    common = {**_cell(result), "outcome": result["outcome"]["type"], "ok": succeeded(result)}

    def row(source: str, metric: str, unit: str | None, kind: str | None, value: Any) -> Json:
        return {**common, "source": source, "metric": metric, "unit": unit, "kind": kind, "value": number(value)}

    for sample in result["samples"]:
        yield row("workload", sample["metric"], sample.get("unit"), sample.get("kind"), sample.get("value"))
    machine_kind = kind_of_machine(result)
    counters = dict(result["counters"])
    counted = counters.pop("kind", None) or machine_kind
    for name, value in _flat(counters):
        yield row(name.partition(":")[0], name, None, counted, value)
    for placement in placements(result, machine_kind):
        for metric, unit, value in placement_metrics(placement):
            yield row("placement", f"{placement.mark}:{metric}", unit, placement.kind, value)


def _flat(counters: Json, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Counters by full name, "group:name" or "group:node:name"; a group that was not read (None) has none."""
    for name, value in counters.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}:")
        elif prefix:
            yield f"{prefix}{name}", value


def placement_metrics(placement: Placement) -> Iterator[tuple[str, str, float]]:
    """Return what snapshots are compared by: name, unit and value."""
    yield "table_pages", "pages", float(placement.pages.sum())
    yield "table_bytes", "bytes", PAGE_SIZE * float(placement.pages.sum())
    yield "table_overhead", "ratio", placement.overhead
    for column, node in enumerate(placement.nodes):
        yield f"table_pages:node{node}", "pages", float(placement.pages[:, column].sum())
    for column, node in enumerate(placement.nodes):
        yield f"remote_share:node{node}", "share", float(placement.remote[column])
    if placement.mode:
        yield "replica_pages", "pages", float(placement.replicas.sum())
    yield "table_apart_from_data", "share", placement.apart


def known_words(key: Any) -> tuple[str, ...]:
    """Return the key of a group of rows as text, "" for what is missing in it."""
    parts = key if isinstance(key, tuple) else (key,)
    return tuple("" if pd.isna(part) else str(part) for part in parts)


def number(value: Any) -> float | None:
    """Return a number as float; everything that is none (None, text, NaN, true) is missing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
