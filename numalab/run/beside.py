"""Running interference: started when the measured program is ready, stopped when it is done.

Between the two marks, and only there, the second programs run: initialisation, first touch and snapshots of the
measured program are undisturbed by them, and their own initialisation is over before its counters are read.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence
from typing import Any

from numalab.errors import ExperimentError
from numalab.machine.outcome import CommandFailedError, CommandTimeoutError, Completed, GuestFileError
from numalab.run.interference import Load
from numalab.run.lab import MachineLike, ProcessLike

#: The mark at which a program has touched all its memory and begins to load it.
_LOADING = "ready"
#: Seconds in which a program that was told to stop has to print its result: a round in emulation may take long.
_STOP_SECONDS = 120.0


class Beside:
    """The programs that run beside a cell's own; `start` and `stop` may each be called more than once.

    Attributes:
        started: whether they ran at all.
        results: for each how it ended and what it reported, once stopped.
    """

    def __init__(self, loads: Sequence[Load], timeout: float) -> None:
        self._loads = loads
        self._timeout = timeout
        self._running: list[tuple[Load, ProcessLike]] = []
        self.started = False
        self.results: list[dict[str, Any]] = []

    def start(self, machine: MachineLike) -> None:
        """Start them all, and return when each has its memory and is at work.

        Raises:
            ExperimentError: one could not be started, ended at once, or took longer than the time-out.
            MachineLostError: the machine was lost.
        """
        if self.started:
            return
        self.started = True
        for load in self._loads:
            what = _name(load)
            try:
                process = machine.start(load.argv)
                self._running.append((load, process))
                process.wait_mark(_LOADING, self._timeout)
            except GuestFileError as error:
                raise ExperimentError(f"{what}: {load.argv[0]} could not be started: {error.strerror}") from error
            except CommandFailedError as error:
                words = process.wait().stderr.decode(errors="replace").strip()
                raise ExperimentError(f"{what}: {error}" + (f": {words}" if words else "")) from error
            except CommandTimeoutError as error:
                raise ExperimentError(f"{what}: {error}") from error

    def stop(self, machine: MachineLike) -> None:
        """Tell them to stop, wait for their results.

        Raises:
            ExperimentError: one had ended before it was told to, failed, or does not stop; the others are stopped.
            MachineLostError: the machine was lost.
        """
        running, self._running = self._running, []
        problems = []
        # All at once: one that is waited for must not leave the others at work.
        early = [process.ended() for _, process in running]
        for (_, process), ended in zip(running, early, strict=True):
            if not ended:
                process.kill(signal.SIGTERM)
        for (load, process), ended in zip(running, early, strict=True):
            try:
                done = process.wait(_STOP_SECONDS)
            except CommandTimeoutError:
                problems.append(f"{_name(load)} did not stop within {_STOP_SECONDS:.0f} s and was killed")
                done = process.wait()
            if ended:
                problems.append(f"{_name(load)} ended before the measured program was done: {done}")
            elif not done.ok:
                problems.append(f"{_name(load)}: {done}")
            self._record(load, done, machine)
        if problems:
            raise ExperimentError("; ".join(problems))

    def abandon(self, machine: MachineLike) -> None:
        """Stop them whatever they say, after the cell has failed for a reason of its own."""
        with contextlib.suppress(ExperimentError):
            self.stop(machine)

    def _record(self, load: Load, done: Completed, machine: MachineLike) -> None:
        samples: list[dict[str, Any]] = []
        if done.ok:
            with contextlib.suppress(ExperimentError):  # then it has none, and its outcome stands beside it
                samples = load.workload.samples(done.stdout, machine.accel)
        ended = {"type": done.type, "status": done.status, "signal": done.signal}
        self.results.append({**load.to_json(), "outcome": ended, "samples": samples})


def _name(load: Load) -> str:
    return f"interference {load.workload.name} on node {load.node}"
