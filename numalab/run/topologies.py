"""Topologies of an experiment file: `[topologies.NAME]`, and those of them that the matrix uses."""

from __future__ import annotations

from numalab.errors import UserError, nearest
from numalab.machine.topology import REMOTE_DISTANCE, Node, Topology, check, equal_distances, uniform
from numalab.run.reader import Table, fits, type_name

#: The topology of an experiment that names none, and of any that names it.
DEFAULT = "four"


def topologies_in(described: Table, wanted: tuple[str, ...], *, host: Topology | None = None) -> dict[str, Topology]:
    """Return the topologies that the axis names, by name; what is wrong is noted. `host` is known as "host"."""
    problems = described.problems
    found: dict[str, Topology | None] = {DEFAULT: uniform(), **({"host": host} if host else {})}
    for name, table in described.children().items():
        found[name] = _topology(table)
        if name not in wanted:
            near = nearest(name, wanted)
            problems.add(table.key, f"is described here and not used in matrix.topology{near}")
    chosen = {}
    for number, name in enumerate(wanted):
        topology = found.get(name)
        if topology:
            chosen[name] = topology
        elif name not in found:
            problems.add(f"matrix.topology[{number}]", f"unknown topology {name!r}{nearest(name, found)}")
    return chosen


def _topology(table: Table) -> Topology | None:
    """One topology: either nodes alike (a number), or an array of tables, one per node."""
    before = len(table.problems.found)
    if isinstance(table.value.get("nodes"), list):
        nodes = []
        for each in table.tables("nodes"):
            nodes.append(Node(each.count("cpus", 1, least=0), each.size("memory", "0", required=True)))
            each.close()
    else:
        count = table.count("nodes", 4, least=1)
        cpus = table.count("cpus_per_node", 1, least=0)
        nodes = [Node(cpus, table.size("node_memory", "512M"))] * count
    remote = table.get("remote_distance", int, REMOTE_DISTANCE)
    distances = _distances(table) if "distances" in table.value else equal_distances(len(nodes), remote)
    asymmetric = table.get("asymmetric", bool, False)
    visible = table.get("visible", bool, True)
    levels = table.get("paging_levels", int, 4)
    table.close()
    if len(table.problems.found) > before:
        return None
    try:
        topology = Topology(tuple(nodes), distances, visible, levels)
        check(topology, allow_asymmetric=asymmetric)
    except UserError as error:
        table.problems.add(table.key, f"{error}{f'; {error.remedy}' if error.remedy else ''}")
        return None
    return topology


def _distances(table: Table) -> tuple[tuple[int, ...], ...]:
    rows = []
    for number, row in enumerate(table.get("distances", list, [])):
        where = f"{table.path('distances')}[{number}]"
        if not isinstance(row, list):
            table.problems.add(where, f"must be an array, not {type_name(row)}")
            continue
        for column, value in enumerate(row):
            if not fits(value, int):
                table.problems.add(f"{where}[{column}]", f"must be an integer, not {type_name(value)}")
        rows.append(tuple(row))
    return tuple(rows)
