"""Virtual machines of the shapes the paper studies, on a real NUMA host and inside the emulated machine alike.

*Wide*: vCPUs and memory on all nodes; *Thin*: on one. *NUMA-visible* (NV): the guest sees the nodes it lies on, and its
memory is bound to them; *NUMA-oblivious* (NO): it sees one node, and the host places each page where it is first
touched. vCPUs are pinned always.

    shape = Shape(wide=True, visible=False, vcpus=1, memory=96 << 20)
    with boot(shape, kernel, inside=machine) as guest:      # a guest of the emulated machine
    with boot(shape, kernel) as guest:                      # a guest of this host, by libvirt

Both kinds of guest run commands, move files and serve marks in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numalab.errors import UserError
from numalab.kernel.image import KernelImage
from numalab.machine.accel import host_topology, parse_cpu_list
from numalab.machine.domain import HostBinding
from numalab.machine.second import CPU, CPU_UNNAMED, SecondLevel
from numalab.machine.session import Machine
from numalab.machine.topology import LOCAL_DISTANCE, Node, Topology
from numalab.units import format_size, parse_size

__all__ = ["Placed", "Shape", "boot", "parse_shape", "place"]

_WORDS = {
    "thin": ("wide", False),
    "wide": ("wide", True),
    "NV": ("visible", True),
    "NO": ("visible", False),
    "told": ("told", True),
}
_NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True)
class Shape:
    """A virtual machine.

    Attributes:
        wide: over all nodes of its host that have CPUs and memory, or on one.
        visible: whether it sees the nodes (NV) or not (NO).
        vcpus: on each node it lies on.
        memory: bytes on each node it lies on.
        home: the node of a Thin one.
        huge: its memory is backed by huge pages: libvirt takes those the host has set aside, inside the emulated
            machine they are transparent; else by pages of 4K.
        told: it gets all of CPUID that KVM offers, also bits its VMM has no name for: the bit by which a host tells
            that it has a map of vCPUs for the guest (NO-P) is such. It cannot be migrated to another VMM.
    """

    wide: bool
    visible: bool
    vcpus: int = 1
    memory: int = 96 << 20
    home: int = 0
    huge: bool = False
    told: bool = False

    def __str__(self) -> str:
        """As `parse_shape` reads it."""
        words = ["wide" if self.wide else "thin", "NV" if self.visible else "NO"]
        words += ["told"] if self.told else []
        words += [f"vcpus={self.vcpus}", f"memory={self.memory >> 20}M", f"home={self.home}"]
        return " ".join([*words, f"backing={'huge' if self.huge else '4K'}"])


def parse_shape(text: str) -> Shape:
    """Read a shape such as "wide NV vcpus=1 memory=96M" (per node), "thin NO home=2 backing=huge".

    Raises:
        UserError: it is none; names the word.
    """
    values: dict[str, Any] = {}
    for word in text.split():
        key, is_value, value = word.partition("=")
        if word in _WORDS:
            field, value_of = _WORDS[word]
            values[field] = value_of
        elif word in ("backing=4K", "backing=huge"):
            values["huge"] = word.endswith("huge")
        elif is_value and key == "memory":
            values[key] = parse_size(value, what=f"memory of the guest {text!r}")
        elif is_value and key in ("vcpus", "home") and value.isdigit():
            values[key] = int(value)
        else:
            raise UserError(
                f"the guest {text!r}: {word!r} is none of thin, wide, NV, NO, told, vcpus=, memory=, home=, "
                "backing=4K|huge"
            )
    for field, words in (("wide", "thin or wide"), ("visible", "NV or NO")):
        if field not in values:
            raise UserError(f"the guest {text!r}: say {words}")
    return Shape(**values)


@dataclass(frozen=True)
class Placed:
    """A shape on a host.

    Attributes:
        topology: of the guest.
        cpus: host CPU of each vCPU.
        cells: host node that each guest node (or all of a hidden one's memory) is bound to; empty: by first touch.
        nodes: the host nodes it lies on.
    """

    topology: Topology
    cpus: tuple[int, ...]
    cells: tuple[int, ...]
    nodes: tuple[int, ...]


def place(shape: Shape, host: Topology) -> Placed:
    """Find CPUs and memory on `host` for a guest; node i of a NUMA-visible one lies on the i-th that it uses.

    Raises:
        UserError: a node lacks CPUs or memory for it.
    """
    if shape.vcpus < 1:
        raise UserError("a guest needs at least one vCPU on each node")
    if shape.wide:
        nodes = tuple(number for number, node in enumerate(host.nodes) if node.cpus and node.memory)
    else:
        nodes = (shape.home,)
    for number in nodes:
        if number >= len(host.nodes):
            raise UserError(f"home={number}: the host has nodes 0-{len(host.nodes) - 1}")
        has = host.nodes[number]
        if has.cpus < shape.vcpus:
            raise UserError(f"node {number} has {has.cpus} CPUs, not {shape.vcpus} for a guest's vCPUs")
        if has.memory <= shape.memory:
            raise UserError(f"node {number} has {format_size(has.memory)}: no room for {format_size(shape.memory)}")
    far = [[LOCAL_DISTANCE if a == b else host.distances[a][b] for b in nodes] for a in nodes]
    topology = Topology((Node(shape.vcpus, shape.memory),) * len(nodes), tuple(map(tuple, far)), visible=shape.visible)
    cpus = tuple(cpu for number in nodes for cpu in list(host.cpus_of(number))[: shape.vcpus])
    return Placed(topology, cpus, nodes if shape.visible else (), nodes)


@contextmanager
def boot(
    shape: Shape,
    kernel: KernelImage,
    *,
    inside: Machine | None = None,
    files: Mapping[str, Path] | None = None,
    append: str = "",
    log_dir: Path | None = None,
) -> Iterator[Machine | SecondLevel]:
    """Boot a guest of this shape.

    Args:
        shape: of the guest.
        kernel: of the guest.
        inside: the machine it runs in; None: this host, by libvirt and KVM.
        files: guest path → host file.
        append: words for its kernel.
        log_dir: of its console, on this host.

    Raises:
        UserError: it does not fit.
        MissingError: this host, or the machine, cannot run it.
    """
    guest: Machine | SecondLevel
    if inside is None:
        host, numbers = host_topology(_NODES)
        own = tuple(tuple(parse_cpu_list((_NODES / f"node{number}" / "cpulist").read_text())) for number in numbers)
        placed = place(shape, Topology(host.nodes, host.distances, cpu_numbers=own))
        binding = HostBinding(tuple(numbers[cell] for cell in placed.cells), placed.cpus, shape.told)
        guest = Machine(
            kernel,
            placed.topology,
            accel="kvm",
            binding=binding,
            huge_pages=shape.huge,
            extra_files=files,
            append=append,
            log_dir=log_dir,
        )
    else:
        placed = place(shape, inside.topology)
        guest = SecondLevel(
            inside,
            kernel,
            placed.topology,
            cpus=[[cpu] for cpu in placed.cpus],
            cells=placed.cells,
            huge_pages=shape.huge,
            extra_files=files,
            append=append,
            cpu=CPU_UNNAMED if shape.told else CPU,
        )
    with guest:
        yield guest
