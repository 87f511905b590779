"""From points of the matrix to cells: everything resolved, and a name that is a hash of all of it."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from numalab.errors import MissingError, UserError
from numalab.kernel.image import KernelImage
from numalab.machine.topology import Topology
from numalab.run import instances, interference
from numalab.run.check import merged_params
from numalab.run.instances import Placed
from numalab.run.interference import Load, loads
from numalab.run.lab import Lab, MachineRequest, WorkloadLike
from numalab.run.matrix import Point
from numalab.run.policy import Policy
from numalab.run.spec import Experiment


@dataclass(frozen=True)
class Cell:
    """One point of the matrix, ready to be run.

    Attributes:
        id: 16 hex digits of a hash of `params`.
        point: where in the matrix it is.
        machine: the machine it wants.
        workload: the catalogue's entry.
        policy: bound to the topology.
        argv: the guest's command, the policy's wrapper included.
        params: the full resolved parameter set, plain JSON values.
        beside: the programs that run beside it.
        instances: the processes that run in the place of one; empty: it is one.
        order: their numbers, in the order in which they begin.
    """

    id: str
    point: Point
    machine: MachineRequest
    workload: WorkloadLike
    policy: Policy
    argv: list[str]
    params: dict[str, Any]
    beside: list[Load]
    instances: list[Placed] = field(default_factory=list)
    order: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Blocked:
    """A point that cannot be planned because something has to be built or fetched first."""

    point: Point
    argv: list[str]
    policy: Policy
    why: MissingError
    beside: list[Load]
    instances: list[Placed] = field(default_factory=list)


def plan(experiment: Experiment, points: Iterable[Point], lab: Lab, *, accel: str) -> tuple[list[Cell], list[Blocked]]:
    """Return the cells of `points`, in their order, and those points that lack their kernel or program.

    Raises:
        UserError: a policy needs patch sets that a kernel does not have; names all such pairs.
    """
    planner = _Planner(experiment, lab, accel)
    cells: list[Cell] = []
    blocked: list[Blocked] = []
    for point in points:
        planned = planner.plan(point)
        if isinstance(planned, Cell):
            cells.append(planned)
        else:
            blocked.append(planned)
    if planner.complaints:
        raise UserError("\n".join(f"{experiment.file}: {line}" for line in planner.complaints))
    return cells, blocked


class _Planner:
    """Remembers what the points have in common."""

    def __init__(self, experiment: Experiment, lab: Lab, accel: str) -> None:
        self.experiment = experiment
        self.lab = lab
        self.accel = accel
        self.known = lab.policies()
        self.policies = {variant.name: variant for variant in experiment.policies}
        self.workloads = {variant.name: variant for variant in experiment.workloads}
        self.interferences = {each.name: each for each in experiment.interferences}
        self.complaints: dict[str, None] = {}

    def plan(self, point: Point) -> Cell | Blocked:
        topology = self.experiment.topologies[point.topology]
        chosen = self.policies[point.applied_policy]
        policy = self.known[chosen.base].bind(chosen.params, topology)
        variant = self.workloads[point.workload]
        workload = self.lab.workload(variant.base)
        given = merged_params(variant, policy)
        argv = [*policy.wrap, *workload.argv(given)]
        beside = loads(self.interferences[point.interference], policy, topology, self.lab)
        placed = instances.place(variant.instances, workload, given, policy, topology)
        order = variant.instances.order(self.experiment.seed, point.workload, point.repeat)
        try:
            kernel = self.lab.resolve_kernel(point.kernel)
            programs = self.lab.programs()
        except MissingError as why:
            return Blocked(point, argv, policy, why, beside, placed)
        self._check_sets(point, kernel, policy)
        program = programs.get(workload.name)
        params = {
            "kernel": {
                "name": point.kernel,
                "release": kernel.release,
                "build_id": kernel.build_id,
                "sha256": sha256_of(kernel.path),
            },
            "topology": {"name": point.topology, **topology.to_json()},
            "workload": {
                "name": point.workload,
                "program": workload.name,
                "sha256": sha256_of(program) if program else None,
                "params": resolved_params(workload, given),
                "argv": argv,
                # Absent otherwise, as with interference.
                **({"instances": [one.to_json() for one in placed], "order": order} if placed else {}),
            },
            "policy": {"label": point.policy, **policy.to_json()},
            "repeat": point.repeat,
            "machine": self._machine_params(),
            "measure": {
                "snapshots": list(self.experiment.measure.snapshots),
                "perf": list(self.experiment.measure.perf),
            },
        }
        if beside:  # absent otherwise: cells without keep the name they have always had
            params["interference"] = {
                "name": point.interference,
                "programs": [_known(load, programs) for load in beside],
            }
        request = self._request(kernel, topology, programs)
        return Cell(cell_id(params), point, request, workload, policy, argv, params, beside, placed, order)

    def _check_sets(self, point: Point, kernel: KernelImage, policy: Policy) -> None:
        has = patch_sets(kernel)
        lacks = [name for name in policy.requires if has is not None and name not in has]
        if lacks:
            self.complaints[
                f"policy {policy.name!r} needs the patch set {' and '.join(map(repr, lacks))}, which kernel "
                f"{point.kernel!r} does not have; leave the pair out: "
                f'[[exclude]] kernel = "{point.kernel}", policy = "{point.applied_policy}"'
            ] = None

    def _machine_params(self) -> dict[str, Any]:
        running = self.experiment.running
        return {
            "accel": self.accel,
            "append": running.append,
            "nested": running.nested,
            "mirror_host": running.mirror_host,
            "huge_pages": running.huge_pages,
            "fresh": running.fresh_machine,
            **({"count": running.count} if running.count else {}),  # absent otherwise: as with interference
        }

    def _request(self, kernel: KernelImage, topology: Topology, programs: Mapping[str, Path]) -> MachineRequest:
        running = self.experiment.running
        wanted = {variant.base for variant in self.experiment.workloads}
        wanted |= {each.workload for each in self.experiment.interferences if each.nodes}
        if any(self.known[variant.base].interference for variant in self.experiment.policies):
            wanted.add(interference.DEFAULT_WORKLOAD)
        return MachineRequest(
            kernel,
            topology,
            accel=self.accel,
            append=running.append,
            nested=running.nested,
            mirror_host=running.mirror_host,
            huge_pages=running.huge_pages,
            count_instructions=bool(running.count),
            boot_timeout=running.boot_timeout,
            files={f"/bin/{name}": path for name, path in programs.items() if name in wanted},
            perf=bool(self.experiment.measure.perf),
        )


def _known(load: Load, programs: Mapping[str, Path]) -> dict[str, Any]:
    program = programs.get(load.workload.name)
    return {**load.to_json(), "sha256": sha256_of(program) if program else None}


def cell_id(params: Mapping[str, Any]) -> str:
    """Return 16 hex digits of the hash of a full parameter set; the order of keys does not matter."""
    canonical = json.dumps(params, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def resolved_params(workload: WorkloadLike, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the workload's full parameters: its defaults, and what was given."""
    return {name: given.get(name, param.default) for name, param in workload.params.items()}


def patch_sets(kernel: KernelImage) -> set[str] | None:
    """Return the patch sets in a kernel, None when its provenance does not say (a bzImage of the user)."""
    if kernel.provenance.get("flavour") == "stock":
        return set()
    series = kernel.provenance.get("series")
    return None if series is None else set(series["sets"])


@cache
def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def commands(policy: Policy, argv: list[str], beside: Iterable[Load] = (), placed: Sequence[Placed] = ()) -> list[str]:
    """Return what a cell does in its guest, as lines of shell: the policy's knobs, what runs beside, the program."""
    lines = [
        f"echo {shlex.quote(knob.value)} > {knob.path}" + ("  # where it exists" if knob.dispensable else "")
        for knob in policy.knobs
    ]
    lines += [f"{shlex.join(load.argv)} &  # between the program's marks ready and done" for load in beside]
    return [*lines, *(instances.commands(placed) if placed else [shlex.join(argv)])]
