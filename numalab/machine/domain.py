"""The libvirt domain of a machine: one XML for KVM and for emulation.

Format: https://libvirt.org/formatdomain.html
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from numalab.machine.topology import Topology

_QEMU_NS = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("qemu", _QEMU_NS)

#: Words every guest's kernel gets; what the user appends comes later and wins. no_timer_check: a kernel that does not
#: see its timer tick within some milliseconds of the boot panics, and an emulated one on a busy host may not.
BASE_CMDLINE = ("console=ttyS0", "panic=-1", "oops=panic", "quiet", "loglevel=5", "nmi_watchdog=0", "no_timer_check")

#: Name of the port, in the guest, of the channel to the guest's own guest of that number.
INNER_PORT = "org.numalab.inner.{}"


@dataclass(frozen=True)
class HostBinding:
    """Where the machine lies on a real NUMA host.

    `cells[i]` is the host node that guest node i is bound to, strictly; `cpus[v]` the host CPU of vCPU v. Without cells
    memory goes by first touch. Where nodes are hidden from the guest, one cell stands for all its memory. With
    `unnamed_cpuid` it gets the bits of CPUID that QEMU has no name for, and cannot be migrated.
    """

    cells: tuple[int, ...]
    cpus: tuple[int, ...]
    unnamed_cpuid: bool = False


@dataclass(frozen=True)
class DomainSpec:
    """All that the XML is made of; paths are on the host.

    `inner_channels` are sockets of ports named `INNER_PORT` that guests of the guest are reached through. `threads`:
    whether emulated vCPUs share a thread, "single", or have one each, "multi" (numalab/machine/emulator.py).
    """

    name: str
    accel: str
    topology: Topology
    kernel: Path
    initrd: Path
    cmdline: str
    console: Path
    channel: Path
    qmp: Path
    shares: tuple[tuple[str, Path], ...] = ()
    nested: bool = False
    inner_channels: tuple[Path, ...] = ()
    huge_pages: bool = False
    binding: HostBinding | None = None
    drives: tuple[Path, ...] = ()
    extra_args: Sequence[str] = field(default_factory=tuple)
    threads: str = "multi"


def to_xml(spec: DomainSpec) -> str:
    """Return the domain's XML."""
    domain = ET.Element("domain", type="kvm" if spec.accel == "kvm" else "qemu")
    _text(domain, "name", spec.name)
    _text(domain, "memory", str(spec.topology.memory // 1024), unit="KiB")
    _memory_backing(domain, spec)
    vcpu = _text(domain, "vcpu", str(spec.topology.cpus), placement="static")
    vcpu.set("current", str(spec.topology.cpus))
    _binding(domain, spec)
    _boot(domain, spec)
    features = ET.SubElement(domain, "features")
    for name in ("acpi", "apic"):
        ET.SubElement(features, name)
    # drgn finds the guest's kernel through the note that the guest leaves here.
    ET.SubElement(features, "vmcoreinfo", state="on")
    _cpu(domain, spec)
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _text(domain, event, "destroy")
    _devices(domain, spec)
    command = ET.SubElement(domain, f"{{{_QEMU_NS}}}commandline")
    # A QMP socket serves one client: libvirt has its own, this one is the observer's.
    for word in ("-qmp", f"unix:{spec.qmp},server=on,wait=off", *spec.extra_args):
        ET.SubElement(command, f"{{{_QEMU_NS}}}arg", value=word)
    for name, value in _wrapper_environment(spec).items():
        ET.SubElement(command, f"{{{_QEMU_NS}}}env", name=name, value=value)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode")


def _memoryless(spec: DomainSpec) -> list[int]:
    nodes = spec.topology.nodes if spec.topology.visible else ()
    return [number for number, node in enumerate(nodes) if node.memory == 0]


def _wrapper_environment(spec: DomainSpec) -> dict[str, str]:
    """What libvirt cannot say, for the script `start-qemu`; nothing when QEMU is started as it is."""
    told = {}
    if _memoryless(spec):
        told["NUMALAB_MEMORYLESS"] = " ".join(str(number) for number in _memoryless(spec))
    if spec.threads == "single":
        told["NUMALAB_TCG"] = "thread=single"
    return told


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _memory_backing(domain: ET.Element, spec: DomainSpec) -> None:
    backing = ET.SubElement(domain, "memoryBacking")
    if spec.huge_pages:
        ET.SubElement(backing, "hugepages")
    # Shared memory files: the guest's memory can be read from outside, node by node.
    ET.SubElement(backing, "source", type="memfd")
    ET.SubElement(backing, "access", mode="shared")


def _binding(domain: ET.Element, spec: DomainSpec) -> None:
    if spec.binding is None:
        return
    tune = ET.SubElement(domain, "cputune")
    for vcpu, cpu in enumerate(spec.binding.cpus):
        ET.SubElement(tune, "vcpupin", vcpu=str(vcpu), cpuset=str(cpu))
    if not spec.binding.cells:
        return
    memory = ET.SubElement(domain, "numatune")
    if not spec.topology.visible:
        nodes = ",".join(str(node) for node in sorted(set(spec.binding.cells)))
        ET.SubElement(memory, "memory", mode="strict", nodeset=nodes)
        return
    for cell, node in enumerate(spec.binding.cells):
        if spec.topology.nodes[cell].memory:
            ET.SubElement(memory, "memnode", cellid=str(cell), mode="strict", nodeset=str(node))


def _boot(domain: ET.Element, spec: DomainSpec) -> None:
    system = ET.SubElement(domain, "os")
    _text(system, "type", "hvm", arch="x86_64", machine="q35")
    _text(system, "kernel", str(spec.kernel))
    _text(system, "initrd", str(spec.initrd))
    _text(system, "cmdline", spec.cmdline)


def _cpu(domain: ET.Element, spec: DomainSpec) -> None:
    kvm = spec.accel == "kvm"
    cpu = ET.SubElement(domain, "cpu", mode="host-passthrough" if kvm else "maximum", check="none")
    if kvm and spec.binding and spec.binding.unnamed_cpuid:
        cpu.set("migratable", "off")
    counts = {node.cpus for node in spec.topology.nodes if node.cpus}
    if len(counts) == 1:
        # A package per node, as real machines have them. QEMU's own choice is one per CPU; packages that reach over
        # nodes would make the guest's scheduler warn. Nodes of several sizes cannot be said: QEMU chooses then.
        cores = counts.pop()
        ET.SubElement(
            cpu, "topology", sockets=str(spec.topology.cpus // cores), dies="1", cores=str(cores), threads="1"
        )
    five = spec.topology.paging_levels == 5
    if not (kvm and five):
        ET.SubElement(cpu, "feature", policy="require" if five else "disable", name="la57")
    if not kvm:
        # Never "disable": QEMU 7.2 then leaves out the leaf that says how wide addresses are, and a
        # guest with five levels falls back to 48 bits.
        ET.SubElement(cpu, "feature", policy="require", name="svm")
    if not spec.topology.visible:
        return
    numa = ET.SubElement(cpu, "numa")
    for number, node in enumerate(spec.topology.nodes):
        cell = ET.SubElement(numa, "cell", id=str(number))
        if node.cpus:
            cpus = spec.topology.cpus_of(number)
            cell.set("cpus", f"{cpus[0]}-{cpus[-1]}")
        cell.set("memory", str(node.memory // 1024))
        cell.set("unit", "KiB")
        distances = ET.SubElement(cell, "distances")
        for other, distance in enumerate(spec.topology.distances[number]):
            ET.SubElement(distances, "sibling", id=str(other), value=str(distance))


def _devices(domain: ET.Element, spec: DomainSpec) -> None:
    devices = ET.SubElement(domain, "devices")
    if _wrapper_environment(spec):
        _text(devices, "emulator", str(Path(__file__).with_name("start-qemu")))
    serial = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(serial, "source", path=str(spec.console))
    ET.SubElement(ET.SubElement(serial, "target", type="isa-serial", port="0"), "model", name="isa-serial")
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "source", mode="bind", path=str(spec.channel))
    ET.SubElement(channel, "target", type="virtio", name="org.numalab.0")
    for number, path in enumerate(spec.inner_channels):
        inner = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(inner, "source", mode="bind", path=str(path))
        ET.SubElement(inner, "target", type="virtio", name=INNER_PORT.format(number))
    for tag, path in spec.shares:
        share = ET.SubElement(devices, "filesystem", type="mount", accessmode="passthrough")
        ET.SubElement(share, "source", dir=str(path))
        ET.SubElement(share, "target", dir=tag)
        ET.SubElement(share, "readonly")
    for number, path in enumerate(spec.drives):
        disk = ET.SubElement(devices, "disk", type="file", device="disk")
        ET.SubElement(disk, "driver", name="qemu", type="raw")
        ET.SubElement(disk, "source", file=str(path))
        ET.SubElement(disk, "target", dev=f"vd{chr(ord('a') + number)}", bus="virtio")
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "memballoon", model="none")
