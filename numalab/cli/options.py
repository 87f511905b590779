"""Options that several verbs share: which kernel, which machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from numalab.machine.topology import Topology

F = TypeVar("F", bound=Callable[..., Any])


def kernel_option(function: F) -> F:
    """--kernel."""
    return click.option(
        "--kernel",
        default="stock",
        show_default=True,
        metavar="stock|patched|debug|FILE",
        help="Debian's prebuilt kernel, one of ours (built when it is not there), or a bzImage.",
    )(function)


def machine_options(function: F) -> F:
    """--nodes, --cpus-per-node, --node-memory, --node, --distances, --levels, --oblivious, --accel."""
    for option in reversed(
        [
            click.option("--nodes", type=int, default=4, show_default=True, help="NUMA nodes."),
            click.option("--cpus-per-node", type=int, default=1, show_default=True),
            click.option("--node-memory", default="512M", show_default=True, metavar="SIZE"),
            click.option(
                "--node",
                "shapes",
                multiple=True,
                metavar="CPUS:SIZE",
                help="One node's shape, once per node (0 CPUs or size 0 allowed); instead of the three above.",
            ),
            click.option(
                "--distances",
                metavar="ROWS",
                help='SLIT distances, rows parted by "/", e.g. "10,20/20,10".',
            ),
            click.option("--levels", type=click.Choice(["4", "5"]), default="4", show_default=True, help="Paging."),
            click.option("--oblivious", is_flag=True, help="Hide NUMA from the guest."),
            click.option(
                "--accel",
                default="auto",
                show_default=True,
                metavar="auto|kvm|tcg",
                help="auto: KVM if a probe boot succeeds, else emulation.",
            ),
        ]
    ):
        function = option(function)
    return function


def topology_from(
    nodes: int,
    cpus_per_node: int,
    node_memory: str,
    shapes: tuple[str, ...],
    distances: str | None,
    levels: str,
    oblivious: bool,
) -> Topology:
    """Return the topology the options name.

    Raises:
        UserError: no machine can have it.
    """
    from numalab.errors import UserError
    from numalab.machine.topology import LOCAL_DISTANCE, Node, Topology, uniform
    from numalab.units import parse_size

    if not shapes and not distances:
        return uniform(nodes, cpus_per_node, node_memory, visible=not oblivious, paging_levels=int(levels))
    if shapes:
        cells = []
        for number, shape in enumerate(shapes):
            cpus, colon, size = shape.partition(":")
            if not colon or not cpus.isdigit():
                raise UserError(f"--node {shape}: write CPUS:SIZE, e.g. 2:512M")
            cells.append(Node(int(cpus), parse_size(size, what=f"--node {number}")))
    else:
        cells = [Node(cpus_per_node, parse_size(node_memory, what="--node-memory"))] * nodes
    if distances:
        try:
            matrix = tuple(tuple(int(word) for word in row.split(",")) for row in distances.split("/"))
        except ValueError:
            raise UserError(f'--distances {distances}: write numbers, e.g. "10,20/20,10"') from None
    else:
        count = len(cells)
        matrix = tuple(tuple(LOCAL_DISTANCE if i == j else 20 for j in range(count)) for i in range(count))
    return Topology(tuple(cells), matrix, not oblivious, int(levels))
