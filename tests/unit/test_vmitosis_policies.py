"""The policies, shapes and experiments of vmitosis, and the laboratory that runs them, without a kernel."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from numalab.errors import ExperimentError, UserError
from numalab.machine.domain import DomainSpec, HostBinding, to_xml
from numalab.machine.outcome import GuestFileError
from numalab.machine.second import CPU, CPU_UNNAMED, SecondLevel
from numalab.machine.session import Machine
from numalab.machine.topology import Node, Topology, uniform
from numalab.run import check, matrix
from numalab.run.lab import default_lab
from numalab.run.policy import Policy, applied
from numalab.run.system import find_experiment, policies
from numalab.units import parse_size
from vmitosis import policies as of_vmitosis
from vmitosis.lab import lab as two_level_lab
from vmitosis.policies import DOMAINS, FOLLOW, HOST, HOST_MAP, MOVE, NID, POOL, SECOND, SHAPE, VMITOSIS, WITH_SECOND
from vmitosis.provision import Shape, parse_shape, place
from vmitosis.series import Rate, around, rates
from vmitosis.system import SYSTEM
from vmitosis.two_level import TwoLevel
from workloads import catalogue

MIB = 1 << 20
RESULTS = Path(__file__).parents[1] / "fixtures" / "results" / "two-cells"
LAB = two_level_lab(replace(default_lab(download=False), host_memory=lambda: 16 << 30))
EXPERIMENTS = sorted(SYSTEM.experiments())
FOUR = uniform(4, 2, "512M")


def test_registered() -> None:
    assert {policy.name for policy in SYSTEM.policies} <= set(policies())
    assert set(EXPERIMENTS) == {f"vmitosis/figure{n}" for n in ("1", "2", "3", "3-fragmented", "4", "5", "6")}
    assert {feature.brought_by for feature in SYSTEM.features} == {"patch set vmitosis"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_good(name: str) -> None:
    experiment = check.load(find_experiment(name), LAB)
    assert experiment.title
    assert matrix.points(experiment)
    assert experiment.running.nested


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_have_the_papers_sizes(name: str) -> None:
    """What stands behind "full:" takes the place of the value before it, and is an experiment too."""
    text = find_experiment(name).read_text()
    full = re.sub(r"= .* # full: ", "= ", text)
    assert full != text
    said = tomllib.loads(full)
    assert said["topologies"]["four"]["cpus_per_node"] == 48
    assert said["run"]["mirror_host"] is True
    assert {each["memory"] for each in said["policies"].values()} == {"350G"}


@pytest.mark.parametrize("size", ["emulated", "full"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_workload_fits_its_guest(name: str, size: str) -> None:
    """A program takes less than nine tenths of the guest's memory it may lie on, and the guest fits its machine."""
    text = find_experiment(name).read_text()
    said = tomllib.loads(re.sub(r"= .* # full: ", "= ", text) if size == "full" else text)
    node = parse_size(said["topologies"]["four"]["node_memory"])
    topology = uniform(4, said["topologies"]["four"]["cpus_per_node"], "368G" if size == "full" else "512M")
    assert topology.nodes[0].memory == node
    for code in said["matrix"]["policy"]:
        values = dict(said["policies"][code])
        bound = policies()[values.pop("policy")].bind(values, topology)
        shape = parse_shape(next(knob.value for knob in bound.knobs if knob.path == SHAPE))
        place(shape, topology)
        # Bound to a node; or moved from one to another, which has to hold it; or on all.
        thin = "bind:" in str(bound.options.get("memory")) or any(knob.path == MOVE for knob in bound.knobs)
        room = shape.memory * (1 if thin else len(topology.nodes))
        for workload in said["matrix"]["workload"]:
            wanted = parse_size(said["workloads"][workload]["size"])
            assert wanted <= 0.9 * room, f"{code}, {workload}: {wanted >> 20} MiB in {room >> 20} MiB"


def test_every_code_of_the_paper() -> None:
    names = {policy.name for policy in SYSTEM.policies}
    assert names >= {"LL", "LR", "RL", "RR", "LRI", "RLI", "RRI"}
    assert names >= {f"{code}+{letter}" for code in ("RR", "RRI") for letter in "EGM"}
    assert names >= {"F", "FM", "FA", "FAM", "I", "IM", "OF", "OFMP", "OFMF"}
    assert names >= {f"move-NV+{letter}" for letter in "EGM"} | {"move-NV", "move-NO", "move-NO+E"}


