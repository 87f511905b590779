"""Live machines, shared by consecutive cells that want the same one.

Interleaved order would otherwise boot for nearly every cell. A machine is given up when something other
than an exit happened on it, when a cell wants a fresh one, or when its memory is needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numalab.errors import ExperimentError
from numalab.machine.outcome import GuestFileError
from numalab.measure.perf import has_pmu, known
from numalab.run.check import MACHINE_OVERHEAD
from numalab.run.lab import Lab, MachineRequest

#: More machines than this do not save boots that matter, and their ticks disturb the running one.
MAX_LIVE = 4
_PERF_SECONDS = 60.0


@dataclass
class Live:
    """A machine that runs.

    Attributes:
        machine: the session.
        facts: what it is, for provenance.
        boot: number of this boot within the run, from 1.
        cells: how many cells have run on it before.
        console_read: bytes of its console log that earlier cells have kept.
        perf: whether perf can count hardware events in it.
    """

    machine: Any
    facts: Mapping[str, Any]
    boot: int
    perf: bool
    cells: int = 0
    console_read: int = 0
    _events: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict, repr=False)
    _exit: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False)

    def events(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of the events that perf can count here; none where there is no PMU. Asked once for each list."""
        if not self.perf:
            return ()
        if wanted not in self._events:
            with self.machine.aside():
                self._events[wanted] = known(self.machine, wanted)
        return self._events[wanted]

    def close(self) -> None:
        """Destroy the machine."""
        self._exit.close()


class Pool:
    """The machines of one run; a context manager that destroys them all."""

    def __init__(self, lab: Lab, logs: Path) -> None:
        self._lab = lab
        self._logs = logs
        self._budget = lab.free_memory()
        self._live: dict[Hashable, Live] = {}
        self.boots = 0
        #: Log directory of the latest boot, also of one that failed.
        self.last_logs: Path | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as stack:  # one that cannot be closed does not keep the others alive
            for key in list(self._live):
                stack.callback(self._close, key)

    def get(self, request: MachineRequest, *, fresh: bool) -> Live:
        """Return a machine of this kind, booted now unless one is there and `fresh` is not asked for.

        Raises:
            MachineLostError: it did not come up.
            MissingError, UserError: this host cannot carry it.
        """
        key = kind_of(request)
        if fresh:
            self.drop(request)
        if key in self._live:
            self._live[key] = self._live.pop(key)  # the youngest is last
            return self._live[key]
        self._make_room(request.topology.memory)
        self.boots += 1
        self.last_logs = self._logs / str(self.boots)
        self.last_logs.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            machine = stack.enter_context(self._lab.open_machine(request, self.last_logs))
            perf = has_pmu(machine) and _has_perf(machine)
            live = Live(machine, dict(machine.facts()), self.boots, perf, _exit=stack.pop_all())
        self._live[key] = live
        return live

    def drop(self, request: MachineRequest) -> None:
        """Destroy the machine of this kind, if there is one."""
        if kind_of(request) in self._live:
            self._close(kind_of(request))

    def _make_room(self, memory: int) -> None:
        """Destroy machines, longest unused first, until one with `memory` bytes more fits."""
        while self._live:
            taken = sum(live.machine.topology.memory + MACHINE_OVERHEAD for live in self._live.values())
            if len(self._live) < MAX_LIVE and taken + memory + MACHINE_OVERHEAD <= self._budget:
                return
            self._close(next(iter(self._live)))

    def _close(self, key: Hashable) -> None:
        self._live.pop(key).close()


def kind_of(request: MachineRequest) -> Hashable:
    """Return what two requests must have in common to be served by one machine."""
    return (
        request.kernel.path,
        request.topology,
        request.accel,
        request.append,
        request.nested,
        request.mirror_host,
        request.huge_pages,
        request.count_instructions,
    )


def _has_perf(machine: Any) -> bool:
    """Whether there is a perf in the guest, and runs."""
    try:
        return bool(machine.run(["perf", "--version"], timeout=_PERF_SECONDS).ok)
    except (GuestFileError, ExperimentError):
        return False
