"""What the report says about where results come from: kernels, machines, and the rest, each told once."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from analysis.dataset import Dataset
from numalab.results import Json, succeeded
from numalab.units import format_size

#: Parts of a cell's provenance that many cells share; each distinct one is printed once.
_SHARED = ("kernel", "machine", "versions", "git", "sysctls_before")

_FLAT_LIST = re.compile(r"\[\n\s*([^\[\]{}]*?)\n\s*\]")
_ITEM_BREAK = re.compile(r",\n\s*")


@dataclass(frozen=True)
class Document:
    """A piece of provenance: JSON text under a name such as "machine 2" that cells refer to."""

    name: str
    anchor: str
    text: str


@dataclass(frozen=True)
class CellSheet:
    """Provenance of one cell.

    Attributes:
        result: the whole result file.
        ok: whether it ended well.
        documents: the shared pieces it stands on.
        changed: knobs whose values were not the same after the run: path, before, after.
        text: what is its own, as JSON.
        reproduce: the command that runs it again, "" when the file names none.
    """

    result: Json
    ok: bool
    documents: list[Document]
    changed: list[tuple[str, str, str]]
    text: str
    reproduce: str


@dataclass
class Provenance:
    """All of a directory's."""

    documents: list[Document] = field(default_factory=list)
    cells: list[CellSheet] = field(default_factory=list)


def collect(data: Dataset) -> Provenance:
    """Return the provenance of every cell, what is shared told once."""
    known: dict[tuple[str, str], Document] = {}
    counts: dict[str, int] = {}
    collected = Provenance()
    for result in data.results:
        provenance = result["provenance"]
        used = []
        for part in _SHARED:
            value = provenance.get(part)
            if not value:
                continue
            text = to_text(_of_any_boot(value))
            key = (part, hashlib.sha256(text.encode()).hexdigest())
            if key not in known:
                counts[part] = counts.get(part, 0) + 1
                word = "knobs before" if part == "sysctls_before" else part
                known[key] = Document(f"{word} {counts[part]}", f"{part}-{counts[part]}", text)
            used.append(known[key])
        collected.cells.append(
            CellSheet(
                result,
                succeeded(result),
                used,
                _changed(provenance.get("sysctls_before"), provenance.get("sysctls_after")),
                to_text(_own(result)),
                str(provenance.get("reproduce") or ""),
            )
        )
    collected.documents = list(known.values())
    return collected


def to_text(value: Any) -> str:
    """Return indented JSON, lists of plain values on one line."""
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
    # A line break is never inside a JSON string, so "[" at the end of a line is a list.
    return _FLAT_LIST.sub(lambda found: f"[{_ITEM_BREAK.sub(', ', found[1])}]", text)


def whole_run(data: Dataset) -> str:
    """Return the command that runs the whole experiment as it was run; "" when the results name none."""
    for result in data.results:
        words = shlex.split(str(result["provenance"].get("reproduce") or ""))
        if words[:2] == ["numalab", "run"]:
            kept = [w for place, w in enumerate(words) if w != "--only" and words[place - 1] != "--only"]
            return shlex.join(kept)
    return ""


def _own(result: Json) -> Json:
    """The part of a result that is its own, without the placement (shown as tables) and what is shared."""
    left_out = (*_SHARED, "sysctls_after", "reproduce")
    provenance = {key: value for key, value in result["provenance"].items() if key not in left_out}
    return {
        "params": result["cell"]["params"],
        "outcome": {key: value for key, value in result["outcome"].items() if key != "oops"},
        "samples": result["samples"],
        "counters that changed": _changes(result["counters"]),
        "provenance": provenance,
    }


def _changes(counters: Json) -> Json:
    """Counters without those that did not move (the result file has them all); what is missing stays."""
    found = {}
    for name, value in counters.items():
        kept = _changes(value) if isinstance(value, dict) else value
        if kept is None or kept not in (0, {}):
            found[name] = kept
    return found


def _of_any_boot(value: Any) -> Any:
    """A machine's facts without what differs from boot to boot: seconds and counts of this one boot."""
    if not isinstance(value, dict):
        return value
    return {key: each for key, each in value.items() if key not in ("boot_seconds", "boot", "cells_before")}


def _changed(before: Any, after: Any) -> list[tuple[str, str, str]]:
    if not isinstance(before, dict) or not isinstance(after, dict):
        return []
    keys = [*before, *(key for key in after if key not in before)]
    pairs = [(key, str(before.get(key, "NA")), str(after.get(key, "NA"))) for key in keys]
    return [pair for pair in pairs if pair[1] != pair[2]]


def kernels(data: Dataset) -> list[Json]:
    """Return the kernels that ran: name in the matrix, release, build-id, patch sets, cells."""
    found: dict[tuple[str, ...], Json] = {}
    for result in data.results:
        facts = result["provenance"].get("kernel") or {}
        name = result["cell"]["kernel"]
        build = str(facts.get("build_id") or "")
        entry = found.setdefault(
            (name, build),
            {
                "name": name,
                "release": facts.get("release") or "NA",
                "build_id": build or "NA",
                "sets": ", ".join(map(str, facts.get("sets") or [])) or "none",
                "flavour": facts.get("flavour") if facts.get("flavour") != name else "",
                "cells": 0,
            },
        )
        entry["cells"] += 1
    return list(found.values())


def machines(data: Dataset) -> list[Json]:
    """Return the topologies that ran, ready to be drawn: nodes with CPUs and memory, distances, accelerator."""
    found: dict[str, Json] = {}
    for result in data.results:
        facts = result["provenance"].get("machine") or {}
        shape = facts.get("topology") or (data.spec("topologies") or {}).get(result["cell"]["topology"])
        if not shape or not shape.get("nodes"):
            continue
        name = result["cell"]["topology"]
        entry = found.setdefault(
            to_text([name, shape, facts.get("accel")]),
            {
                "name": name,
                "accel": facts.get("accel") or "NA",
                "qemu": facts.get("qemu_version") or "NA",
                "nodes": _nodes(shape["nodes"]),
                "distances": shape.get("distances") or [],
                "levels": shape.get("paging_levels", "NA"),
                "visible": shape.get("visible", True),
                "cells": 0,
            },
        )
        entry["cells"] += 1
    return list(found.values())


def _nodes(nodes: Iterable[Json]) -> list[Json]:
    drawn = list(nodes)
    most = max((int(node.get("memory") or 0) for node in drawn), default=0)
    first = 0
    found = []
    for node in drawn:
        cpus, memory = int(node.get("cpus") or 0), int(node.get("memory") or 0)
        found.append(
            {
                "cpus": cpus,
                "first_cpu": first,
                "memory": format_size(memory) if memory else "no memory",
                "fill": round(100 * memory / most) if most else 0,
            }
        )
        first += cpus
    return found
