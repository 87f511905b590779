"""Parameters of policies: what an experiment may choose, and what a choice means on one shape of machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from numalab.errors import UserError, nearest
from numalab.machine.accel import parse_cpu_list
from numalab.machine.topology import Topology
from numalab.run.reader import fits, type_name


class NodeNumber(int):
    """A NUMA node in a policy's parameters; `{name:cpus}` in a template is the list of its CPUs."""

    topology: Topology

    def __new__(cls, number: int, topology: Topology) -> NodeNumber:
        """Bind `number` to the topology it must exist in."""
        made = super().__new__(cls, number)
        made.topology = topology
        return made

    def __format__(self, wanted: str) -> str:
        if wanted != "cpus":
            return int.__repr__(self)
        cpus = self.topology.cpus_of(self)
        if not cpus:
            raise UserError(f"node {int(self)} has no CPUs to run threads on")
        return number_list(cpus)


class NodeList(str):
    """Nodes in a policy's parameters, a list such as "0-2,5"; "all" is every node with memory."""

    __slots__ = ()


def number_list(numbers: Iterable[int]) -> str:
    """Return ascending numbers as the kernel writes lists of them: "3", "0-3", "0-13,56-69"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


@dataclass(frozen=True)
class Param:
    """A parameter of a policy.

    Attributes:
        type: of its value (NodeNumber: a node of the machine; NodeList: several).
        default, help: for people.
        choices: the values it can have; empty: any.
    """

    type: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()

    def complaint(self, value: object) -> str:
        """What is wrong with a value as written in a file, "" when nothing is."""
        wanted: type = {NodeNumber: int, NodeList: str}.get(self.type, self.type)
        if not fits(value, wanted):
            what = {NodeNumber: "a node's number", NodeList: "a list of nodes"}.get(self.type) or type_name(wanted())
            return f"must be {what}, not {type_name(value)} ({value!r})"
        if self.choices and value not in self.choices:
            return f"{value!r} is none of {', '.join(map(repr, self.choices))}{nearest(str(value), self.choices)}"
        return ""


def problems(policy: str, params: Mapping[str, Param], values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is wrong with the parameters given to a policy: pairs of key and complaint."""
    found = []
    for key, value in values.items():
        if key not in params:
            has = f"has {', '.join(params)}" if params else "has no parameters"
            found.append((key, f"unknown parameter{nearest(key, params)}; policy {policy!r} {has}"))
        elif complaint := params[key].complaint(value):
            found.append((key, complaint))
    return found


def choose(params: Mapping[str, Param], values: Mapping[str, Any], topology: Topology) -> dict[str, Any]:
    """Return the value of every parameter on one shape of machine, and under "nodes" all its nodes with memory.

    Raises:
        UserError: a node that the topology does not have.
    """
    chosen: dict[str, Any] = {"nodes": memory_nodes(topology)}
    for key, param in params.items():
        value = values.get(key, param.default)
        if param.type is NodeNumber:
            value = existing_node(key, value, topology)
        elif param.type is NodeList:
            value = _existing_nodes(key, value, topology)
        chosen[key] = value
    return chosen


def memory_nodes(topology: Topology) -> str:
    """All nodes with memory, as the kernel writes lists: "0-3", "0,2-3"."""
    return number_list(number for number, node in enumerate(topology.nodes) if node.memory)


def existing_node(key: str, number: int, topology: Topology) -> NodeNumber:
    """Return a node of the topology.

    Raises:
        UserError: it has none of that number; says so under the name `key`.
    """
    count = len(topology.nodes)
    if not 0 <= number < count:
        has = "one node, 0" if count == 1 else f"nodes 0-{count - 1}"
        raise UserError(f"{key} = {number}: there is no such node (the topology has {has})")
    return NodeNumber(number, topology)


def _existing_nodes(key: str, text: str, topology: Topology) -> NodeList:
    if text == "all":
        return NodeList(memory_nodes(topology))
    try:
        numbers = parse_cpu_list(text)
    except ValueError:
        numbers = []
    if not numbers:
        raise UserError(f"{key} = {text!r}: no list of nodes (such as 0-2,5, or all)")
    for number in numbers:
        existing_node(key, number, topology)
    # As the kernel writes it, so that what it shows is what was asked for.
    return NodeList(number_list(sorted(set(numbers))))
