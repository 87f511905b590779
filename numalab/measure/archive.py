"""Snapshots in a file: an npz archive with every table page, for re-analysis later.

The file holds a JSON header (`meta`) and flat arrays with one row per table page, and tree that reaches it, of all
processes; `numpy.load` opens it without numalab. Schema 1 knew no replicas; it is still read.

    meta        uint8   UTF-8 JSON: schema, nodes, processes with their roots, ...
    process     int32   index into meta["processes"]
    root        int32   index into that process's roots; -1 for a replica that no root reaches
    level       int8    1 (PTE) to 5
    frame       int64   frame number of the table page
    va          uint64  first virtual address it translates
    parent      int32   row within the process, -1 for a root
    refs        int32   entries that point at it
    node        int16   column of its node in meta["nodes"]
    leaves      int16   [row, node..., zero, other] leaf entries by the data page's node
    deposited   int64   [process, node]
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numalab.errors import UserError
from numalab.kinds import Kind
from numalab.measure.pagetable import UNLINKED, Tables, no_tables
from numalab.measure.snapshot import SCHEMA, ProcessPlacement, Replication, Root, Snapshot
from numalab.paths import write_atomic

_FORMAT = "numalab-placement"
_COLUMNS = tuple(field.name for field in fields(Tables))


def save(snapshot: Snapshot, path: Path) -> None:
    """Write `snapshot` to `path`, atomically."""
    processes = snapshot.processes
    meta = {
        "format": _FORMAT,
        "schema": SCHEMA,
        "nodes": snapshot.nodes,
        "cpu_nodes": snapshot.cpu_nodes,
        "levels": snapshot.levels,
        "label": snapshot.label,
        "kernel": snapshot.kernel,
        "pti": snapshot.pti,
        "number_kind": snapshot.kind.value,
        "taken": snapshot.taken,
        "seconds": snapshot.seconds,
        "processes": [
            {
                "pid": process.pid,
                "comm": process.comm,
                "roots": [asdict(root) for root in process.roots],
                "replication": process.replication and asdict(process.replication),
                "pgtables_bytes": process.pgtables_bytes,
            }
            for process in processes
        ],
    }
    nodes = len(snapshot.nodes)
    parts = [process.tables for process in processes] or [no_tables(nodes + 2)]
    arrays: dict[str, NDArray[Any]] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS
    }
    arrays["leaves"] = arrays["leaves"].astype(np.int16)
    arrays["process"] = np.repeat(np.arange(len(processes), dtype=np.int32), [len(p.tables) for p in processes])
    arrays["node"] = np.concatenate([np.empty(0, np.int16), *(process.table_node for process in processes)])
    arrays["deposited"] = np.array([p.deposited for p in processes], np.int64).reshape(len(processes), nodes)
    out = io.BytesIO()
    header = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez_compressed(out, allow_pickle=False, meta=header, **arrays)
    write_atomic(path, out.getvalue())


def load(path: Path) -> Snapshot:
    """Read what `save` wrote.

    Raises:
        UserError: when the file is not a snapshot, is damaged, or comes from a newer numalab.
    """
    if path.exists() and not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not a page-table snapshot, or cut short (it is no npz archive)")
    try:
        with np.load(path, allow_pickle=False) as stored:
            meta = json.loads(stored["meta"].tobytes())
            if meta["format"] != _FORMAT:
                raise ValueError(f"its format is {meta['format']!r}")
            if meta["schema"] > SCHEMA:
                raise UserError(
                    f"{path}: a snapshot of schema {meta['schema']}; this numalab reads up to {SCHEMA}",
                    remedy="use the numalab that wrote it, or a newer one",
                )
            return _snapshot(meta, {name: stored[name] for name in stored.files})
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: not a page-table snapshot, or damaged: {error}") from error


def _snapshot(meta: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Snapshot:
    nodes = tuple(meta["nodes"])
    process = arrays["process"]
    rows = len(process)
    for name in (*_COLUMNS, "node"):
        wanted = (rows, len(nodes) + 2) if name == "leaves" else (rows,)
        if arrays[name].shape != wanted:
            raise ValueError(f"array {name!r} has shape {arrays[name].shape}, not {wanted}")
    if rows and not (process.min() >= 0 and process.max() < len(meta["processes"])):
        raise ValueError("array 'process' names a process that is not there")
    placements = []
    for index, each in enumerate(meta["processes"]):
        mine = process == index
        tables = Tables(*(arrays[name][mine] for name in _COLUMNS))
        node, level = arrays["node"][mine], tables.level
        if len(tables) and not (node.min() >= 0 and node.max() < len(nodes)):
            raise ValueError("array 'node' names a node that is not there")
        if len(tables) and not (tables.root.min() >= UNLINKED and tables.root.max() < len(each["roots"])):
            raise ValueError("array 'root' names a root that is not there")
        if len(tables) and not (level.min() >= 1 and level.max() <= meta["levels"]):
            raise ValueError("array 'level' names a level that is not there")
        placements.append(
            ProcessPlacement(
                pid=each["pid"],
                comm=each["comm"],
                nodes=nodes,
                levels=meta["levels"],
                roots=tuple(
                    Root(tuple(root["nodes"]), root["frame"], root.get("domain"), root.get("home"))
                    for root in each["roots"]
                ),
                tables=tables,
                table_node=node,
                deposited=arrays["deposited"][index],
                pgtables_bytes=each["pgtables_bytes"],
                replication=_replication(each.get("replication")),
            )
        )
    return Snapshot(
        processes=tuple(placements),
        nodes=nodes,
        cpu_nodes=tuple(meta["cpu_nodes"]),
        levels=meta["levels"],
        label=meta["label"],
        kernel=meta["kernel"],
        pti=meta["pti"],
        kind=Kind(meta["number_kind"]),
        taken=meta["taken"],
        seconds=meta["seconds"],
    )


def _replication(stored: dict[str, Any] | None) -> Replication | None:
    return None if stored is None else Replication(stored["mode"], stored["active"], tuple(stored["domains"]))
