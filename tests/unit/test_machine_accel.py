"""The host's side: lists of CPUs, its own topology from sysfs, binding, memory, KVM's absence."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from numalab.cli.options import machine_options, topology_from
from numalab.errors import MissingError, UserError
from numalab.machine import accel
from numalab.machine.topology import Node, Topology, uniform


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A host with nodes 0 and 2, of 4 and 2 CPUs, as a server with an empty socket shows them."""
    for number, cpus, memory, distance in ((0, "0-1,8-9", 1048576, "10 21"), (2, "4,6", 524800, "21 10")):
        node = tmp_path / f"node{number}"
        node.mkdir()
        (node / "cpulist").write_text(cpus + "\n")
        (node / "distance").write_text(distance + "\n")
        (node / "meminfo").write_text(f"Node {number} MemTotal:       {memory} kB\nNode {number} MemFree: 1 kB\n")
    return tmp_path


def test_the_hosts_own_shape(sysfs: Path) -> None:
    topology, numbers = accel.host_topology(sysfs)
    assert numbers == (0, 2)
    assert topology.nodes == (Node(4, 1 << 30), Node(2, 512 << 20))
    assert topology.distances == ((10, 21), (21, 10))


def test_a_machine_of_the_hosts_shape(sysfs: Path) -> None:
    (sysfs / "node2/meminfo").write_text("Node 2 MemTotal:       0 kB\n")
    mirror = accel.mirrored(256 << 20, paging_levels=5, sysfs=sysfs)
    assert mirror == Topology((Node(4, 256 << 20), Node(2, 0)), ((10, 21), (21, 10)), paging_levels=5)


def test_a_machine_mirrors_the_host_unless_its_shape_is_given(sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "host_topology", lambda _, own=accel.host_topology: own(sysfs))

    def shape(*argv: str) -> Topology:
        found: list[Topology] = []
        verb = click.command()(machine_options(lambda **options: found.append(topology_from(options))))
        done = CliRunner().invoke(verb, argv)
        assert done.exit_code == 0, done.output
        return found[0]

    assert shape("--mirror-host", "--node-memory", "256M") == accel.mirrored(256 << 20)
    assert shape("--mirror-host", "--nodes", "2") == uniform(2)
    assert shape("--mirror-host", "--cpus-per-node", "2") == uniform(4, 2)
    assert shape("--mirror-host", "--node", "1:64M").nodes == (Node(1, 64 << 20),)
    assert shape() == uniform()


def test_binding(sysfs: Path) -> None:
    binding = accel.bind_to_host(uniform(2, 2, "256M"), sysfs)
    assert (binding.cells, binding.cpus) == ((0, 2), (0, 1, 4, 6))


def test_binding_that_does_not_fit(sysfs: Path) -> None:
    with pytest.raises(UserError, match="3 nodes, this host 2"):
        accel.bind_to_host(uniform(3), sysfs)
    with pytest.raises(UserError, match="node 1 wants 3 CPUs; node 2 of the host has 2"):
        accel.bind_to_host(uniform(2, 3), sysfs)


def test_a_host_without_nodes(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="without NUMA"):
        accel.host_topology(tmp_path)


@given(st.sets(st.integers(0, 500)))
def test_cpu_lists(numbers: set[int]) -> None:
    assert accel.parse_cpu_list(",".join(map(str, sorted(numbers)))) == sorted(numbers)


def test_more_memory_than_the_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "available_memory", lambda: 2 << 30)
    accel.check_memory(uniform(2, 1, "512M"))
    with pytest.raises(UserError, match="needs 4 GiB of memory, this host has 2 GiB free"):
        accel.check_memory(uniform(4, 1, "1G"))


def test_kvm_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(accel, "_KVM", tmp_path / "kvm")
    assert accel.choose("auto") == "tcg"
    assert accel.choose("tcg") == "tcg"
    with pytest.raises(MissingError, match="there is no /dev/kvm"):
        accel.choose("kvm")


def test_no_right_to_use_kvm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(accel, "_KVM", tmp_path / "kvm")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(MissingError, match="group kvm"):
        accel.choose("kvm")


def test_a_kvm_that_opens_but_does_not_boot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The verdict is remembered: the second question does not probe again."""
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(accel, "_KVM", tmp_path / "kvm")
    monkeypatch.setattr(os, "access", lambda *_: True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[int] = []

    def probe() -> str:
        asked.append(1)
        return "a probe boot failed: x"

    monkeypatch.setattr(accel, "_probe", probe)
    assert (accel.choose("auto"), accel.choose("auto")) == ("tcg", "tcg")
    assert asked == [1]


def test_unknown_accelerator() -> None:
    with pytest.raises(UserError, match="unknown accelerator 'hvf'"):
        accel.choose("hvf")


def test_topology_of_nodes_and_cpus_is_checked_before_binding(sysfs: Path) -> None:
    shape = Topology((Node(1, 64 << 20), Node(1, 0)), ((10, 20), (20, 10)))
    assert accel.bind_to_host(shape, sysfs).cpus == (0, 4)
