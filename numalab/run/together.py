"""Running instances: several processes of one workload, which wait for each other at their marks.

They begin one after the other, in a given order: each maps and touches its memory while those before it wait at their
mark "ready" and those after it have not begun. At "ready" and "done" all of them stand still while snapshots are taken
and counters read; between the two all of them work at once.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from numalab.errors import ExperimentError, MachineLostError, NumalabError
from numalab.machine.outcome import CommandFailedError, Completed, GuestFileError, Mark
from numalab.measure import perf
from numalab.results import Json
from numalab.run.instances import CGROUPS, Placed
from numalab.run.lab import MachineLike, ProcessLike, WorkloadLike

#: Marks at which all have to be; at others each is on its own.
MEETINGS = ("ready", "done")
#: Seconds in which a program has to be gone that was killed.
_GONE_SECONDS = 30.0
#: Where /proc/PID/stat has the priority (field 19), counted behind the name in brackets (field 2).
_NICE_FIELD = 16


class _EndedEarlyError(Exception):
    """An instance has failed before a mark at which the others wait for it."""

    def __init__(self, number: int) -> None:
        self.number = number


class Together:
    """The instances of a cell.

    Attributes:
        completed: how each of those that were started ended, by its number; the first to fail stands first.
        marks: seconds from the start of each until its marks, by number.
    """

    def __init__(
        self,
        placed: Sequence[Placed],
        order: Sequence[int],
        on_mark: Callable[[Mark, Any], None],
        timeout: float,
        events: Sequence[str] = (),
        wanted: Sequence[str] = (),
    ) -> None:
        """Prepare to run `placed` in `order`.

        Args:
            placed, order: the instances, and the numbers of those that begin first to last.
            on_mark: called once for each mark; for "ready" and "done" when all are there.
            timeout: seconds each may take.
            events: what perf counts of each of them; empty: perf does not run.
            wanted: what was asked for; what is not among `events` is missing in the results.
        """
        self._placed = {one.number: one for one in placed}
        self._order = list(order)
        self._on_mark = on_mark
        self._timeout = timeout
        self._events = tuple(events)
        self._wanted = tuple(wanted) or self._events
        self._perf: dict[int, perf.PerfReport] = {}
        self._processes: dict[int, ProcessLike] = {}
        self._abandoned = False
        self.completed: dict[int, Completed] = {}
        self.marks: dict[int, dict[str, float]] = {one.number: {} for one in placed}

    def run(self, machine: MachineLike) -> None:
        """Run them all to their ends; when one fails, the others are killed.

        Raises:
            CommandTimeoutError: one took longer than the time-out; all were killed.
            ExperimentError: one could not be started as asked for, or does not announce the marks; all were killed.
            MachineLostError: the machine was lost.
        """
        try:
            self._make_cgroups(machine)
            # The last to begin is started first: what waits for a mark of the next command (`LateActions`) is then
            # done when all are at that mark.
            for number in reversed(self._order):
                self._start(machine, number)
            for number in self._order:
                self.completed[number] = done = self._processes[number].wait(self._timeout)
                if not done.ok:
                    break
        except _EndedEarlyError as error:
            self.completed[error.number] = self._processes[error.number].wait()
        except MachineLostError:
            self._abandoned = True
            raise
        except BaseException:
            self._kill()
            self._remove_cgroups(machine)
            raise
        self._kill()
        self._remove_cgroups(machine)
        self._read_perf(machine)

    def worst(self) -> tuple[str, Completed]:
        """The end that stands for all, and whose it is: the first that was no success, else the first."""
        ends = list(self.completed.items())
        number, done = next((each for each in ends if not each[1].ok), ends[0])
        return self._placed[number].name, done

    def _start(self, machine: MachineLike, number: int) -> None:
        one = self._placed[number]
        counted = perf.argv_prefix(self._report(machine, number), self._events) if self._events else ()
        argv = [*one.wrap, *counted, *one.command]
        try:
            self._processes[number] = machine.start(argv, on_mark=partial(self._at_mark, number))
        except GuestFileError as error:
            raise ExperimentError(f"{one.name}: {argv[0]} could not be started: {error.strerror}") from error

    def _at_mark(self, number: int, mark: Mark, machine: Any) -> None:
        """Wait until those that begin after `number` are at the mark too; the last of them does what belongs there."""
        if self._abandoned:
            return
        self.marks[number][mark.name] = mark.time_s
        if mark.name == "init":
            self._check_nice(machine, number)
        place = self._order.index(number) + 1
        if place == len(self._order):
            self._on_mark(mark, machine)
        elif mark.name in MEETINGS:
            self._await(self._order[place], mark.name)

    def _await(self, number: int, mark: str) -> None:
        process = self._processes[number]
        try:
            process.wait_mark(mark, self._timeout)
        except CommandFailedError as error:
            if process.wait().ok:
                raise ExperimentError(f"{self._placed[number].name}: {error}") from error
            raise _EndedEarlyError(number) from error

    def _check_nice(self, machine: MachineLike, number: int) -> None:
        """Whether the process has the priority it was to have, above all when it was to have the usual one."""
        one = self._placed[number]
        path = f"/proc/{self._processes[number].pid}/stat"
        try:
            fields = machine.read_file(path).decode(errors="replace").rpartition(")")[2].split()
        except GuestFileError as error:
            raise ExperimentError(f"{one.name}: {path} cannot be read: {error.strerror}") from error
        if int(fields[_NICE_FIELD]) != one.instance.nice:
            raise ExperimentError(
                f"{one.name}: its priority is {fields[_NICE_FIELD]}, not nice = {one.instance.nice} "
                "(only root may go below 0)"
            )

    def _kill(self) -> None:
        """End those that have not ended; their marks are answered and mean nothing any more."""
        self._abandoned = True
        left = {number: process for number, process in self._processes.items() if number not in self.completed}
        for process in left.values():
            with contextlib.suppress(ExperimentError):
                if not process.ended():
                    process.kill(signal.SIGKILL)
        for number, process in left.items():
            with contextlib.suppress(ExperimentError):
                self.completed[number] = process.wait(_GONE_SECONDS)

    def _make_cgroups(self, machine: MachineLike) -> None:
        for one in self._placed.values():
            if not one.cgroup:
                continue
            words = f"echo +cpu > {CGROUPS}/cgroup.subtree_control && mkdir -p {one.cgroup} && "
            # The policy waits for a mark of the first program, and not of this.
            with machine.aside():
                done = machine.run(["sh", "-c", words + f"echo {one.instance.weight} > {one.cgroup}/cpu.weight"])
            if not done.ok:
                said = done.stderr.decode(errors="replace").strip()
                raise ExperimentError(f"{one.name}: no cgroup with a cpu.weight could be made: {said}")

    def _remove_cgroups(self, machine: MachineLike) -> None:
        for one in self._placed.values():
            if one.cgroup:
                with contextlib.suppress(NumalabError, GuestFileError):
                    machine.run(["rmdir", one.cgroup])

    def _report(self, machine: MachineLike, number: int) -> str:
        return f"{getattr(machine, 'scratch', '/tmp')}/numalab-perf-{number}.json"

    def _read_perf(self, machine: MachineLike) -> None:
        for number in self._placed if self._events else ():
            with contextlib.suppress(GuestFileError):
                text = machine.read_file(self._report(machine, number)).decode(errors="replace")
                self._perf[number] = perf.parse(text, self._wanted)

    def results(self, workload: WorkloadLike, accel: str) -> list[Json]:
        """Return what result files hold of them, by number; one without a result line has no samples."""
        found = []
        for number, one in sorted(self._placed.items()):
            done = self.completed.get(number)
            counted = self._perf.get(number)
            samples: list[Json] = []
            if done and done.ok:
                with contextlib.suppress(ExperimentError):
                    samples = list(workload.samples(done.stdout, accel))
            found.append(
                {
                    **one.to_json(),
                    "begun": self._order.index(number),
                    "outcome": done and {"type": done.type, "status": done.status, "signal": done.signal},
                    "marks": [{"name": name, "time_s": at} for name, at in self.marks[number].items()],
                    "samples": samples,
                    "perf": counted.to_json() if counted else None,
                }
            )
        return found


def samples_of(results: Sequence[Json]) -> list[Json]:
    """Return the samples of all instances; a metric has the number of its instance behind its name.

    Raises:
        ExperimentError: one has none.
    """
    for each in results:
        if not each["samples"]:
            raise ExperimentError(f"instance {each['instance']} on node {each['node']} printed no result line")
    return [
        {**sample, "metric": f"{sample['metric']}_instance{each['instance']}"}
        for each in results
        for sample in each["samples"]
    ]
