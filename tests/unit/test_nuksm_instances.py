"""Several processes of one workload at once: what a file may say of them, what becomes of it, and how they are run."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from numalab.errors import ExperimentError, UserError
from numalab.machine.late import LateActions
from numalab.machine.outcome import (
    CommandFailedError,
    CommandTimeoutError,
    Completed,
    GuestFileError,
    Mark,
    QemuDiedError,
)
from numalab.machine.topology import Node, Topology, uniform
from numalab.run import instances, policy_params
from numalab.run.check import load
from numalab.run.instances import NO_INSTANCES, Instance, Instances, place
from numalab.run.plan import commands, plan
from numalab.run.policy import NONE, Knob, Policy
from numalab.run.reader import Problems, Table
from numalab.run.runner import Options, select
from numalab.run.together import Together, samples_of
from tests.unit.fake_lab import WORKLOADS
from tests.unit.test_run_runner import Bench
from workloads import catalogue

SAMEPAGE = catalogue.get("samepage")
TEXT = """\
repeats = 4
[matrix]
workload = "pair"
policy = {policy}
[workloads.pair]
workload = "gups"
size = "1M"
instances = {instances}
shuffle_instances = {shuffled}
[topologies.four]
node_memory = "64M"
[measure]
metrics = {metrics}
"""
PAIR = "[{ node = 0 }, { node = 1 }]"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def read(text: dict[str, Any]) -> tuple[Instances, list[str]]:
    problems = Problems("exp.toml")
    table = Table(text, "workloads.pair", problems)
    return instances.instances_in(table), problems.found


def cells_of(bench: Bench, **given: str) -> Any:
    words = {"instances": PAIR, "shuffled": "false", "metrics": "[]", "policy": '["none"]', **given}
    file = bench.top / "exp.toml"
    file.write_text(TEXT.format(**words))
    experiment = load(file, bench.lab)
    return plan(experiment, select(experiment, Options(given="x")), bench.lab, accel="tcg")[0]


# The file.


def test_what_the_file_says() -> None:
    found, problems = read({"instances": [{"node": 0, "nice": -20}, {"node": 3, "weight": 50, "seed": 2}]})
    assert problems == []
    assert found.each[0] == Instance(0, -20, 0, {}, "workloads.pair.instances[0]")
    assert found.to_json() == {
        "instances": [{"node": 0, "nice": -20}, {"node": 3, "nice": 0, "weight": 50, "seed": 2}],
        "shuffle_instances": False,
    }
    assert found


def test_without_any_nothing_is_said() -> None:
    found, problems = read({"size": "1M"})
    assert (found, problems, found.to_json()) == (NO_INSTANCES, [], {})
    assert not found


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ({"instances": [{}]}, "instances[0].node: is missing"),
        ({"instances": [{"node": "1"}]}, "node: must be an integer, not a string"),
        ({"instances": [{"node": 0, "nice": 20}]}, "nice: must be from -20 to 19, not 20"),
        ({"instances": [{"node": 0, "nice": -21}]}, "nice: must be from -20 to 19, not -21"),
        ({"instances": [{"node": 0, "weight": 0}]}, "weight: must be from 1 to 10000, not 0"),
        ({"instances": {"node": 0}}, "instances: must be an array"),
        ({"instances": [{"node": 0}], "shuffle_instances": True}, "there are no two instances to shuffle"),
        ({"shuffle_instances": True}, "there are no two instances to shuffle"),
    ],
)
def test_mistakes_are_named(text: dict[str, Any], complaint: str) -> None:
    _, problems = read(text)
    assert any(complaint in line for line in problems), problems


def test_order_is_drawn_anew_for_each_repeat_and_hangs_on_the_seed() -> None:
    three = Instances(tuple(Instance(node) for node in range(3)), shuffled=True)
    drawn = [tuple(three.order(1, "pair", repeat)) for repeat in range(40)]
    assert {frozenset(order) for order in drawn} == {frozenset(range(3))}
    assert len(set(drawn)) == 6
    assert drawn == [tuple(three.order(1, "pair", repeat)) for repeat in range(40)]
    assert drawn != [tuple(three.order(2, "pair", repeat)) for repeat in range(40)]
    assert Instances(three.each).order(1, "pair", 5) == [0, 1, 2]


# The machine.


def test_each_is_pinned_to_its_node_from_its_first_instruction_on() -> None:
    two = Instances((Instance(0), Instance(1, nice=-11, params={"seed": 7})))
    first, second = place(two, SAMEPAGE, {"size": "1M"}, NONE, uniform(2, 2, "64M"))
    assert first.argv == ["taskset", "-c", "0-1", "samepage", "--size", str(1 << 20)]
    raised = 'renice -n -11 -p $$ > /dev/null && exec "$@"'
    assert second.argv[:7] == ["taskset", "-c", "2-3", "sh", "-c", raised, "sh"]
    assert second.argv[7:] == ["samepage", "--size", str(1 << 20), "--seed", "7"]
    assert second.to_json() == {"instance": 1, "node": 1, "nice": -11, "weight": None, "argv": second.argv}


def test_the_policys_wrapper_is_inside_and_what_counts_events_too() -> None:
    [one] = place(Instances((Instance(0, nice=5),)), SAMEPAGE, {}, Policy("x", "", wrap=("env", "A=1")), uniform(1))
    assert one.wrap == ["taskset", "-c", "0", "sh", "-c", 'renice -n 5 -p $$ > /dev/null && exec "$@"', "sh"]
    assert one.command == ["env", "A=1", "samepage"]


def test_a_cgroup_of_its_own() -> None:
    both = place(Instances((Instance(0, weight=300), Instance(1))), SAMEPAGE, {}, NONE, uniform(2))
    assert both[0].cgroup == "/sys/fs/cgroup/numalab-0"
    assert both[0].argv[3:7] == ["sh", "-c", 'echo $$ > /sys/fs/cgroup/numalab-0/cgroup.procs && exec "$@"', "sh"]
    assert both[1].cgroup == ""
    [raised] = place(Instances((Instance(0, nice=-5, weight=300),)), SAMEPAGE, {}, NONE, uniform(2))
    assert raised.argv[5].startswith(
        "renice -n -5 -p $$ > /dev/null && echo $$ > /sys/fs/cgroup/numalab-0/cgroup.procs"
    )
    lines = list(instances.commands(both))
    assert lines[0] == "mkdir /sys/fs/cgroup/numalab-0; echo 300 > /sys/fs/cgroup/numalab-0/cpu.weight"
    assert lines[2].startswith("taskset -c 1 samepage &")


@pytest.mark.parametrize(
    ("one", "policy", "shape", "words"),
    [
        (Instance(2), NONE, uniform(2), "there is no such node"),
        (Instance(1), NONE, Topology((Node(1, 64 << 20), Node(0, 64 << 20)), ((10, 20), (20, 10))), "has no CPUs"),
        (Instance(0, params={"sede": 1}), NONE, uniform(2), "sede: unknown parameter (did you mean 'seed'?)"),
        (
            Instance(0),
            Policy("LPLD", "", wrap=("taskset", "-c", "0")),
            uniform(2),
            "'LPLD' says where the program runs",
        ),
        (Instance(0), Policy("p", "", options={"cpus": "0"}), uniform(2), "'p' says where the program runs"),
        (Instance(0), Policy("m", "", (Knob("/proc/PID/x", "1", mark="ready"),)), uniform(2), "file of one process"),
        (Instance(0), NONE, uniform(2, visible=False), "nodes are hidden"),
    ],
)
def test_what_does_not_go(one: Instance, policy: Policy, shape: Topology, words: str) -> None:
    with pytest.raises(UserError) as caught:
        place(Instances((one,)), SAMEPAGE, {}, policy, shape)
    assert words in str(caught.value)


def test_a_knob_of_the_machine_may_wait_for_them_all() -> None:
    late = Policy("late", "", (Knob("/sys/kernel/mm/ksm/run", "1", mark="ready"),))
    assert place(Instances((Instance(0), Instance(1))), SAMEPAGE, {}, late, uniform(2))


def test_lists_of_nodes_are_written_as_the_kernel_shows_them() -> None:
    param = {"on": policy_params.Param(policy_params.NodeList, "all", "")}
    assert policy_params.choose(param, {"on": "1,0,3,1"}, uniform(4))["on"] == "0-1,3"


# The plan.


def test_cells_know_their_instances_and_the_order(bench: Bench) -> None:
    cells = cells_of(bench, shuffled="true")
    assert {tuple(cell.order) for cell in cells} == {(0, 1), (1, 0)}
    assert len({cell.id for cell in cells}) == 4
    for cell in cells:
        assert [one.number for one in cell.instances] == [0, 1]
        workload = cell.params["workload"]
        assert workload["order"] == cell.order
        assert [one["node"] for one in workload["instances"]] == [0, 1]
        assert len(commands(cell.policy, cell.argv, cell.beside, cell.instances)) == 2


def test_cells_without_keep_the_name_they_have_always_had(bench: Bench) -> None:
    cells = cells_of(bench, instances="[]")
    assert all(cell.params["workload"].keys() == {"name", "program", "sha256", "params", "argv"} for cell in cells)
    assert all(cell.instances == [] for cell in cells)


def test_the_file_is_checked_against_machine_and_policy(bench: Bench) -> None:
    with pytest.raises(UserError, match=r"workloads.pair.instances: under policy 'none' on topology 'four': node = 7"):
        cells_of(bench, instances="[{ node = 7 }]")
    with pytest.raises(UserError, match="sice: unknown parameter"):
        cells_of(bench, instances="[{ node = 0, sice = 1 }]")


def test_metrics_of_an_instance_can_be_led_with(bench: Bench) -> None:
    assert cells_of(bench, metrics='["updates_instance1"]')
    with pytest.raises(UserError, match="unknown metric 'updates_instance2'"):
        cells_of(bench, metrics='["updates_instance2"]')


# Running: programs in threads, which wait at their marks for an answer as real ones do.

Script = Sequence[str]
"""Marks a program announces, then "exit N", "killed" or "never"."""


class Program:
    """One program in a thread; the calls of `numalab.machine.process.Process`."""

    def __init__(self, guest: Guest, argv: Sequence[str], script: Script, on_mark: Callable[[Mark, Any], None]) -> None:
        self.guest, self.argv, self.on_mark = guest, list(argv), on_mark
        self.pid = 100 + len(guest.programs)
        self.said: queue.Queue[str] = queue.Queue()
        self.answers: queue.Queue[None] = queue.Queue()
        self.done: Completed | None = None
        self.killed = False
        self.thread = threading.Thread(target=self._main, args=(script,), daemon=True)
        self.thread.start()

    def _main(self, script: Script) -> None:
        for word in script:
            self.said.put(word)
            if word in ("init", "ready", "done"):
                self.answers.get()
                self.guest.log.append(f"{self.pid} goes on from {word}")

    def _serve(self, word: str) -> Mark | None:
        if word in ("init", "ready", "done"):
            mark = Mark(word, 0.5)
            try:
                self.on_mark(mark, self.guest)
            finally:
                self.answers.put(None)
            return mark
        if word == "lost":
            raise QemuDiedError("QEMU ended")
        status = int(word.split()[1]) if word.startswith("exit") else None
        out = json.dumps({"updates": self.pid}) if word == "exit 0" else "{}"
        line = b"" if word == "exit 0 silent" else f"numalab-result: {out}\n".encode()
        self.done = Completed(self.argv, status, None if status is not None else 9, line, b"words\n")
        return None

    def _next(self, timeout: float | None) -> str | None:
        try:
            return "killed" if self.killed else self.said.get(timeout=timeout)
        except queue.Empty:
            return None

    def wait(self, timeout: float | None = None) -> Completed:
        while self.done is None:
            word = self._next(timeout)
            if word in (None, "never"):
                self.done = Completed(self.argv, None, 9, b"", b"")
                raise CommandTimeoutError(f"{self.argv[-1]} ran longer than {timeout:g} s and was killed")
            assert word
            self._serve(word)
        return self.done

    def wait_mark(self, name: str, timeout: float | None = None) -> Mark:
        while self.done is None:
            word = self._next(timeout)
            if word in (None, "never"):
                raise CommandTimeoutError(f"{self.argv[-1]} did not reach its mark {name!r} within {timeout:g} s")
            assert word
            mark = self._serve(word)
            if mark and mark.name == name:
                return mark
        raise CommandFailedError(f"{self.done} before its mark {name!r}")

    def ended(self) -> bool:
        while self.done is None:
            try:
                word = self.said.get_nowait()
            except queue.Empty:
                return False
            self._serve(word)
        return True

    def kill(self, signal: int = 9) -> None:
        self.guest.log.append(f"{self.pid} killed by {signal}")
        self.killed = True


class Guest:
    """A machine with programs that follow scripts, started in the order of the list."""

    accel = "tcg"

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.programs: list[Program] = []
        self.log: list[str] = []
        self.nices: dict[int, int] = {}
        self.ran: list[str] = []
        self.no_cgroups = False
        self.late = LateActions()

    def aside(self) -> AbstractContextManager[None]:
        return self.late.aside()

    def start(self, argv: Sequence[str], *, on_mark: Callable[[Mark, Any], None]) -> Program:
        if not self.scripts:
            raise GuestFileError(argv[0], 2)
        program = Program(self, argv, self.scripts.pop(0), on_mark)
        self.programs.append(program)
        self.nices.setdefault(program.pid, 0)
        return program

    def run(self, argv: Sequence[str], *, timeout: float | None = None) -> Completed:
        self.ran.append(argv[-1])
        self.late.serving(None)
        return Completed(list(argv), int(self.no_cgroups), None, b"", b"no such file\n")

    def read_file(self, path: str) -> bytes:
        if path.endswith("/stat"):
            pid = int(path.split("/")[2])
            return f"{pid} (a (b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 20 {self.nices[pid]} 1 0\n".encode()
        if path == "/proc/vmstat":
            return b"pgfault 5\n"
        raise GuestFileError(path, 2)


ALL = ("init", "ready", "done", "exit 0")


def together(
    guest: Guest, *, order: Sequence[int] = (0, 1), each: Sequence[Instance] = (Instance(0), Instance(1)), **more: Any
) -> tuple[Together, list[str]]:
    """What is to be run on `guest`, and where each mark at which something is done gets written."""
    served: list[str] = []

    def on_mark(mark: Mark, _: Any) -> None:
        served.append(mark.name)
        guest.log.append(f"served {mark.name}")

    placed = place(Instances(tuple(each)), WORKLOADS["gups"], {}, NONE, uniform(4))
    return Together(placed, order, on_mark, 5.0, **more), served


def test_they_meet_at_ready_and_at_done() -> None:
    guest = Guest(ALL, ALL, ALL)
    runs, served = together(guest, order=(2, 0, 1), each=(Instance(0), Instance(1), Instance(2)))
    runs.run(guest)  # type: ignore[arg-type]
    assert served == ["init", "ready", "done"]
    for mark in ("ready", "done"):
        # Nobody goes on before what belongs to the mark is done.
        at = guest.log.index(f"served {mark}")
        assert not any(f"goes on from {mark}" in line for line in guest.log[:at])
    # The last to begin was started first: it is the one at whose mark something is done.
    assert [program.argv[2] for program in guest.programs] == ["1", "0", "2"]
    assert {number: done.ok for number, done in runs.completed.items()} == {0: True, 1: True, 2: True}


def test_one_begins_when_those_before_it_are_ready() -> None:
    guest = Guest(ALL, ALL)
    runs, _ = together(guest, order=(1, 0))
    runs.run(guest)  # type: ignore[arg-type]
    second, first = guest.programs  # of the order: node 0 begins last
    assert (first.argv[2], second.argv[2]) == ("1", "0")
    begins = [f"{first.pid} goes on from init", f"{second.pid} goes on from init", "served ready"]
    assert sorted(begins, key=guest.log.index) == begins


def test_results_have_numbers_and_samples_carry_them() -> None:
    guest = Guest(ALL, ALL)
    runs, _ = together(guest, order=(1, 0), each=(Instance(2, nice=0), Instance(3)))
    runs.run(guest)  # type: ignore[arg-type]
    results = runs.results(WORKLOADS["gups"], "tcg")
    assert [(each["instance"], each["node"], each["begun"], each["perf"]) for each in results] == [
        (0, 2, 1, None),
        (1, 3, 0, None),
    ]
    assert [mark["name"] for mark in results[0]["marks"]] == ["init", "ready", "done"]
    assert results[0]["outcome"] == {"type": "exit", "status": 0, "signal": None}
    assert [sample["metric"] for sample in samples_of(results)] == ["updates_instance0", "updates_instance1"]


def test_one_without_a_result_line_is_named() -> None:
    guest = Guest(("init", "ready", "done", "exit 0 silent"), ALL)
    runs, _ = together(guest)
    runs.run(guest)  # type: ignore[arg-type]
    with pytest.raises(ExperimentError, match="instance 1 on node 1 printed no result line"):
        samples_of(runs.results(WORKLOADS["gups"], "tcg"))


@pytest.mark.parametrize(
    ("first", "second", "whose"),
    [
        (("init", "exit 3"), ALL, "instance 0 on node 0"),  # before the others have begun
        (ALL, ("init", "exit 3"), "instance 1 on node 1"),  # while the first waits for it
        (("init", "ready", "exit 3"), ALL, "instance 0 on node 0"),
        (ALL, ("init", "ready", "exit 3"), "instance 1 on node 1"),
    ],
)
def test_the_first_to_fail_stands_for_all_and_the_others_are_killed(first: Script, second: Script, whose: str) -> None:
    guest = Guest(second, first)
    runs, served = together(guest)
    runs.run(guest)  # type: ignore[arg-type]
    name, done = runs.worst()
    assert (name, done.status) == (whose, 3)
    assert set(runs.completed) == {0, 1}
    assert "done" not in served
    assert sum("killed by 9" in line for line in guest.log) <= 1


def test_one_that_takes_too_long_ends_them_all() -> None:
    guest = Guest(("init", "never"), ALL)
    runs, _ = together(guest)
    with pytest.raises(CommandTimeoutError, match="did not reach its mark 'ready'"):
        runs.run(guest)  # type: ignore[arg-type]
    assert any("killed" in line for line in guest.log)


def test_a_program_without_marks_is_told_of() -> None:
    guest = Guest(("exit 0",), ALL)
    runs, _ = together(guest)
    with pytest.raises(ExperimentError, match=r"instance 1 on node 1: .*before its mark 'ready'"):
        runs.run(guest)  # type: ignore[arg-type]


def test_a_lost_machine_is_not_asked_for_anything() -> None:
    guest = Guest(("init", "lost"), ALL)
    runs, _ = together(guest)
    with pytest.raises(QemuDiedError):
        runs.run(guest)  # type: ignore[arg-type]
    assert not any("killed" in line for line in guest.log)


def test_a_priority_that_was_not_given_is_an_error() -> None:
    guest = Guest(ALL, ALL)
    guest.nices = {100: 0, 101: 0}
    runs, _ = together(guest, each=(Instance(0), Instance(1, nice=-5)))
    with pytest.raises(ExperimentError, match="instance 1 on node 1: its priority is 0, not nice = -5"):
        runs.run(guest)  # type: ignore[arg-type]
    guest = Guest(ALL, ALL)
    guest.nices = {100: -5, 101: 0}
    runs, _ = together(guest, each=(Instance(0), Instance(1, nice=-5)))
    runs.run(guest)  # type: ignore[arg-type]


def test_cgroups_are_made_before_and_removed_after() -> None:
    guest = Guest(ALL, ALL)
    runs, _ = together(guest, each=(Instance(0, weight=200), Instance(1)))
    runs.run(guest)  # type: ignore[arg-type]
    assert "echo 200 > /sys/fs/cgroup/numalab-0/cpu.weight" in guest.ran[0]
    assert guest.ran[1:] == ["/sys/fs/cgroup/numalab-0"]
    guest = Guest(ALL, ALL)
    guest.no_cgroups = True
    runs, _ = together(guest, each=(Instance(0, weight=200), Instance(1)))
    with pytest.raises(ExperimentError, match=r"no cgroup with a cpu.weight could be made: no such file"):
        runs.run(guest)  # type: ignore[arg-type]
    assert guest.programs == []


def test_cgroups_take_nothing_from_the_programs() -> None:
    """What a policy does at a mark of the next command is for the first program, and not for what makes its cgroup."""
    guest = Guest(ALL, ALL)
    runs, _ = together(guest, each=(Instance(0, weight=200), Instance(1)))
    with guest.late.at_mark("ready", lambda pid: None):
        runs._make_cgroups(guest)  # type: ignore[arg-type]
        assert any("cpu.weight" in words for words in guest.ran)
        assert guest.late.serving(None)[0] is not None


def test_a_program_that_is_not_there() -> None:
    guest = Guest(ALL)
    runs, _ = together(guest)
    with pytest.raises(ExperimentError, match="instance 0 on node 0: taskset could not be started"):
        runs.run(guest)  # type: ignore[arg-type]
    assert runs.completed


def test_events_are_counted_of_each_inside_its_placement() -> None:
    guest = Guest(ALL, ALL)
    runs, _ = together(guest, events=("node-loads", "node-load-misses"))
    runs.run(guest)  # type: ignore[arg-type]
    argv = guest.programs[0].argv
    assert argv[:3] == ["taskset", "-c", "1"]
    assert argv[3:7] == ["env", "LC_ALL=C", "perf", "stat"]
    assert "/tmp/numalab-perf-1.json" in argv
    assert argv[-1] == "gups"


# A whole cell, in the fake laboratory.


def test_a_cell_of_two(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stage(Together):
        """The same, on a guest whose programs wait at their marks."""

        def run(self, machine: Any) -> None:
            super().run(Guest(ALL, ALL))  # type: ignore[arg-type]

    monkeypatch.setattr("numalab.run.cell.Together", Stage)
    text = TEXT.format(instances=PAIR, shuffled="true", metrics="[]", policy='["none"]').replace("= 4", "= 1", 1)
    [result] = bench.run(text).done
    assert result["outcome"]["type"] == "exit", result["outcome"]
    assert sorted(sample["metric"] for sample in result["samples"]) == ["updates_instance0", "updates_instance1"]
    assert [each["node"] for each in result["instances"]] == [0, 1]
    assert bench.world.events == ["snapshot ready"]
    cell = bench.out / "cells" / result["cell"]["id"]
    assert sorted(path.name for path in cell.glob("std*-*.txt")) == [
        *("stderr-0.txt", "stderr-1.txt", "stdout-0.txt", "stdout-1.txt"),
    ]