@pytest.mark.parametrize("policy", SYSTEM.policies, ids=lambda policy: policy.name)
def test_every_policy_makes_a_guest_and_says_what_it_needs(policy: Policy) -> None:
    bound = policy.bind({}, FOUR)
    paths = [knob.path for knob in bound.knobs]
    shapes = [knob.value for knob in bound.knobs if knob.path == SHAPE]
    assert len(shapes) == 1
    placed = place(parse_shape(shapes[0]), FOUR)
    assert placed.topology.cpus == len(placed.cpus)
    # The guest is booted before anything is set in it, and after the host's balancing is.
    assert all(path.startswith(HOST) for path in paths[: paths.index(SHAPE)])
    assert not any(path.startswith(HOST) and path != FOLLOW for path in paths[paths.index(SHAPE) :])
    wants = any(knob.path in (NID, FOLLOW, DOMAINS) for knob in bound.knobs)
    assert (VMITOSIS in policy.requires) == wants
    catalogue.get("gups").argv(bound.options)
    assert "{" not in "".join(knob.value for knob in bound.knobs)


def knobs(name: str, **values: Any) -> dict[str, str]:
    """Path → value of what is set before the program; "@ready" behind the path of what is set then."""
    bound = policies()[name].bind(values, FOUR)
    return {knob.path + (f"@{knob.mark}" if knob.mark else ""): knob.value for knob in bound.knobs}


@pytest.mark.parametrize(("code", "guest", "second"), [("LL", 2, 2), ("LR", 2, 3), ("RL", 3, 2), ("RRI", 3, 3)])
def test_the_codes_say_where_each_level_is(code: str, guest: int, second: int) -> None:
    said = knobs(code, home=2, away=3)
    assert said["/proc/sys/vm/pgtable_alloc_node"] == str(guest)
    assert (said[SECOND], said[NID], said[FOLLOW]) == ("local", str(second), "0")
    bound = policies()[code].bind({"home": 2, "away": 3}, FOUR)
    assert bound.wrap == ("taskset", "-c", "4-5")
    assert bound.options == {"cpus": "4-5", "memory": "bind:2"}
    assert bound.interference == (("3",) if code.endswith("I") else ())


@pytest.mark.parametrize(("letter", "second", "guest"), [("E", True, False), ("G", False, True), ("M", True, True)])
def test_what_migrates_does_so_when_the_measured_phase_begins(letter: str, second: bool, guest: bool) -> None:
    said = knobs(f"RRI+{letter}", home=1, away=0)
    assert said[NID] == "0"
    assert said.get(f"{NID}@ready") == ("1" if second else None)
    assert (said[FOLLOW] != "0") == second
    assert (said.get("/proc/PID/pgtable_repl@ready") == "migrate 1") == guest


def test_replicated_is_both_levels() -> None:
    for name in ("FM", "FAM", "IM", "OFMP", "OFMF"):
        said = knobs(name)
        assert said[SECOND] == "replicate"
        assert said["/proc/sys/vm/pgtable_replication"] == "2"
    for name in ("F", "FA", "I", "OF"):
        said = knobs(name)
        assert said[SECOND] == "off"
        assert "/proc/sys/vm/pgtable_replication" not in said


def test_stock_behaviour_needs_no_patch() -> None:
    for name in ("F", "OF"):
        assert policies()[name].requires == ()
        assert all(knob.optional for knob in policies()[name].knobs if knob.path not in (SHAPE,))


def test_oblivious_guests_learn_their_nodes_in_three_ways() -> None:
    assert [knobs(name).get(DOMAINS) for name in ("OF", "OFMP", "OFMF", "OFMT")] == [None, "pv", "probe", "told"]
    assert knobs("OF")[SHAPE].startswith("wide NO")
    order = [knob.path for knob in policies()["OFMP"].knobs]
    # The host offers its map before there is a guest, whose VMM must not drop the bit of CPUID that says so.
    assert knobs("OFMP")[HOST_MAP] == "Y"
    assert order.index(HOST_MAP) < order.index(SHAPE)
    assert parse_shape(knobs("OFMP")[SHAPE]).told
    assert not any(HOST_MAP in knobs(name) or parse_shape(knobs(name)[SHAPE]).told for name in ("OF", "OFMF", "OFMT"))
    # Groups first, then memory for them, then replicas that take it.
    assert order.index(DOMAINS) < order.index(POOL) < order.index("/proc/sys/vm/pgtable_replication")


