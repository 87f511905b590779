"""Policies: saved, set, read back, and restored whatever happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from numalab.errors import ExperimentError, MachineLostError, MissingError, UserError
from numalab.kernel.image import KernelImage
from numalab.machine.outcome import QemuDiedError
from numalab.machine.topology import Node, Topology, uniform
from numalab.run.lab import MachineRequest
from numalab.run.policy import NONE, Knob, NodeNumber, Param, Policy, applied
from tests.unit.fake_lab import KNOB, POLICIES, THP, ZONE, FakeMachine, World

BOTH = POLICIES["mitosis"]


def machine(tmp_path: Path, world: World | None = None, *, kernel: str = "patched") -> FakeMachine:
    request = MachineRequest(KernelImage(kernel, tmp_path, "6.12"), uniform(2))
    return FakeMachine(world or World(), request, tmp_path)


def writes(world: World) -> list[str]:
    return [line for line in world.log if "=" in line]


def test_set_and_restored_in_reverse(tmp_path: Path) -> None:
    world = World()
    fake = machine(tmp_path, world)
    with applied(fake, BOTH) as settings:
        assert fake.files[ZONE] == b"1\n"
        assert fake.files[THP] == b"[always] madvise never\n"
        assert [(s.path, s.before, s.wanted, s.got) for s in settings] == [
            (ZONE, "0", "1", "1"),
            (THP, "madvise", "always", "always"),
        ]
        assert not any(s.restored for s in settings)
    assert writes(world) == [f"{ZONE}=1", f"{THP}=always", f"{THP}=madvise", f"{ZONE}=0"]
    assert all(s.restored for s in settings)
    assert fake.files[THP] == b"always [madvise] never\n"


@pytest.mark.parametrize("error", [ValueError("inside"), KeyboardInterrupt(), ExperimentError("inside")])
def test_restored_on_any_exception(tmp_path: Path, error: BaseException) -> None:
    fake = machine(tmp_path)
    before = dict(fake.files)
    with pytest.raises(type(error)), applied(fake, BOTH):
        raise error
    assert fake.files == before


def test_a_knob_that_does_not_take(tmp_path: Path) -> None:
    world = World(stuck_knob=THP)
    fake = machine(tmp_path, world)
    ran = False
    with pytest.raises(ExperimentError) as caught, applied(fake, BOTH):
        ran = True
    assert not ran
    message = f"policy 'mitosis': {THP} did not take: wanted 'always', got 'madvise'"
    assert str(caught.value) == message
    assert fake.files[ZONE] == b"0\n"


def test_a_value_the_kernel_refuses_is_explained(tmp_path: Path) -> None:
    fake = machine(tmp_path)
    policy = Policy("p", "", knobs=(Knob(THP, "sometimes"),))
    with (
        pytest.raises(ExperimentError, match=r"wanted 'sometimes', got 'madvise' \(Invalid argument\)"),
        applied(fake, policy),
    ):
        pass


def test_a_missing_knob_names_the_patch_set(tmp_path: Path) -> None:
    fake = machine(tmp_path, kernel="stock")
    with pytest.raises(MissingError) as caught, applied(fake, POLICIES["remote"].bind({}, uniform(2))):
        pass
    assert str(caught.value) == f"policy 'remote': this kernel has no {KNOB}"
    assert caught.value.remedy == "boot a kernel with the patch set 'common' (numalab kernel build)"


def test_an_optional_knob_may_be_missing(tmp_path: Path) -> None:
    world = World()
    with applied(machine(tmp_path, world, kernel="stock"), POLICIES["first-touch"]) as settings:
        assert [(s.before, s.got) for s in settings] == [(None, None)]
    assert writes(world) == []


def test_a_knob_that_cannot_be_restored(tmp_path: Path) -> None:
    world = World()
    fake = machine(tmp_path, world)
    with pytest.raises(ExperimentError, match=f"{ZONE} could not be restored to '0'"), applied(fake, BOTH):
        world.stuck_knob = ZONE
    assert fake.files[THP] == b"always [madvise] never\n"


def test_a_failed_restore_does_not_hide_the_first_error(tmp_path: Path) -> None:
    world = World()
    fake = machine(tmp_path, world)
    with pytest.raises(ValueError, match="first") as caught, applied(fake, BOTH):
        world.stuck_knob = ZONE
        raise ValueError("first")
    assert caught.value.__notes__ == [f"{ZONE} could not be restored to '0'"]


def test_a_lost_machine_is_not_touched_again(tmp_path: Path) -> None:
    world = World()
    with pytest.raises(MachineLostError), applied(machine(tmp_path, world), BOTH):
        raise QemuDiedError("gone")
    assert writes(world) == [f"{ZONE}=1", f"{THP}=always"]


def test_none_touches_nothing(tmp_path: Path) -> None:
    world = World()
    with applied(machine(tmp_path, world), NONE) as settings:
        assert settings == []
    assert world.log == []


def test_placeholders() -> None:
    policy = Policy(
        "p",
        "",
        knobs=(Knob("/k", "{away}"),),
        wrap=("numactl", "--membind={away}"),
        options={"cpus": "{home:cpus}", "memory": "interleave:{nodes}"},
        params={"home": Param(NodeNumber, 1, ""), "away": Param(NodeNumber, 0, "")},
    )
    bound = policy.bind({"away": 2}, uniform(4, 2, "64M"))
    assert bound.knobs == (Knob("/k", "2"),)
    assert bound.wrap == ("numactl", "--membind=2")
    assert bound.options == {"cpus": "2-3", "memory": "interleave:0-3"}
    assert bound.to_json()["knobs"] == [["/k", "2"]]


def test_nodes_without_memory_and_without_cpus() -> None:
    odd = Topology(
        (Node(1, 64 << 20), Node(1, 0), Node(0, 64 << 20), Node(1, 64 << 20)),
        tuple(tuple(10 if i == j else 20 for j in range(4)) for i in range(4)),
    )
    policy = Policy(
        "p", "", options={"cpus": "{n:cpus}", "memory": "bind:{nodes}"}, params={"n": Param(NodeNumber, 0, "")}
    )
    assert policy.bind({"n": 3}, odd).options == {"cpus": "2", "memory": "bind:0,2-3"}
    with pytest.raises(UserError, match="node 2 has no CPUs"):
        policy.bind({"n": 2}, odd)
    with pytest.raises(UserError, match=r"n = 4: there is no such node \(the topology has nodes 0-3\)"):
        policy.bind({"n": 4}, odd)
    with pytest.raises(UserError, match="the topology has one node, 0"):
        policy.bind({"n": 1}, uniform(1))
