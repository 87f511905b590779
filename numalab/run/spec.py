"""The experiment file: what it may say (`docs/experiments.md`, key by key) and how it is read.

Reading checks types, shapes and spelling within the file. Whether a policy, workload or metric of that
name exists is for `numalab.run.check`, which notes its complaints in the same list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from numalab.errors import nearest
from numalab.kernel.running import RUNNING
from numalab.machine.host import this_host
from numalab.machine.topology import Topology
from numalab.measure.perf import DEFAULT_EVENTS
from numalab.results import PLACEBO
from numalab.run import interference, topologies
from numalab.run.instances import NO_INSTANCES, Instances, instances_in
from numalab.run.interference import Interference, interferences_in
from numalab.run.reader import Problems, Table, read_toml

AXES = ("kernel", "policy", "workload", "topology", "interference")
MARKS = ("init", "ready", "done")
INSTRUCTIONS = "instructions"
#: What `[run] machine` may say: a machine is booted, or the host itself runs the programs.
QEMU, HOST = "qemu", "host"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Variant:
    """A policy or workload with parameters under a name of its own.

    Attributes:
        name: the label in the matrix and in the results.
        base: the policy or workload it is made from.
        params: what the file says about its parameters, unchecked.
        key: where in the file it stands, for complaints; "" when the file does not describe it.
        instances: of a workload, the processes it runs as at once.
    """

    name: str
    base: str
    params: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    instances: Instances = NO_INSTANCES


@dataclass(frozen=True)
class Exclude:
    """Points of the matrix that are left out: those that match in every axis named here."""

    values: Mapping[str, tuple[str, ...]]

    def matches(self, point: Mapping[str, str]) -> bool:
        """Whether the point with these axis values is left out."""
        return bool(self.values) and all(point[axis] in wanted for axis, wanted in self.values.items())


@dataclass(frozen=True)
class Measure:
    """What is recorded about each run.

    Attributes:
        snapshots: marks at which the placement of page tables is taken.
        perf: events that perf counts over the whole program, where there is a PMU.
        metrics: the metrics the report leads with; empty: each workload's first.
    """

    snapshots: tuple[str, ...] = ("ready",)
    perf: tuple[str, ...] = DEFAULT_EVENTS
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Running:
    """How cells are run.

    Attributes:
        machine: "qemu" (emulated or under KVM), or "host": no machine, the host itself.
        timeout: seconds of wall time that one program may take.
        boot_timeout: seconds until a machine must have answered.
        fresh_machine: boot anew for every cell instead of sharing machines between cells.
        append: words added to the guest kernel's command line.
        nested: give the guest hardware virtualisation.
        mirror_host: bind guest node i to the host's i-th node, memory and CPUs (real NUMA hosts).
        huge_pages: back the guest's memory with huge pages of the host.
        count: what the guest's time-stamp counter counts: "instructions" (emulation only), or "": time.
    """

    machine: str = QEMU
    timeout: float = 600.0
    boot_timeout: float = 120.0
    fresh_machine: bool = False
    append: str = ""
    nested: bool = False
    mirror_host: bool = False
    huge_pages: bool = False
    count: str = ""


@dataclass(frozen=True)
class Experiment:
    """An experiment file, read: the matrix is the product of its axes (`AXES`) and the repeats."""

    name: str
    file: Path
    kernels: tuple[str, ...]
    policies: tuple[Variant, ...]
    workloads: tuple[Variant, ...]
    topologies: Mapping[str, Topology]
    interferences: tuple[Interference, ...] = (interference.NONE,)
    title: str = ""
    seed: int = 1
    repeats: int = 3
    excludes: tuple[Exclude, ...] = ()
    baseline_kernel: str = ""
    baseline_policy: str = ""
    placebo: bool = False
    measure: Measure = Measure()
    running: Running = Running()

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """The names along each axis."""
        return {
            "kernel": self.kernels,
            "policy": tuple(policy.name for policy in self.policies),
            "workload": tuple(workload.name for workload in self.workloads),
            "topology": tuple(self.topologies),
            "interference": tuple(each.name for each in self.interferences),
        }

    def kept(self) -> Iterator[dict[str, str]]:
        """Every combination of the axes that is not excluded, repeats aside."""
        for names in product(*self.axes.values()):
            point = dict(zip(AXES, names, strict=True))
            if not any(exclude.matches(point) for exclude in self.excludes):
                yield point

    def to_json(self) -> dict[str, Any]:
        """The whole experiment as plain JSON values."""
        return {
            "title": self.title,
            "repeats": self.repeats,
            "baseline": {"kernel": self.baseline_kernel, "policy": self.baseline_policy},
            "placebo": self.placebo,
            "matrix": {axis: list(names) for axis, names in self.axes.items()},
            "excludes": [{axis: list(names) for axis, names in exclude.values.items()} for exclude in self.excludes],
            "policies": {policy.name: {"policy": policy.base, **policy.params} for policy in self.policies},
            "workloads": {
                each.name: {"workload": each.base, **each.instances.to_json(), **each.params} for each in self.workloads
            },
            "topologies": {name: topology.to_json() for name, topology in self.topologies.items()},
            "interference": {each.name: each.to_json() for each in self.interferences if each.nodes},
            "measure": {key: list(words) for key, words in asdict(self.measure).items()},
            "run": asdict(self.running),
        }


def read(path: Path, problems: Problems, *, host: bool = False) -> Experiment:
    """Return the experiment in `path`; what is wrong is noted in `problems`.

    With `host` it is run on the host itself, whatever the file says of kernels, topologies and machines.

    Raises:
        UserError: the file is not there or not TOML.
        MissingError: it is for the host, and the nodes of this host cannot be used.
    """
    top = Table(read_toml(path), "", problems)
    matrix, baseline = top.table("matrix"), top.table("baseline")
    running = _running(top.table("run"))
    on_host = running.machine == HOST
    kernels = matrix.words("kernel", (RUNNING if on_host else "stock",))
    policies = _variants(top.table("policies"), "policy", matrix.words("policy", ("none",)))
    workloads = _variants(top.table("workloads"), "workload", matrix.words("workload", required=True))
    named = matrix.words("topology", (HOST if on_host else topologies.DEFAULT,))
    shapes = topologies.topologies_in(top.table("topologies"), named, host=this_host() if on_host else None)
    beside = interferences_in(top.table("interference"), matrix.words("interference", (interference.NONE.name,)))
    matrix.close()
    axes = {
        "kernel": kernels,
        "policy": tuple(policy.name for policy in policies),
        "workload": tuple(workload.name for workload in workloads),
        "topology": tuple(shapes),
        "interference": tuple(each.name for each in beside),
    }
    if PLACEBO in axes["policy"]:
        problems.add("matrix.policy", f"{PLACEBO!r} is the label of the A/A repetition (set placebo = true)")
    experiment = Experiment(
        name=_name(top, path.stem),
        file=path,
        title=top.get("title", str, ""),
        seed=top.get("seed", int, 1),
        repeats=top.count("repeats", 3, least=1),
        kernels=kernels,
        policies=policies,
        workloads=workloads,
        topologies=shapes,
        interferences=beside,
        excludes=tuple(_exclude(table, axes) for table in top.tables("exclude")),
        baseline_kernel=_baseline(baseline, "kernel", kernels),
        baseline_policy=_baseline(baseline, "policy", axes["policy"]),
        placebo=top.get("placebo", bool, False),
        measure=_measure(top.table("measure")),
        running=running,
    )
    baseline.close()
    top.close()
    if host:  # the file was written for machines: what it says of them, and of their kernels, gives way
        moved = Running(machine=HOST, timeout=running.timeout)
        experiment = replace(
            experiment, kernels=(RUNNING,), baseline_kernel=RUNNING, topologies={HOST: this_host()}, running=moved
        )
    if all(axes.values()) and not any(experiment.kept()):
        problems.add("exclude", "leaves no point of the matrix")
    return experiment


def _name(top: Table, default: str) -> str:
    name = top.get("name", str, default)
    if _NAME.fullmatch(name):
        return name
    top.problems.add("name", f"{name!r} cannot name a directory (use letters, digits and . _ + -)")
    return "experiment"


def _variants(described: Table, axis: str, wanted: tuple[str, ...]) -> tuple[Variant, ...]:
    """The variants along an axis: those the file describes, and the plain ones."""
    found = {}
    for name, table in described.children().items():
        base = table.get(axis, str, name)
        instances = instances_in(table) if axis == "workload" else NO_INSTANCES
        found[name] = Variant(name, base, table.rest(), table.key, instances)
        if name not in wanted:
            near = nearest(name, wanted)
            described.problems.add(table.key, f"is described here and not used in matrix.{axis}{near}")
    return tuple(found.get(name, Variant(name, name)) for name in wanted)


def _exclude(table: Table, axes: Mapping[str, tuple[str, ...]]) -> Exclude:
    values = {}
    for axis in AXES:
        if axis not in table.value:
            continue
        values[axis] = table.words(axis)
        for word in values[axis]:
            if word not in axes[axis]:
                near = nearest(word, axes[axis])
                table.problems.add(table.path(axis), f"{word!r} is not in matrix.{axis}{near}")
    if not values:
        table.problems.add(table.key, f"must name at least one of {', '.join(AXES)}")
    table.get("because", str, "")  # a word to the reader
    table.close()
    return Exclude(values)


def _baseline(table: Table, axis: str, names: tuple[str, ...]) -> str:
    """What the others are compared with: the first of the axis unless the file says otherwise."""
    first = names[0] if names else ""
    value = table.get(axis, str, first)
    if value not in names:
        table.problems.add(table.path(axis), f"{value!r} is not in matrix.{axis}{nearest(value, names)}")
        return first
    return value


def _measure(table: Table) -> Measure:
    measure = Measure(
        table.words("snapshots", Measure.snapshots),
        table.words("perf", Measure.perf),
        table.words("metrics"),
    )
    for number, mark in enumerate(measure.snapshots):
        if mark not in MARKS:
            where = f"{table.path('snapshots')}[{number}]"
            table.problems.add(where, f"unknown mark {mark!r}{nearest(mark, MARKS)} (marks: {', '.join(MARKS)})")
    table.close()
    return measure


def _running(table: Table) -> Running:
    running = Running(
        machine=table.get("machine", str, QEMU),
        timeout=table.seconds("timeout", Running.timeout),
        boot_timeout=table.seconds("boot_timeout", Running.boot_timeout),
        fresh_machine=table.get("fresh_machine", bool, False),
        append=table.get("append", str, ""),
        nested=table.get("nested", bool, False),
        mirror_host=table.get("mirror_host", bool, False),
        huge_pages=table.get("huge_pages", bool, False),
        count=table.get("count", str, ""),
    )
    if running.machine not in (QEMU, HOST):
        near = nearest(running.machine, (QEMU, HOST))
        table.problems.add(table.path("machine"), f"{running.machine!r} is not {QEMU!r} or {HOST!r}{near}")
    if running.count not in ("", INSTRUCTIONS):
        table.problems.add(table.path("count"), f"{running.count!r} is not {INSTRUCTIONS!r}, the only thing counted")
    table.close()
    return running