def test_a_move_is_in_the_middle_of_the_run() -> None:
    assert knobs("move-NV", away=3, after=7)[f"{MOVE}@ready"] == "program 3 7"
    said = knobs("move-NO+E", home=2, away=3, after=7)
    assert said[f"{MOVE}@ready"] == "vm 3 7", "all vCPUs move: the second level follows them by itself"
    assert said[SHAPE].startswith("thin NO home=2")
    assert (said[SECOND], said[NID]) == ("local", "-1")
    assert knobs("move-NO", home=2)[NID] == "2"


@pytest.mark.parametrize(("letter", "second"), [("", False), ("E", True), ("G", False), ("M", True)])
def test_the_second_level_of_a_program_that_moves_is_told_where(letter: str, second: bool) -> None:
    said = knobs(f"move-NV+{letter}" if letter else "move-NV", home=2, away=3, after=7)
    assert said[NID] == "2", "before the move all are alike"
    assert said[f"{MOVE}@ready"] == "program 3 7" + (f" {WITH_SECOND}" if second else "")
    assert (said[FOLLOW] != "0") == second


# Shapes.


def test_shapes_are_read_as_they_are_written() -> None:
    for wide in (False, True):
        for visible in (False, True):
            shape = Shape(wide, visible, vcpus=2, memory=64 * MIB, home=1, huge=wide)
            assert parse_shape(str(shape)) == shape


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("wide", "NV or NO"),
        ("NV", "thin or wide"),
        ("wide NV tall", "'tall'"),
        ("wide NV memory=x", "memory"),
        ("", "thin or wide"),
    ],
)
def test_what_is_no_shape(text: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        parse_shape(text)


def test_wide_lies_on_every_node_and_thin_on_one() -> None:
    wide = place(parse_shape("wide NV vcpus=2 memory=64M"), FOUR)
    assert (len(wide.topology.nodes), wide.cells, wide.cpus) == (4, (0, 1, 2, 3), (0, 1, 2, 3, 4, 5, 6, 7))
    assert wide.topology.distances == FOUR.distances
    hidden = place(parse_shape("wide NO memory=64M"), FOUR)
    assert (hidden.topology.visible, hidden.cells, hidden.cpus) == (False, (), (0, 2, 4, 6))
    thin = place(parse_shape("thin NV vcpus=2 memory=64M home=3"), FOUR)
    assert (len(thin.topology.nodes), thin.cells, thin.cpus) == (1, (3,), (6, 7))
    assert place(parse_shape("thin NO memory=64M home=1"), FOUR).cells == ()


def test_wide_leaves_out_nodes_without_cpus_or_memory() -> None:
    nodes = (Node(1, 512 * MIB), Node(0, 512 * MIB), Node(1, 0), Node(1, 512 * MIB))
    row = [[10 if a == b else 20 + abs(a - b) for b in range(4)] for a in range(4)]
    host = Topology(nodes, tuple(map(tuple, row)))
    placed = place(parse_shape("wide NV memory=64M"), host)
    assert (placed.cells, placed.cpus) == ((0, 3), (0, 2))
    assert placed.topology.distances == ((10, 23), (23, 10))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("wide NV vcpus=3", "2 CPUs"),
        ("thin NV home=4", "nodes 0-3"),
        ("wide NO memory=512M", "no room"),
        ("wide NV vcpus=0", "at least"),
    ],
)
def test_guests_that_do_not_fit(text: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        place(parse_shape(text), FOUR)


def domain(topology: Topology, binding: HostBinding) -> str:
    path = Path("/x")
    spec = DomainSpec("m", "kvm", topology, path, path, "", path, path, path, binding=binding)
    return to_xml(spec)


def test_on_a_real_host_libvirt_binds_what_is_to_be_bound() -> None:
    placed = place(parse_shape("wide NV memory=64M"), FOUR)
    xml = domain(placed.topology, HostBinding(placed.cells, placed.cpus))
    assert xml.count("<memnode") == 4
    assert '<vcpupin vcpu="3" cpuset="6"' in xml
    placed = place(parse_shape("wide NO memory=64M"), FOUR)
    xml = domain(placed.topology, HostBinding(placed.cells, placed.cpus))
    assert "numatune" not in xml
    assert "<numa>" not in xml
    assert xml.count("<vcpupin") == 4
    xml = domain(replace(uniform(1, 2, "64M"), visible=False), HostBinding((2,), (4, 5)))
    assert re.search(r'<memory mode="strict" nodeset="2"', xml)


# The second-level guest's QEMU.


class NoMachine:
    """As much of a machine as describing a guest takes."""

    accel = "tcg"
    topology = FOUR

    class spec:  # noqa: N801
        inner_channels = (Path("/a"), Path("/b"))


def second(topology: Topology, **values: Any) -> SecondLevel:
    kernel: Any = None
    return SecondLevel(cast(Machine, NoMachine()), kernel, topology, **values)


def test_the_command_of_a_guest_that_sees_nodes() -> None:
    placed = place(parse_shape("wide NV vcpus=2 memory=64M"), FOUR)
    words = second(placed.topology, cpus=[[cpu] for cpu in placed.cpus], cells=placed.cells).argv("/dev/vport1p2")
    line = " ".join(words)
    assert line.startswith("taskset -c 0,1,2,3,4,5,6,7 qemu-system-x86_64 ")
    assert "-accel kvm" in line
    assert "-S" in words
    assert "-smp 8,sockets=4,cores=2,threads=1" in line
    assert "memory-backend-memfd,share=on,id=node3,size=67108864,host-nodes=3,policy=bind" in line
    assert "node,nodeid=2,memdev=node2,cpus=4-5" in line
    assert "dist,src=0,dst=3,val=20" in line
    assert "pipe,id=channel,path=/dev/vport1p2" in line


def test_a_guest_that_is_told_gets_bits_its_vmm_has_no_name_for() -> None:
    plain, told = (second(uniform(1, 1, "64M"), cpus=[[0]], cpu=cpu).argv("/dev/p") for cpu in (CPU, CPU_UNNAMED))
    assert plain[plain.index("-cpu") + 1].split(",")[:1] == ["host"]
    assert "migratable=off" not in " ".join(plain)
    assert "migratable=off" in told[told.index("-cpu") + 1].split(",")
    assert parse_shape(str(Shape(True, False, told=True))).told
    placed = place(parse_shape("wide NO memory=64M"), FOUR)
    assert 'migratable="off"' in domain(placed.topology, HostBinding(placed.cells, placed.cpus, True))
    assert "migratable" not in domain(placed.topology, HostBinding(placed.cells, placed.cpus))


def test_the_command_of_a_guest_that_sees_none() -> None:
    placed = place(parse_shape("wide NO memory=64M"), FOUR)
    line = " ".join(second(placed.topology, cpus=[[0], [2], [4], [6]], huge_pages=True).argv("/dev/p"))
    assert "memory-backend-ram,id=all,size=268435456 " in line
    assert "host-nodes" not in line
    assert "-numa" not in line


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"cpus": [[0]]}, "2 vCPUs"),
        ({"cpus": [[0], [8]]}, "CPUs 0-7"),
        ({"cpus": [[0], []]}, "vCPU 1"),
        ({"cpus": [[0], [1]], "cells": [0, 1]}, "1 nodes"),
        ({"cpus": [[0], [1]], "cells": [4]}, "no node 4"),
        ({"cpus": [[0], [1]], "slot": 2}, "number 2"),
    ],
)
def test_guests_that_cannot_be(values: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        second(uniform(1, 2, "64M"), **values)


# The laboratory.


class FakeGuest:
    """A second-level guest: files by path, pinned vCPUs."""

    topology = uniform(2, 1, "64M")

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files
        self.qemu_pid = 77
        self.threads = (1, 2)
        self.cpus = [[0], [2]]
        self.cells = (0, 1)
        self.moved: list[int] = []
        self.complaints: list[str] = []
        self.closed = False

    def read_file(self, path: str) -> bytes:
        if path not in self.files:
            raise GuestFileError(path, 2)
        return self.files[path].encode()

    def write_file(self, path: str, data: bytes, **_: Any) -> None:
        if path not in self.files:
            raise GuestFileError(path, 2)
        self.files[path] = data.decode().strip()

    def pin(self, vcpu: int, cpus: list[int]) -> None:
        self.cpus[vcpu] = list(cpus)

    def move(self, node: int) -> None:
        self.moved.append(node)

    def close(self) -> None:
        self.closed = True


class FakeMachine(FakeGuest):
    accel = "tcg"
    topology = FOUR

    def run(self, argv: list[str], **_: Any) -> Any:
        class Done:
            stdout = b"76-9\n77-11\nblocking\n"
            ok = True

        return Done()


VCPU = "/sys/kernel/debug/kvm/77-11/vcpu{}/mmu_nid"


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> TwoLevel:
    host = {
        "/sys/kernel/debug/kvm/77-11/numa_mmu": "off",
        VCPU.format(0): "auto 0",
        VCPU.format(1): "auto 1",
        "/sys/module/kvm/parameters/numa_mmu_follow_ms": "1000",
        "/proc/sys/kernel/numa_balancing": "1",
    }
    guest = {
        "/proc/sys/kernel/numa_balancing": "1",
        "/proc/sys/vm/pgtable_alloc_node": "-1",
        "/proc/sys/vm/pgtable_replication": "1",
        "/proc/sys/vm/pgtable_replication_mode": "lazy",
        "/sys/kernel/mm/pgtable_repl/provider": "native",
        "/sys/kernel/mm/pgtable_repl/domains": "",
    }
    kernel: Any = None
    made = TwoLevel(cast(Machine, FakeMachine(host)), kernel, {})

    def boot(text: str) -> Any:
        parse_shape(text)
        made._home = [[0], [2]]
        return FakeGuest(dict(guest))

    monkeypatch.setattr(made, "_boot", boot)
    monkeypatch.setattr("vmitosis.two_level._end", lambda guest: guest.close())
    return made


def setting(name: str, **values: Any) -> Policy:
    """A policy without what waits for a mark."""
    bound = policies()[name].bind(values, FOUR)
    return replace(bound, knobs=tuple(knob for knob in bound.knobs if not knob.mark))


def test_a_policy_is_set_in_three_machines_and_put_back(two: TwoLevel) -> None:
    host = cast(FakeMachine, two.machine)

    # The debugfs file says "fixed 1" for what was written as 1.
    class Nid(dict[str, str]):
        def __setitem__(self, path: str, value: str) -> None:
            told = f"fixed {value}" if value != "-1" else "auto 0"
            super().__setitem__(path, told if path.endswith("mmu_nid") and value.lstrip("-").isdigit() else value)

    host.files = Nid(host.files)
    with applied(two, setting("LR", home=0, away=1)):
        guest = cast(FakeGuest, two.inner)
        assert host.files["/sys/kernel/debug/kvm/77-11/numa_mmu"] == "local"
        assert host.files[VCPU.format(0)] == host.files[VCPU.format(1)] == "fixed 1"
        assert host.files["/proc/sys/kernel/numa_balancing"] == "0"
        assert guest.files["/proc/sys/vm/pgtable_alloc_node"] == "0"
    assert two.guest is None
    assert host.files[VCPU.format(0)] == "auto 0"
    assert host.files["/sys/kernel/debug/kvm/77-11/numa_mmu"] == "off"
    assert guest.files["/proc/sys/vm/pgtable_alloc_node"] == "-1"
    assert not guest.closed, "the next cell of the same shape takes it"
    guest.cpus[0] = [5]
    with applied(two, setting("LL")):
        assert cast(Any, two.inner) is guest
        assert guest.cpus[0] == [0], "and finds it where it was booted"
    with applied(two, setting("LL", memory="64M")):
        assert cast(Any, two.inner) is not guest
    assert guest.closed


def test_a_kernel_without_the_feature_is_refused(two: TwoLevel) -> None:
    from numalab.errors import MissingError

    host = cast(FakeMachine, two.machine)
    for path in [path for path in host.files if "numa_mmu" in path]:
        del host.files[path]
    with pytest.raises(MissingError) as raised, applied(two, setting("LR")):
        pass
    assert "vmitosis" in raised.value.remedy
    with applied(two, setting("F")):
        assert two.inner


def test_groups_that_the_laboratory_knows(two: TwoLevel) -> None:
    two.write_file(SHAPE, b"wide NO\n")
    two.inner.cpus[:] = [[0], [2]]
    two.write_file(DOMAINS, b"told\n")
    assert cast(FakeGuest, two.inner).files["/sys/kernel/mm/pgtable_repl/domains"] == "0 1"
    assert two.read_file(DOMAINS) == b"told"


def test_a_guest_without_the_probe_is_refused(two: TwoLevel) -> None:
    from numalab.errors import MissingError

    two.write_file(SHAPE, b"wide NO\n")
    with pytest.raises(MissingError, match="pgrepl-probe"):
        two.write_file(DOMAINS, b"probe\n")


def test_groups_by_latency_and_a_pool_for_them(two: TwoLevel, monkeypatch: pytest.MonkeyPatch) -> None:
    two._files = {"/bin/pgrepl-probe": Path("/probe")}
    two.write_file(SHAPE, b"wide NO\n")
    guest = cast(FakeGuest, two.inner)
    matrix = "cpu,0,1,2,3,4,5\n" + "".join(
        f"{a}," + ",".join(str(50 + 90 * (a % 2 != b % 2)) for b in range(6)) + "\n" for a in range(6)
    )

    class Done:
        stdout = matrix.encode()

    monkeypatch.setattr(guest, "run", lambda *_, **__: Done(), raising=False)
    two.write_file(DOMAINS, b"probe\n")
    assert guest.files["/sys/kernel/mm/pgtable_repl/domains"] == "0,2,4 1,3,5"
    assert two.grouping is not None
    assert two.grouping.confidence > 0.5
    guest.files["/sys/kernel/mm/pgtable_repl/pool"] = "pages 512\n0 free 512 size 512 placed 0 missed 0\n"
    assert two.read_file(POOL) == b"512"


def test_a_move_happens_while_the_program_works(two: TwoLevel) -> None:
    two.write_file(SHAPE, b"thin NO\n")
    done = two.run(["sh", "-c", "...", "123", MOVE, "vm 3 0"])
    assert done.ok
    for timer in two._timers:
        timer.join(5)
    assert cast(FakeGuest, two.inner).moved == [3]
    assert [event["what"] for event in two.events] == ["guest", "moved"]


@pytest.mark.parametrize("also", ["", WITH_SECOND])
def test_the_second_level_moves_with_the_program_where_the_policy_says_so(two: TwoLevel, also: str) -> None:
    """vCPUs stay when a program moves: unless they are told, the tables of its old node are right for ever."""
    two.write_file(SHAPE, b"wide NV vcpus=1 memory=64M\n")
    ran: list[list[str]] = []
    cast(Any, two.inner).run = lambda argv, **_: ran.append(argv)
    two.run(["sh", "-c", "...", "123", MOVE, f"program 1 0 {also}".strip()])
    for timer in two._timers:
        timer.join(5)
    assert ran == [["taskset", "-apc", "1", "123"]]
    host = cast(FakeMachine, two.machine)
    assert {host.files[VCPU.format(vcpu)] for vcpu in (0, 1)} == ({"1"} if also else {"auto 0", "auto 1"})
    assert not two._failure


def test_groups_are_looked_at_again_after_the_machine_was_moved(two: TwoLevel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What few pairs contradict is measured as a whole; a group keeps its number, and with it its pool."""
    two._files = {"/bin/pgrepl-probe": Path("/probe")}
    two.write_file(SHAPE, b"wide NO\n")
    guest = cast(FakeGuest, two.inner)
    node = [0, 0, 0, 0, 1, 1, 1, 1]
    asked: list[list[str]] = []

    class Done:
        def __init__(self, cpus: list[int]) -> None:
            rows = [f"{a}," + ",".join(str(50 + 90 * (node[a] != node[b]) + a / 9) for b in cpus) for a in cpus]
            self.stdout = "\n".join(["cpu," + ",".join(map(str, cpus)), *rows]).encode()

    def run(argv: list[str], **_: Any) -> Done:
        asked.append(argv)
        return Done([int(cpu) for cpu in argv[2].split(",")] if "-c" in argv else list(range(8)))

    monkeypatch.setattr(guest, "run", run, raising=False)
    two.write_file(DOMAINS, b"probe\n")
    domains = "/sys/kernel/mm/pgtable_repl/domains"
    assert guest.files[domains] == "0-3 4-7"
    two._move("vm", 1, 0, False)
    assert asked.count(["/bin/pgrepl-probe"]) == 1, "where all moved together nothing is measured as a whole"
    node[:] = [1, 0, 0, 0, 1, 1, 1, 0]
    two._move("vm", 0, 0, False)
    assert not two._failure
    assert asked.count(["/bin/pgrepl-probe"]) == 2
    assert guest.files[domains] == "1-3,7 0,4-6"


def test_all_levels_with_all_sights_but_what_the_kernel_refuses() -> None:
    names = {policy.name for policy in SYSTEM.policies}
    for sight in ("NV", "NO-P", "NO-F"):
        for second_level in ("off", "local", "replicated", "migrating"):
            for guest in ("off", "replicated", "migrating"):
                if guest == "migrating" and sight != "NV":
                    with pytest.raises(UserError, match="EOPNOTSUPP"):
                        of_vmitosis.combined(second_level, guest, sight)
                else:
                    assert f"{sight}-{second_level}-{guest}" in names
    said = knobs("NO-P-migrating-replicated")
    assert (said[SECOND], said[FOLLOW], said[DOMAINS], said[HOST_MAP]) == ("local", "1000", "pv", "Y")
    assert knobs("NV-off-migrating")["/proc/PID/pgtable_repl@init"] == "follow on"


def test_a_move_that_fails_is_the_cells_failure(two: TwoLevel) -> None:
    two.write_file(SHAPE, b"thin NO\n")

    def refuse(node: int) -> None:
        raise ExperimentError(f"no node {node}")

    cast(Any, two.inner).move = refuse
    two.run(["sh", "-c", "...", "123", MOVE, "vm 3 0"])
    for timer in two._timers:
        timer.join(5)
    with pytest.raises(ExperimentError, match="no node 3"):
        two.write_file(SHAPE, b"none\n")


def test_a_program_that_ends_before_it_is_moved_is_no_result(two: TwoLevel) -> None:
    two.write_file(SHAPE, b"thin NO\n")
    two.run(["sh", "-c", "...", "123", MOVE, "vm 3 600"])
    with pytest.raises(ExperimentError, match="ended before it was moved"):
        two.write_file(SHAPE, b"none\n")
    assert not two._timers


def test_without_a_guest_there_is_nothing_to_run_in(two: TwoLevel) -> None:
    with pytest.raises(ExperimentError, match="no guest"):
        two.start(["true"])
    with pytest.raises(GuestFileError):
        two.read_file("vm:/nonsense")


# Throughput over time.

OUTPUT = """numalab-point: {"seconds": 2.0, "work": 200, "node0": 12}
other words
numalab-point: {"seconds": 4.0, "work": 400}
numalab-point: {"seconds": 6.0, "work": 450}
numalab-point: {"seconds": 7.0, "work": 475}
numalab-result: {}
"""


def test_throughput_over_time() -> None:
    found = rates(OUTPUT)
    assert found == [Rate(0, 2, 100), Rate(2, 4, 100), Rate(4, 6, 25), Rate(6, 7, 25)]
    assert around(found, 4.0) == (100, 25)
    assert around(found, 3.0) == (100, 25)
    assert around(found, 4.0, settle=10) == (100, None)
    assert rates("nothing\n") == []
    with pytest.raises(ExperimentError, match="line of progress"):
        rates('numalab-point: {"seconds": 1}\n')


def test_the_tables_of_a_run(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from vmitosis.__main__ import command

    runner = CliRunner()
    assert runner.invoke(command, ["--help"]).exit_code == 0
    value = json.loads(next(RESULTS.glob("cells/*/result.json")).read_text())
    seen = {"local_local": 3, "local_remote": 1, "remote_local": 0, "remote_remote": 0, "unfilled": 2}
    both = {"processes": [{"seen": {"0": seen}}]}
    value["placement"] = [{"mark": "ready", "file": None, "summary": {"both_levels": both}}]
    cell = tmp_path / "cells" / value["cell"]["id"]
    cell.mkdir(parents=True)
    (cell / "result.json").write_text(json.dumps(value))
    (cell / "stdout.txt").write_text(OUTPUT)
    said = runner.invoke(command, ["shares", str(tmp_path)], standalone_mode=False)
    assert "75.0%" in said.output
    said = runner.invoke(command, ["rates", str(tmp_path), "--moved", "4"], standalone_mode=False)
    assert "wall time of an emulation" in said.output
    assert "before 100 /s, after 25 /s" in said.output


def test_modes_of_the_second_level() -> None:
    assert of_vmitosis.Second("off").knobs()[0].optional
    assert [knob.path for knob in of_vmitosis.Second("local", "2", follow=True).knobs()] == [FOLLOW, NID, SECOND]
