"""The domain's XML: accepted by libvirt, and saying what the machine is."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest
from hypothesis import given, settings

from numalab.machine.domain import BASE_CMDLINE, DomainSpec, HostBinding, to_xml
from numalab.machine.topology import Node, Topology, uniform
from tests.unit.test_machine_topology import topologies

MIB = 1 << 20


def spec(topology: Topology, accel: str = "tcg") -> DomainSpec:
    return DomainSpec(
        name="m",
        accel=accel,
        topology=topology,
        kernel=Path("/k"),
        initrd=Path("/i"),
        cmdline="panic=-1",
        console=Path("/c"),
        channel=Path("/ch"),
        qmp=Path("/q"),
    )


def parse(spec: DomainSpec) -> ET.Element:
    return ET.fromstring(to_xml(spec))


@settings(max_examples=30, deadline=None)
@given(topologies())
def test_libvirt_accepts_every_shape(topology: Topology) -> None:
    connection = libvirt.open("test:///default")
    xml = (
        to_xml(spec(topology)).replace('domain type="qemu"', 'domain type="test"').replace('type="kvm"', 'type="test"')
    )
    domain = connection.defineXML(xml)
    try:
        assert domain.vcpusFlags(libvirt.VIR_DOMAIN_AFFECT_CONFIG | libvirt.VIR_DOMAIN_VCPU_MAXIMUM) == topology.cpus
        assert domain.maxMemory() * 1024 == topology.memory
    finally:
        domain.undefine()


def test_the_same_xml_for_kvm_and_emulation_but_for_the_processor() -> None:
    tcg, kvm = (parse(spec(uniform(), accel)) for accel in ("tcg", "kvm"))
    assert (tcg.get("type"), kvm.get("type")) == ("qemu", "kvm")
    for tree in (tcg, kvm):
        tree.attrib.pop("type")
        tree.remove(tree.find("cpu"))  # type: ignore[arg-type]
    assert ET.tostring(tcg) == ET.tostring(kvm)


def test_cells_distances_and_memoryless_nodes() -> None:
    shape = Topology((Node(2, 64 * MIB), Node(1, 0), Node(0, 32 * MIB)), ((10, 20, 30), (21, 10, 22), (31, 32, 10)))
    tree = parse(spec(shape))
    cells = tree.findall("cpu/numa/cell")
    assert [(cell.get("cpus"), cell.get("memory")) for cell in cells] == [
        ("0-1", str(64 * 1024)),
        ("2-2", "0"),
        (None, str(32 * 1024)),
    ]
    assert [[int(s.get("value", "")) for s in cell.iter("sibling")] for cell in cells] == [
        list(r) for r in shape.distances
    ]
    assert tree.findtext("devices/emulator", "").endswith("start-qemu")
    assert parse(spec(uniform())).find("devices/emulator") is None


def packages(topology: Topology) -> tuple[str | None, ...] | None:
    found = parse(spec(topology)).find("cpu/topology")
    return None if found is None else (found.get("sockets"), found.get("cores"), found.get("threads"))


def test_a_package_per_node() -> None:
    """A package, and so a last-level cache, that reached over nodes would make the guest's scheduler warn."""
    assert packages(uniform(4, 1)) == ("4", "1", "1")
    assert packages(uniform(2, 8)) == ("2", "8", "1")
    assert packages(uniform(2, 8, visible=False)) == ("2", "8", "1")
    far = ((10, 20, 20), (20, 10, 20), (20, 20, 10))
    without = Topology((Node(2, 64 * MIB), Node(0, 64 * MIB), Node(2, 0)), far)
    assert packages(without) == ("2", "2", "1")
    uneven = Topology((Node(2, 64 * MIB), Node(1, 64 * MIB), Node(1, 64 * MIB)), far)
    assert packages(uneven) is None


def test_a_busy_host_does_not_make_the_guest_panic() -> None:
    """Seen at a load of 17 on two CPUs: "Kernel panic: IO-APIC + timer doesn't work!", for want of timer ticks."""
    assert "no_timer_check" in BASE_CMDLINE


def test_oblivious_machines_have_no_cells() -> None:
    assert parse(spec(uniform(visible=False))).find("cpu/numa") is None


def test_memory_is_shared_and_the_note_for_the_observer_is_there() -> None:
    tree = parse(spec(uniform()))
    assert tree.find("memoryBacking/source").get("type") == "memfd"  # type: ignore[union-attr]
    assert tree.find("memoryBacking/access").get("mode") == "shared"  # type: ignore[union-attr]
    assert tree.find("features/vmcoreinfo").get("state") == "on"  # type: ignore[union-attr]


def test_no_network_device() -> None:
    assert parse(replace(spec(uniform()), shares=(("share", Path("/s")),))).find("devices/interface") is None


@pytest.mark.parametrize(
    ("levels", "accel", "policy"), [(4, "tcg", "disable"), (5, "tcg", "require"), (4, "kvm", "disable")]
)
def test_paging_levels_are_a_feature_of_the_processor(levels: int, accel: str, policy: str) -> None:
    tree = parse(spec(uniform(paging_levels=levels), accel))
    features = {f.get("name"): f.get("policy") for f in tree.iter("feature")}
    assert features["la57"] == policy


def test_emulated_processors_keep_svm() -> None:
    """Without it QEMU 7.2 leaves out CPUID leaf 0x80000008, and five levels of page tables do not work."""
    for levels in (4, 5):
        features = {f.get("name"): f.get("policy") for f in parse(spec(uniform(paging_levels=levels))).iter("feature")}
        assert features["svm"] == "require"


def test_binding_to_a_host() -> None:
    tree = parse(replace(spec(uniform(2), "kvm"), binding=HostBinding((0, 2), (5, 9)), huge_pages=True))
    assert [(p.get("vcpu"), p.get("cpuset")) for p in tree.iter("vcpupin")] == [("0", "5"), ("1", "9")]
    assert [(n.get("cellid"), n.get("mode"), n.get("nodeset")) for n in tree.iter("memnode")] == [
        ("0", "strict", "0"),
        ("1", "strict", "2"),
    ]
    assert tree.find("memoryBacking/hugepages") is not None
