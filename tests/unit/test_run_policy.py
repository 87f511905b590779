"""Policies: saved, set, read back, and restored whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from numalab.errors import ExperimentError, MachineLostError, MissingError, UserError
from numalab.kernel.image import KernelImage
from numalab.machine.outcome import Completed, QemuDiedError
from numalab.machine.topology import Node, Topology, uniform
from numalab.run import policy as policy_module
from numalab.run.lab import MachineRequest
from numalab.run.policy import NONE, Knob, LateSetting, NodeList, NodeNumber, Param, Policy, applied
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


class Marking(FakeMachine):
    """A machine whose next command announces marks when the test says so."""

    def __init__(self, tmp_path: Path, answer: Completed) -> None:
        super().__init__(World(), MachineRequest(KernelImage("patched", tmp_path, "6.12"), uniform(2)), tmp_path)
        self.answer = answer
        self.waiting: list[tuple[str, Callable[[int], None]]] = []

    @contextmanager
    def at_mark(self, name: str, action: Callable[[int], None]) -> Iterator[None]:
        self.waiting.append((name, action))
        yield
        self.waiting.remove((name, action))

    def run(self, argv: Sequence[str], *, timeout: float | None = None) -> Completed:
        self.world.log.append(" ".join(argv[3:]))
        return self.answer


LATE = Policy("late", "", knobs=(Knob(ZONE, "1"), Knob("/proc/PID/file", "migrate 1", mark="ready")))


def test_a_knob_that_waits_for_a_mark(tmp_path: Path) -> None:
    fake = Marking(tmp_path, Completed([], 0, None, b"", b""))
    with applied(fake, LATE) as settings:
        assert settings[1].got is None
        ((name, action),) = fake.waiting
        assert name == "ready"
        action(77)
        late = settings[1]
        assert isinstance(late, LateSetting)
        assert (late.before, late.wanted, late.got, late.mark) == (None, "migrate 1", "migrate 1", "ready")
    assert fake.waiting == []
    # It belongs to the program, which is gone: nothing is restored.
    assert fake.world.log == [f"{ZONE}=1", "77 /proc/PID/file migrate 1", f"{ZONE}=0"]
    assert LATE.to_json()["knobs"] == [[ZONE, "1"], ["/proc/PID/file", "migrate 1", "at ready"]]


def test_a_late_knob_that_does_not_take(tmp_path: Path) -> None:
    fake = Marking(tmp_path, Completed([], 1, None, b"", b"sh: write error: Invalid argument\n"))
    with (
        pytest.raises(ExperimentError, match=r"'migrate 1' could not be written to /proc/PID/file at the mark 'ready'"),
        applied(fake, LATE),
    ):
        fake.waiting[0][1](77)
    assert fake.files[ZONE] == b"0\n"


def test_the_shell_that_writes_late_finds_the_program_behind_its_wrapper(tmp_path: Path) -> None:
    """The script as it stands, on this host: a process that has a child is not the program."""
    wrapper = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    try:
        assert wrapper.stdout
        child = wrapper.stdout.readline().strip()
        (tmp_path / child).mkdir()
        script = policy_module._LATE
        command = ["sh", "-c", script, str(wrapper.pid), f"{tmp_path}/PID/file", "migrate 1"]
        subprocess.run(command, check=True, timeout=60)
        assert (tmp_path / child / "file").read_text() == "migrate 1\n"
        os.kill(int(child), signal.SIGTERM)
    finally:
        wrapper.kill()
        wrapper.wait()


def test_a_missing_knob_names_what_brings_it(tmp_path: Path) -> None:
    policy = Policy("p", "", knobs=(Knob("/sys/none", "1", brought_by="the flavour debug"),), requires=("common",))
    with pytest.raises(MissingError) as caught, applied(machine(tmp_path), policy):
        pass
    assert caught.value.remedy == "boot a kernel with the flavour debug (numalab kernel build)"


def test_an_option_that_comes_to_nothing_is_not_set() -> None:
    policy = Policy(
        "p", "", options={"huge": "{huge}", "cpus": "0"}, params={"huge": Param(str, "", "", ("", "never"))}
    )
    assert policy.bind({}, uniform(2)).options == {"cpus": "0"}
    assert policy.bind({"huge": "never"}, uniform(2)).options == {"huge": "never", "cpus": "0"}
    assert policy.problems({"huge": "nevre"}) == [("huge", "'nevre' is none of '', 'never' (did you mean 'never'?)")]


def test_lists_of_nodes() -> None:
    policy = Policy("p", "", wrap=("{on}",), params={"on": Param(NodeList, "all", "")})
    assert policy.bind({}, uniform(4)).wrap == ("0-3",)
    assert policy.bind({"on": "0,2-3"}, uniform(4)).wrap == ("0,2-3",)
    for wrong in ("", "x", "0-9", "4"):
        with pytest.raises(UserError, match="on = "):
            policy.bind({"on": wrong}, uniform(4))
    assert policy.problems({"on": 3}) == [("on", "must be a list of nodes, not an integer (3)")]
