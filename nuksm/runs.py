"""What the results of a run say of merged pages: whose node they lie on, what they save, and how soon.

Reads result directories only. A value that is not there is missing, never 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nuksm import metrics, points
from nuksm.metrics import Savings
from nuksm.policies import KSM
from numalab.errors import ExperimentError
from numalab.results import CELLS, Json, load_results, succeeded

#: The metric of a workload that says what part of its shared pages is on its node.
LOCAL = "local_share"
#: The cpu.weight of a cgroup that nobody has given one, and of processes without a cgroup of their own.
CGROUP_WEIGHT = 100


@dataclass(frozen=True)
class Move:
    """A process that went to another node.

    Attributes:
        instance: its number.
        seconds, passes: until its pages were there too; None: they have not come.
        bound: seconds that this may have taken; None: the policy promises nothing.
    """

    instance: int
    seconds: float | None
    passes: int | None
    bound: float | None

    @property
    def kept(self) -> bool:
        """Whether they came in time."""
        return self.seconds is not None and self.bound is not None and self.seconds <= self.bound


@dataclass(frozen=True)
class Run:
    """One cell with instances, as far as it says something of merging.

    Attributes:
        policy, workload, kernel, repeat: its place in the matrix.
        order: numbers of the instances in the order in which they began.
        shares: local share of each instance's pages, by number.
        used: local share of each instance's accesses that the kernel has sampled (ksm_stat); None: it samples none.
        weights: of their priorities, and of their cgroups where these count.
        savings: as the last to end saw it; None: not counted.
        passes: after which 90 % of the final savings were there, by the points of the first instance; None: not known.
        own_name: of the policy, whatever the experiment calls it; "" in results that do not say.
        percent: of the savings that copies may give up, where the policy has copies.
        moves: of the instances that were told to go to another node: what came of it.
        cgroups: whether the cpu.weight of cgroups counts (numa_cgroup_weight).
        program: the workload's program and its parameters, whatever the experiment calls it; "": not known.
    """

    policy: str
    workload: str
    kernel: str
    repeat: int
    order: tuple[int, ...]
    shares: tuple[float, ...]
    used: tuple[float | None, ...]
    weights: tuple[int, ...]
    savings: Savings | None
    passes: float | None
    own_name: str = ""
    percent: int | None = None
    moves: tuple[Move, ...] = ()
    program: str = ""
    cgroups: bool = False

    @property
    def spread(self) -> float:
        """By how many points of a hundred the local shares differ."""
        return metrics.spread(self.shares)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        saved = self.savings
        return {
            "policy": self.policy,
            "own_name": self.own_name,
            "workload": self.workload,
            "kernel": self.kernel,
            "repeat": self.repeat,
            "order": list(self.order),
            "local_shares": list(self.shares),
            "local_shares_of_use": list(self.used),
            "weights": list(self.weights),
            "spread_points": self.spread,
            "jain": metrics.jain(self.shares),
            "tax": metrics.numa_tax(self.shares),
            "weighted_tax": metrics.numa_tax(self.shares, self.weights),
            "ordered_by_weight": metrics.ordered_by_weight(self.shares, self.weights),
            "pages_shared": saved.shared if saved else None,
            "pages_sharing": saved.sharing if saved else None,
            "copies": saved.copies if saved else None,
            "given_up": saved.given_up if saved else None,
            "passes_to_90_percent": self.passes,
            "moves": [vars(move) for move in self.moves],
        }


def nodes_of(samples: Iterable[Json], prefix: str) -> dict[int, int]:
    """Return pages by node from samples such as `same_pages_node0` (prefix "same_pages")."""
    start = f"{prefix}_node"
    return {
        int(sample["metric"].removeprefix(start)): int(sample["value"])
        for sample in samples
        if sample["metric"].startswith(start) and sample["value"] is not None
    }


def nodes_of_snapshot(process: Json, nodes: Sequence[int]) -> dict[int, int]:
    """Return mapped pages of 4K by the node they lie on, from a process of a snapshot's summary.

    Everything that is mapped counts, program and stack too: some two hundred pages, on whose node they happen to be.
    """
    return {node: sum(int(row[column]) for row in process["leaf"]["4K"]) for column, node in enumerate(nodes)}


def _values(instance: Json) -> dict[str, Any]:
    """What an instance says, by metric."""
    return {sample["metric"]: sample["value"] for sample in instance["samples"]}


def share_of(instance: Json) -> float | None:
    """Return an instance's local share: as it says itself, or by the sampled pages of its region."""
    values = _values(instance)
    if values.get(LOCAL) is not None:
        return float(values[LOCAL])
    return metrics.local_share(nodes_of(instance["samples"], "sampled_pages"), instance["node"])


