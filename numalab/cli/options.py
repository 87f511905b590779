"""Options that several verbs share: which kernel, which machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from numalab.errors import UserError

if TYPE_CHECKING:
    from numalab.machine.topology import Node, Topology

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
    """--nodes, --cpus-per-node, --node-memory, --node, --distances, --mirror-host and so on, and --accel."""
    for option in reversed(
        [
            click.option("--nodes", type=int, help="NUMA nodes.  [default: 4]"),
            click.option("--cpus-per-node", type=int, help="[default: 1]"),
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
            click.option("--asymmetric", is_flag=True, help="Distances that differ there and back are meant."),
            click.option(
                "--mirror-host",
                is_flag=True,
                help="Node i and its vCPUs on the host's node i (KVM servers); nodes, CPUs and distances are its own "
                "unless they are given.",
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


def topology_from(options: Mapping[str, Any]) -> Topology:
    """Return the topology that the values of `machine_options` name.

    Raises:
        UserError: no machine can have it.
        MissingError: --mirror-host on a host without NUMA nodes.
    """
    from numalab.machine.accel import mirrored
    from numalab.machine.topology import Node, Topology, check, equal_distances
    from numalab.units import parse_size

    nodes, cpus, distances = options["nodes"], options["cpus_per_node"], options["distances"]
    memory = parse_size(options["node_memory"], what="--node-memory")
    visible, levels = not options["oblivious"], int(options["levels"])
    if options["mirror_host"] and nodes is cpus is distances is None and not options["shapes"]:
        return mirrored(memory, visible=visible, paging_levels=levels)
    if options["shapes"]:
        cells = [_cell(number, shape) for number, shape in enumerate(options["shapes"])]
    else:
        cells = [Node(1 if cpus is None else cpus, memory)] * (4 if nodes is None else nodes)
    rows = _rows(distances) if distances else equal_distances(len(cells))
    topology = Topology(tuple(cells), rows, visible, levels)
    check(topology, allow_asymmetric=options["asymmetric"])
    return topology


def _cell(number: int, shape: str) -> Node:
    from numalab.machine.topology import Node
    from numalab.units import parse_size

    cpus, colon, size = shape.partition(":")
    if not colon or not cpus.isdigit():
        raise UserError(f"--node {shape}: write CPUS:SIZE, e.g. 2:512M")
    return Node(int(cpus), parse_size(size, what=f"--node {number}"))


def _rows(distances: str) -> tuple[tuple[int, ...], ...]:
    try:
        return tuple(tuple(int(word) for word in row.split(",")) for row in distances.split("/"))
    except ValueError:
        raise UserError(f'--distances {distances}: write numbers, e.g. "10,20/20,10"') from None
