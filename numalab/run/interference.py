"""Interference: a second program beside the measured one, on the CPUs and memory of a chosen node.

The papers put STREAM on a node and ask what becomes of a program whose page tables, or data, lie there. Here is what
an experiment file says about it and what a cell makes of it; `numalab.run.beside` runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numalab.errors import UserError, nearest
from numalab.machine.accel import parse_cpu_list
from numalab.machine.topology import Topology
from numalab.results import NO_INTERFERENCE
from numalab.run.lab import Lab, WorkloadLike
from numalab.run.policy import Policy, existing_node, number_list
from numalab.run.reader import Table, fits, type_name
from numalab.units import parse_size

#: The workload that an interference runs unless it names another.
DEFAULT_WORKLOAD = "stream"
#: The parameter by which a workload runs until it is told to stop; what lacks it might end too early.
ENDLESS = "forever"


@dataclass(frozen=True)
class Interference:
    """One value of the matrix's axis `interference`.

    Attributes:
        name: the label in the matrix and in the results.
        workload: whose program runs beside the measured one.
        nodes: one program for each, on its CPUs and memory; empty: nothing runs.
        params: what the file says about the workload's parameters, unchecked.
        key: where in the file it stands, for complaints.
    """

    name: str
    workload: str = DEFAULT_WORKLOAD
    nodes: tuple[int, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as in the file."""
        return {"workload": self.workload, "node": list(self.nodes), **self.params}


NONE = Interference(NO_INTERFERENCE)


@dataclass(frozen=True)
class Load:
    """One program that runs beside the measured one: of which workload, on which node, by which command."""

    workload: WorkloadLike
    node: int
    argv: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"workload": self.workload.name, "node": self.node, "argv": self.argv}


def interferences_in(described: Table, wanted: tuple[str, ...]) -> tuple[Interference, ...]:
    """Return what the axis names, in its order; what is wrong is noted."""
    problems = described.problems
    found = {NO_INTERFERENCE: NONE}
    for name, table in described.children().items():
        if name == NO_INTERFERENCE:
            problems.add(table.key, f"{name!r} means that nothing runs beside the program; take another name")
            continue
        workload = table.get("workload", str, DEFAULT_WORKLOAD)
        found[name] = Interference(name, workload, _nodes(table), table.rest(), table.key)
        if name not in wanted:
            near = nearest(name, wanted)
            problems.add(table.key, f"is described here and not used in matrix.interference{near}")
    chosen = []
    for number, name in enumerate(wanted):
        if name in found:
            chosen.append(found[name])
        else:
            near = nearest(name, found)
            problems.add(
                f"matrix.interference[{number}]",
                f"unknown interference {name!r}{near} (describe it: [interference.{name}] node = 1)",
            )
    return tuple(chosen)


def _nodes(table: Table) -> tuple[int, ...]:
    """The key `node`: a number, or an array of them."""
    if not isinstance(table.value.get("node"), list):
        number = table.get("node", int, -1, required=True)
        return () if number == -1 else (number,)
    nodes = []
    for place, value in enumerate(table.get("node", list, [])):
        where = f"{table.path('node')}[{place}]"
        if not fits(value, int):
            table.problems.add(where, f"must be an integer, not {type_name(value)}")
        elif value in nodes:
            table.problems.add(where, f"node {value} is there twice")
        else:
            nodes.append(value)
    if not table.value["node"]:
        table.problems.add(table.path("node"), "must name at least one")
    return tuple(nodes)


def bind(
    workload: WorkloadLike, nodes: Sequence[int], params: Mapping[str, Any], topology: Topology, *, key: str = "node"
) -> list[Load]:
    """Return the programs for a shape of machine: threads on all CPUs of their node, memory bound to it.

    `params` go before both; `key` names the nodes in complaints.

    Raises:
        UserError: no such node, a node without CPUs or memory for it, or parameters that do not fit.
    """
    if nodes and ENDLESS not in workload.params:
        raise UserError(f"workload {workload.name!r} ends by itself (it has no parameter {ENDLESS!r})")
    return [Load(workload, node, workload.argv(_placed(workload, node, params, topology, key))) for node in nodes]


def loads(beside: Interference, policy: Policy, topology: Topology, lab: Lab) -> list[Load]:
    """Return what runs beside a program: what the matrix says, then what the (bound) policy says.

    Raises:
        UserError: see `bind`.
    """
    found = bind(lab.workload(beside.workload), beside.nodes, beside.params, topology) if beside.nodes else []
    if policy.interference:
        nodes = [int(node) for node in policy.interference]
        found += bind(lab.workload(DEFAULT_WORKLOAD), nodes, {}, topology, key="interference")
    return found


def _placed(
    workload: WorkloadLike, node: int, params: Mapping[str, Any], topology: Topology, key: str
) -> dict[str, Any]:
    existing_node(key, node, topology)
    if not topology.visible and len(topology.nodes) > 1:
        raise UserError(f"{key} = {node}: nodes are hidden from this guest (visible = false)")
    for name in params:
        if name not in workload.params:
            raise UserError(f"{name}: unknown parameter{nearest(name, workload.params)} of workload {workload.name!r}")
    given: dict[str, Any] = {ENDLESS: True, **params}
    if "memory" not in given and "node" not in given:
        _check_memory(workload, node, given, topology, key)
        given["memory"] = f"bind:{node}"
    if "cpus" not in given:
        cpus = topology.cpus_of(node)
        if not cpus:
            raise UserError(f"{key} = {node}: this node has no CPUs to run on; name others with cpus")
        given["cpus"] = number_list(cpus)
    if "threads" not in given and "threads" in workload.params:
        given["threads"] = _count_cpus(given["cpus"])
    return given


def _check_memory(workload: WorkloadLike, node: int, given: Mapping[str, Any], topology: Topology, key: str) -> None:
    has = topology.nodes[node].memory
    if not has:
        raise UserError(f"{key} = {node}: this node has no memory to load")
    default = workload.params["size"].default if "size" in workload.params else 0
    size = {"size": default, **given}["size"]
    if parse_size(size, what="size") >= has:
        raise UserError(f"size: {size!r} does not fit into node {node}, which has {has >> 20} MiB")


def _count_cpus(cpus: Any) -> int:
    """How many CPUs a value of the parameter names; 1 where it is none (the workload says so itself)."""
    if isinstance(cpus, list):
        return len(cpus) or 1
    try:
        return len(parse_cpu_list(str(cpus))) or 1
    except ValueError:
        return 1