def used_share_of(instance: Json) -> float | None:
    """Return the share of an instance's accesses to merged pages that was local, as the kernel has sampled them."""
    values = _values(instance)
    local, remote = values.get("numa_local"), values.get("numa_remote")
    return None if local is None or remote is None else metrics.local_share({0: local, 1: remote}, 0)


def run_of(result: Json, directory: Path) -> Run | None:
    """Return what a result says; None for a cell that failed, or has no instances whose pages' nodes are known.

    `directory` is the cell's own, for the points of its programs.
    """
    if not succeeded(result) or len(result.get("instances", [])) < 2:
        return None
    instances = result["instances"]
    shares = [share_of(one) for one in instances]
    if any(share is None for share in shares):
        return None
    cell = result["cell"]
    return Run(
        cell["policy"],
        cell["workload"],
        cell["kernel"],
        cell["repeat"],
        tuple(one["instance"] for one in sorted(instances, key=lambda one: one["begun"])),
        tuple(share for share in shares if share is not None),
        tuple(used_share_of(one) for one in instances),
        tuple(_weights(instances, _knobs(cell))),
        _savings(instances),
        _passes(directory),
        *_policy(cell),
        _moves(instances, _knobs(cell)),
        _program(cell),
        _knobs(cell).get("numa_cgroup_weight") == "1",
    )


def _weights(instances: Sequence[Json], knobs: Mapping[str, str]) -> list[int]:
    """What the kernel weighs processes by; priorities where nothing says so."""
    nices = metrics.weights_of([one["nice"] for one in instances])
    policy = knobs.get("numa_policy")
    # The higher priority alone decides, among equals the cgroup.
    if knobs.get("numa_cgroup_weight") != "1" or (policy == "strict" and len(set(nices)) > 1):
        return nices
    by = nices if policy == "priority" else [1] * len(nices)
    return metrics.weights_with_cgroups(by, [one.get("weight") or CGROUP_WEIGHT for one in instances])


def _program(cell: Json) -> str:
    """The program with the parameters that its instances share."""
    workload = cell.get("params", {}).get("workload", {})
    return json.dumps([workload["program"], workload["params"]], sort_keys=True) if "params" in workload else ""


def _knobs(cell: Json) -> dict[str, str]:
    """The values of KSM's files under the policy, by name."""
    knobs = cell.get("params", {}).get("policy", {}).get("knobs", ())
    return {str(path).removeprefix(f"{KSM}/"): str(value) for path, value, *_ in knobs}


def _policy(cell: Json) -> tuple[str, int | None]:
    """The policy's own name, and what its copies may give up."""
    knobs = _knobs(cell)
    has_copies = knobs.get("numa_max_copies", "1") != "1"
    own_name = cell.get("params", {}).get("policy", {}).get("name", "")
    return str(own_name), int(knobs["numa_copies_percent"]) if has_copies else None


def _moves(instances: Sequence[Json], knobs: Mapping[str, str]) -> tuple[Move, ...]:
    """What came of the instances that were told to move."""
    found = []
    for one in instances:
        if "--move-after" not in one.get("argv", ()):
            continue
        values = _values(one)
        seconds, passes = values.get("follow_seconds"), values.get("follow_passes")
        bound = None
        if knobs.get("numa_policy", "none") != "none" and seconds is not None and passes is not None:
            sample, rate = (float(knobs[name]) for name in ("numa_sample_millisecs", "numa_migrate_rate"))
            bound = metrics.follow_bound(sample / 1000, seconds, int(passes), int(values["same_pages"] or 0), rate)
        found.append(Move(one["instance"], seconds, None if passes is None else int(passes), bound))
    return tuple(found)


def _savings(instances: Sequence[Json]) -> Savings | None:
    """What was saved in the end: each instance has looked just before it was done, the last when most was merged."""
    seen = []
    for one in instances:
        values = _values(one)
        if values.get("ksm_pages_sharing") is not None:
            copies = values.get("ksm_numa_copies") or 0
            seen.append(Savings(int(values["ksm_pages_shared"]), int(values["ksm_pages_sharing"]), int(copies)))
    return max(seen, key=lambda saved: saved.sharing, default=None)


def _passes(directory: Path) -> float | None:
    try:
        return metrics.passes_to(points.saved(points.of_cell(directory, 0)))
    except (OSError, ExperimentError):
        return None


def runs_in(directory: Path) -> list[Run]:
    """Return the runs of a result directory.

    Raises:
        UserError: there are no results in it.
    """
    found = (run_of(result, directory / CELLS / result["cell"]["id"]) for result in load_results(directory).results)
    known = [run for run in found if run]
    return sorted(known, key=lambda run: (run.kernel, run.workload, run.policy, run.repeat))
