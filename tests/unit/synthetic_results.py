"""Builds result directories for the tests of `analysis`. SYNTHETIC: every number here is invented.

The shape is that of real ones (docs/results.md); `numalab.results` reads them like any other.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]
NODES = 4
TOPOLOGY = {
    "nodes": [{"cpus": 1, "memory": 512 << 20}] * NODES,
    "distances": [[10 if i == j else 20 for j in range(NODES)] for i in range(NODES)],
    "visible": True,
    "paging_levels": 4,
}
#: Which nodes PTE pages lie on, by policy: weights.
SPREAD = {
    "first-touch": [5, 3, 1, 1],
    "remote-tables": [0, 0, 0, 1],
    "placebo": [5, 3, 1, 1],
    "interleave": [1, 1, 1, 1],
    "replicated": [1, 1, 1, 1],
}
LEAVES = 16 * 512


def split(total: int, weights: Iterable[int]) -> list[int]:
    """Split `total` in proportion to `weights`, exactly."""
    weights = list(weights)
    parts = [total * weight // sum(weights) for weight in weights]
    parts[weights.index(max(weights))] += total - sum(parts)
    return parts


def summary(
    policy: str, *, mark: str = "ready", leaves: int = LEAVES, kind: str = "counted", cpu_nodes: Any = None
) -> Json:
    """A snapshot summary as numalab.measure.snapshot writes it."""
    weights = SPREAD.get(policy, [1, 0, 0, 0])
    replicated = policy == "replicated"
    copies = NODES if replicated else 1
    by_node = split(leaves, [1, 0, 0, 0]) if replicated else split(leaves, weights)
    leaf = [[0] * NODES for _ in range(NODES)]
    for table in range(NODES):
        leaf[table][table] = leaves if replicated else by_node[table]
    pte = [16] * NODES if replicated else split(16, weights)
    upper = [1] * NODES if replicated else [int(node == weights.index(max(weights))) for node in range(NODES)]
    pages = [pte, [2 * n for n in upper], upper, upper]
    zero = [[0] * NODES for _ in range(NODES)]
    remote = {str(n): 0.0 if replicated else 1 - by_node[n] / leaves for n in range(NODES)}
    process = {
        "pid": 101,
        "comm": "gups",
        "levels": 4,
        "roots": [{"nodes": [n] if replicated else list(range(NODES)), "frame": 4096 + n} for n in range(copies)],
        "table_pages": pages,
        "leaf": {"4K": leaf, "2M": zero, "1G": zero},
        "leaf_zero": {size: [0] * NODES for size in ("4K", "2M", "1G")},
        "leaf_other": {size: [0] * NODES for size in ("4K", "2M", "1G")},
        "deposited": [0] * NODES,
        "local_share": {node: 1 - share for node, share in remote.items()},
        "remote_share": remote,
        "pgtables_bytes": None,
        "accounted_bytes": 0,
    }
    return {
        "schema": 1,
        "kind": "numalab-placement",
        "number_kind": kind,
        "label": mark,
        "levels": 4,
        "nodes": list(range(NODES)),
        "cpu_nodes": list(range(NODES)) if cpu_nodes is None else cpu_nodes,
        "table_pages": pages,
        "processes": [process],
    }


def sample(metric: str, value: float | None, unit: str, kind: str) -> Json:
    """One entry of "samples"."""
    return {"metric": metric, "value": value, "unit": unit, "kind": kind}


def result(
    *,
    kernel: str = "patched",
    topology: str = "four",
    workload: str = "gups",
    policy: str = "first-touch",
    interference: str = "none",
    repeat: int = 0,
    samples: Iterable[Json] = (),
    outcome: Mapping[str, Any] | None = None,
    accel: str = "tcg",
    started: str = "2026-01-01T10:00:00+00:00",
    placement: bool = True,
    params: Mapping[str, Any] | None = None,
    experiment: str = "synthetic",
) -> Json:
    """One result.json."""
    axes = {"kernel": kernel, "topology": topology, "workload": workload, "policy": policy, "repeat": repeat}
    axes["interference"] = interference
    kind = "counted" if accel == "tcg" else "measured"
    given = {"size": 64 << 20, "threads": 4, **(params or {})}
    ended = {"type": "exit", "status": 0, "signal": None, "detail": "", "oops": None, **(outcome or {})}
    return {
        "schema": 2,
        "kind": "numalab-result",
        "cell": {
            "id": hashlib.sha256(json.dumps([axes, experiment]).encode()).hexdigest()[:16],
            "experiment": experiment,
            **axes,
            "params": {"workload": {"name": workload, "params": given}, "topology": TOPOLOGY, "repeat": repeat},
        },
        "outcome": ended,
        "samples": list(samples),
        "interference": [],
        "counters": {
            "kind": kind,
            "vmstat": {"pgfault": 16500 + repeat, "numa_hit": 17000},
            "numastat": {"node0": {"numa_hit": 9000}},
            "measured": {"vmstat": {"pgfault": 3}, "numastat": {}},
            "perf": {"cycles": None},
            "perf_running": {"cycles": None},
        },
        "placement": [{"mark": "ready", "file": "snapshot-ready.npz", "summary": summary(policy, kind=kind)}]
        if placement
        else [],
        "provenance": {
            "kernel": {"name": kernel, "release": "6.12.117", "build_id": "5f" * 20, "sets": ["common"]},
            "machine": {"accel": accel, "topology": TOPOLOGY, "qemu_version": "7.2.0", "cmdline": "console=ttyS0"},
            "sysctls_before": {"/proc/sys/vm/pgtable_alloc_node": "-1"},
            "sysctls_after": {"/proc/sys/vm/pgtable_alloc_node": "3"},
            "host": {"cpus": 2, "load": [0.5, 0.4, 0.3]},
            "versions": {"numalab": "0.1.0", "python": "3.11.7"},
            "git": {"commit": None, "dirty": None},
            "reproduce": f"numalab run synthetic.toml --only policy={policy} --only repeat={repeat}",
        },
        "started": started,
        "seconds": 4.5,
    }


def write(
    directory: Path,
    results: Iterable[Json],
    *,
    baseline: str = "first-touch",
    metrics: Sequence[str] = (),
    experiment: bool = True,
) -> Path:
    """Write a result directory, of an experiment that leads with `metrics`; returns it."""
    found = list(results)
    for each in found:
        path = directory / "cells" / each["cell"]["id"] / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(each, indent=1) + "\n")
    if experiment:
        axes = {
            axis: list(dict.fromkeys(each["cell"][axis] for each in found))
            for axis in ("kernel", "policy", "workload", "topology", "interference")
        }
        value = {
            "schema": 2,
            "kind": "numalab-experiment",
            "name": found[0]["cell"]["experiment"],
            "file": "synthetic.toml",
            "seed": 7,
            "order": [each["cell"]["id"] for each in found],
            "cells": [each["cell"] for each in found],
            "spec": {
                "title": "A synthetic experiment",
                "matrix": axes,
                "baseline": {"kernel": axes["kernel"][0], "policy": baseline},
                "repeats": 1 + max(each["cell"]["repeat"] for each in found),
                "topologies": dict.fromkeys(axes["topology"], TOPOLOGY),
                "measure": {"snapshots": ["ready"], "perf": ["cycles"], "metrics": list(metrics)},
            },
            "runs": [],
        }
        (directory / "experiment.json").write_text(json.dumps(value, indent=1) + "\n")
    return directory


def many(
    value: Callable[[str, str, int], list[Json]],
    *,
    policies: Iterable[str] = ("first-touch", "remote-tables", "interleave", "replicated"),
    workloads: Iterable[str] = ("gups", "btree"),
    repeats: int = 3,
    **more: Any,
) -> list[Json]:
    """Results of a whole matrix, runs interleaved; `value(workload, policy, repeat)` gives their samples."""
    found: list[Json] = []
    for repeat in range(repeats):
        for workload in workloads:
            for policy in policies:
                when = f"2026-01-01T{10 + len(found) // 60:02}:{len(found) % 60:02}:00+00:00"
                samples = value(workload, policy, repeat)
                made = {"workload": workload, "policy": policy, "repeat": repeat, "samples": samples, "started": when}
                found.append(result(**{**made, **more}))
    return found


def emulated(workload: str, policy: str, repeat: int) -> list[Json]:
    """Samples of a run in emulation: a wall-time rate, and a count."""
    noise = random.Random(f"{workload} {policy} {repeat}").uniform(0.9, 1.1)
    return [
        sample("updates_per_second", 1.5e6 * noise, "1/s", "emulation-time"),
        sample("walk_references", 4e6 * (1.4 if policy == "remote-tables" else 1) * noise, "references", "counted"),
    ]


def on_hardware(workload: str, policy: str, repeat: int) -> list[Json]:
    """Samples of a run under KVM: one rate, three per cent of noise; "placebo" is the baseline once more."""
    factor = {"remote-tables": 0.6, "interleave": 0.97, "replicated": 1.3}.get(policy, 1.0)
    noise = random.Random(f"{workload} {policy} {repeat}").gauss(1, 0.03)
    return [sample("updates_per_second", 4e8 * factor * noise, "1/s", "measured")]
