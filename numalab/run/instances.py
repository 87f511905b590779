"""Instances: one workload as several processes at once, each on a node of its own, with a priority of its own.

Here is what an experiment file says about them and what a cell makes of it; `numalab.run.together` runs them.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numalab.errors import UserError, nearest
from numalab.machine.topology import Topology
from numalab.run.lab import WorkloadLike
from numalab.run.policy import Policy, existing_node, number_list
from numalab.run.reader import Table

#: The highest and the lowest priority of a process (nice(2)), and the limits of a cgroup's cpu.weight.
NICE = (-20, 19)
WEIGHT = (1, 10_000)
CGROUPS = "/sys/fs/cgroup"


@dataclass(frozen=True)
class Instance:
    """One process of a workload.

    Attributes:
        node: on whose CPUs it runs, from its first instruction on; its memory goes there by first touch.
        nice: its priority, -20 (highest) to 19.
        weight: cpu.weight of a cgroup of its own; 0: it has none.
        params: parameters of the workload that differ from those of the others.
        key: where in the file it stands, for complaints.
    """

    node: int
    nice: int = 0
    weight: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as in the file."""
        return {
            "node": self.node,
            "nice": self.nice,
            **({"weight": self.weight} if self.weight else {}),
            **self.params,
        }


@dataclass(frozen=True)
class Instances:
    """All processes of a workload; none: it is one process, as it comes.

    Attributes:
        each: in the order of the file, which numbers them from 0.
        shuffled: whether the order in which they begin is drawn anew for each repeat.
    """

    each: tuple[Instance, ...] = ()
    shuffled: bool = False

    def __bool__(self) -> bool:
        return bool(self.each)

    def to_json(self) -> dict[str, Any]:
        """What they add to a workload's values in the file; nothing when there are none."""
        if not self.each:
            return {}
        return {"instances": [one.to_json() for one in self.each], "shuffle_instances": self.shuffled}

    def order(self, seed: int, *place: object) -> list[int]:
        """Return the numbers of the instances in the order in which they begin.

        Drawn by a keyed hash of `seed` and `place` (workload, repeat ...), not by a generator: the same on every
        version of Python.
        """
        numbers = list(range(len(self.each)))
        if not self.shuffled:
            return numbers
        return sorted(numbers, key=lambda number: hashlib.sha256(repr((seed, *place, number)).encode()).digest())


NO_INSTANCES = Instances()


@dataclass(frozen=True)
class Placed:
    """An instance on one shape of machine.

    Attributes:
        number: from 0, as in the file.
        instance: what the file says.
        wrap: words in front of the command: node, priority, cgroup.
        command: the policy's wrapper and the program.
        cgroup: its own, "" when it has none.
    """

    number: int
    instance: Instance
    wrap: list[str]
    command: list[str]
    cgroup: str = ""

    @property
    def argv(self) -> list[str]:
        """The whole command of the guest."""
        return [*self.wrap, *self.command]

    @property
    def name(self) -> str:
        """For messages."""
        return f"instance {self.number} on node {self.instance.node}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "instance": self.number,
            "node": self.instance.node,
            "nice": self.instance.nice,
            "weight": self.instance.weight or None,
            "argv": self.argv,
        }


def instances_in(table: Table) -> Instances:
    """Return what a table `[workloads.NAME]` says of instances; what is wrong is noted."""
    found = []
    for each in table.tables("instances"):
        node = each.get("node", int, -1, required=True)
        nice, weight = each.get("nice", int, 0), each.get("weight", int, 0)
        _within(each, "nice", nice, *NICE)
        if "weight" in each.value:
            _within(each, "weight", weight, *WEIGHT)
        found.append(Instance(node, nice, weight, each.rest(), each.key))
    shuffled = table.get("shuffle_instances", bool, False)
    if shuffled and len(found) < 2:
        table.problems.add(table.path("shuffle_instances"), "there are no two instances to shuffle")
    return Instances(tuple(found), shuffled)


def _within(table: Table, key: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        table.problems.add(table.path(key), f"must be from {least} to {most}, not {value}")


def place(
    instances: Instances, workload: WorkloadLike, given: Mapping[str, Any], policy: Policy, topology: Topology
) -> list[Placed]:
    """Return the instances on a shape of machine; `given` are the parameters that all of them share.

    Raises:
        UserError: no such node, one without CPUs, unknown parameters, or a policy that places the program itself.
    """
    if instances and ("taskset" in policy.wrap or "cpus" in policy.options):
        raise UserError(f"policy {policy.name!r} says where the program runs, and so do instances: leave one out")
    if instances and any(knob.mark and "PID" in knob.path for knob in policy.knobs):
        raise UserError(f"policy {policy.name!r} writes to a file of one process: it does not go with instances")
    return [_place(number, one, workload, given, policy, topology) for number, one in enumerate(instances.each)]


def _place(
    number: int,
    one: Instance,
    workload: WorkloadLike,
    given: Mapping[str, Any],
    policy: Policy,
    topology: Topology,
) -> Placed:
    node = existing_node("node", one.node, topology)
    cpus = topology.cpus_of(node)
    if not cpus:
        raise UserError(f"node = {one.node}: this node has no CPUs to run on")
    if not topology.visible and len(topology.nodes) > 1:
        raise UserError(f"node = {one.node}: nodes are hidden from this guest (visible = false)")
    for name in one.params:
        if name not in workload.params:
            raise UserError(f"{name}: unknown parameter{nearest(name, workload.params)} of workload {workload.name!r}")
    cgroup = f"{CGROUPS}/numalab-{number}" if one.weight else ""
    wrap = ["taskset", "-c", number_list(cpus)]
    # A shell does what is left, and becomes the program. Busybox has no nice, but renice; it starts from 0.
    steps = [f"renice -n {one.nice} -p $$ > /dev/null"] if one.nice else []
    steps += [f"echo $$ > {cgroup}/cgroup.procs"] if cgroup else []
    if steps:
        wrap += ["sh", "-c", " && ".join([*steps, 'exec "$@"']), "sh"]
    return Placed(number, one, wrap, [*policy.wrap, *workload.argv({**given, **one.params})], cgroup)


def commands(placed: Sequence[Placed]) -> Iterator[str]:
    """What a cell with instances does in its guest, as lines of shell."""
    for one in placed:
        if one.cgroup:
            yield f"mkdir {one.cgroup}; echo {one.instance.weight} > {one.cgroup}/cpu.weight"
    for one in placed:
        yield f"{shlex.join(one.argv)} &  # {one.name}; all wait for each other at the marks ready and done"
