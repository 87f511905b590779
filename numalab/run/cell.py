"""One cell: a policy on a machine, a program under it, and everything that is recorded about it.

However the program or its machine ends, the end is a result with a type; only a missing tool, a full
disk and the user stop the run itself.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from numalab.errors import ExperimentError, MachineLostError, MissingError, NumalabError, UserError
from numalab.kinds import Kind
from numalab.machine.outcome import CommandTimeoutError, Completed, GuestFileError, Mark
from numalab.measure import counters, perf
from numalab.results import Json
from numalab.run import logs, provenance
from numalab.run.beside import Beside
from numalab.run.ends import outcome, words
from numalab.run.lab import Lab
from numalab.run.machines import Live, Pool
from numalab.run.plan import Cell
from numalab.run.policy import Setting, applied
from numalab.run.store import disk_full
from numalab.run.together import Together, samples_of

_PERF_OUTPUT = "numalab-perf.json"
#: The kernel keeps this many bytes of a program's name (TASK_COMM_LEN - 1).
_COMM = 15


@dataclass(frozen=True)
class Context:
    """What the cells of a run have in common.

    Attributes:
        lab: the other rooms.
        pool: the live machines.
        experiment: the experiment's name.
        run_facts: provenance of the run (`provenance.of_run`).
        reproduce: the command that runs one cell again, by cell id.
        timeout: seconds a program may take.
        fresh: boot for every cell.
        snapshots: marks at which placement is taken.
        perf: events for perf.
    """

    lab: Lab
    pool: Pool
    experiment: str
    run_facts: Mapping[str, Any]
    reproduce: Mapping[str, str]
    timeout: float
    fresh: bool
    snapshots: tuple[str, ...]
    perf: tuple[str, ...]


def run(cell: Cell, context: Context, directory: Path) -> Json:
    """Run a cell, write its logs and snapshots into `directory`, return its result (without schema and kind).

    Raises:
        MissingError, UserError: this host cannot carry the machine; nothing was run.
        OSError: the disk is full.
    """
    attempt = _Attempt(cell, context, directory)
    started = datetime.now(UTC)
    begun = time.monotonic()
    try:
        attempt.run()
    except MachineLostError as error:
        attempt.lost(error)
    except (MissingError, UserError):
        raise
    except Exception as error:  # a bug of ours must not cost the cells that come after
        if disk_full(error):
            raise
        attempt.failed(error)
    if attempt.outcome["type"] not in ("exit", "no-result"):
        context.pool.drop(cell.machine)
    attempt.keep_logs()
    return attempt.result(started, time.monotonic() - begun)


class _Attempt:
    """The state of one cell while it runs."""

    def __init__(self, cell: Cell, context: Context, directory: Path) -> None:
        self.cell = cell
        self.context = context
        self.directory = directory
        self.load = provenance.load_now()
        self.live: Live | None = None
        self.outcome: Json = outcome("error", detail="the cell was never run")
        self.completed: Completed | None = None
        self.samples: list[Json] = []
        self.instances: list[Json] = []
        self.whose = ""
        self.placement: list[Json] = []
        self.marks: dict[str, float] = {}
        self.readings: dict[str, counters.Counters] = {}
        self.perf = perf.parse("", context.perf)
        self.beside = Beside(cell.beside, context.timeout)
        self.settings: list[Setting] = []
        self.knobs_before: dict[str, str] = {}
        self.knobs_after: dict[str, str] = {}
        self.broken: Exception | None = None
        self.console_from = 0
        self.complaints: list[str] = []

    # Running.

    def run(self) -> None:
        """Get a machine, apply the policy, run the program.

        Raises:
            MachineLostError: the machine did not come up, or was lost.
            MissingError, UserError: there can be no such machine on this host.
        """
        self.live = live = self.context.pool.get(self.cell.machine, fresh=self.context.fresh)
        live.cells += 1
        self.console_from = live.console_read
        try:
            self.knobs_before = provenance.sysctls(live.machine)
            with applied(live.machine, self.cell.policy) as self.settings:
                self._program(live)
            self.knobs_after = provenance.sysctls(live.machine)
        except (ExperimentError, MissingError, GuestFileError) as error:  # the policy, or the laboratory, failed
            self.failed(error)

    def _program(self, live: Live) -> None:
        counted = live.events(tuple(self.context.perf))
        self.readings["start"] = counters.read(live.machine)
        try:
            done = self._together(live, counted) if self.cell.instances else self._alone(live, counted)
        except CommandTimeoutError as error:
            self.outcome = outcome("timeout", detail=str(error))
            self.beside.abandon(live.machine)
            return
        except ExperimentError:
            self.beside.abandon(live.machine)
            raise
        if done is None:
            return
        self._stop_interference(live.machine)
        self.readings["end"] = counters.read(live.machine)
        self.completed = done
        self.outcome = outcome(
            done.type, status=done.status, signal=done.signal, detail="" if done.ok else f"{self.whose}{done}"
        )
        if done.ok:
            self._samples(done, live)
            if self.cell.beside and not self.beside.started:
                self.broken = ExperimentError("the program announced no mark 'ready', so nothing ran beside it")
        if self.broken:
            self.failed(self.broken)

    def _alone(self, live: Live, counted: Sequence[str]) -> Completed | None:
        """Run the program to its end, with the events `counted`; None when it could not be started."""
        report = f"{getattr(live.machine, 'scratch', '/tmp')}/{_PERF_OUTPUT}"
        argv = [*(perf.argv_prefix(report, counted) if counted else ()), *self.cell.argv]
        try:
            process = live.machine.start(argv, on_mark=self._on_mark)
        except GuestFileError as error:
            self.outcome = outcome("error", detail=f"{argv[0]} could not be started: {error.strerror}")
            return None
        try:
            done: Completed = process.wait(self.context.timeout)
        except CommandTimeoutError:
            self.completed = process.wait()
            raise
        if counted:
            with suppress(GuestFileError):
                text = live.machine.read_file(report).decode(errors="replace")
                self.perf = perf.parse(text, self.context.perf)
        return done

    def _together(self, live: Live, counted: Sequence[str]) -> Completed:
        """Run the instances to their ends; return the one that stands for all."""
        cell, context = self.cell, self.context
        together = Together(cell.instances, cell.order, self._on_mark, context.timeout, counted, context.perf)
        try:
            together.run(live.machine)
        finally:
            logs.keep_instances(self.directory, together.completed)
            self.instances = together.results(cell.workload, live.machine.accel)
        name, done = together.worst()
        self.whose = f"{name}: "
        return done

    def _samples(self, done: Completed, live: Live) -> None:
        try:
            own = self.cell.workload.samples(done.stdout, live.machine.accel)
            self.samples = samples_of(self.instances) if self.cell.instances else list(own)
        except NumalabError as error:
            self.outcome = outcome("no-result", status=done.status, detail=str(error))

    def _on_mark(self, mark: Mark, machine: Any) -> None:
        """Record what belongs to a mark while the program waits at it; a failure is kept for later."""
        self.marks[mark.name] = mark.time_s
        # Counters of the measured phase begin after the work of a snapshot and end before it. So does interference,
        # which snapshots are not to see: it may be another process of the same name.
        if mark.name == "done":
            self.readings[mark.name] = counters.read(machine)
            self._stop_interference(machine)
        if mark.name in self.context.snapshots:
            try:
                self._snapshot(mark.name, machine)
            except MachineLostError:
                raise
            except Exception as error:
                if disk_full(error):
                    raise
                self.broken = error
                self.placement.append({"mark": mark.name, "file": None, "summary": None})
        if mark.name == "ready":
            try:
                self.beside.start(machine)
            except ExperimentError as error:
                self.broken = error
            self.readings[mark.name] = counters.read(machine)

    def _stop_interference(self, machine: Any) -> None:
        """Stop what runs beside the program, if it still does; its failure is that of the cell."""
        try:
            self.beside.stop(machine)
        except ExperimentError as error:
            self.broken = self.broken or error

    def _snapshot(self, mark: str, machine: Any) -> None:
        # Under a wrapper the process that was started is not the program: go by name.
        program = self.cell.params["workload"]["program"][:_COMM]
        archive = self.directory / f"snapshot-{mark}.npz"
        summary = self.context.lab.snapshot(machine, [program], mark, archive)
        self.placement.append({"mark": mark, "file": archive.name if archive.exists() else None, "summary": summary})

    def failed(self, error: Exception) -> None:
        """Note that the policy or a measurement failed, or we did: what nobody foresaw with its traceback."""
        self.outcome = outcome("error", detail=words(error))
        if not isinstance(error, NumalabError | GuestFileError):
            self.outcome["detail"] = f"{type(error).__name__}: {error} (a bug of numalab; see traceback.txt)"
            (self.directory / "traceback.txt").write_text("".join(traceback.format_exception(error)))

    def lost(self, error: MachineLostError) -> None:
        """Note how the machine was lost."""
        self.outcome = outcome(getattr(error, "type", "qemu-died"), detail=str(error).partition("\n")[0])
        oops = getattr(error, "oops", "")
        self.outcome["oops"] = oops or None
        rest = str(error).partition("\n")[2]
        if rest and not oops:
            self.outcome["detail"] = str(error)

    # Keeping.

    def keep_logs(self) -> None:
        """Write stdout, stderr and this cell's part of the console."""
        if self.completed:
            logs.keep_output(self.directory, self.completed)
        booted = self.context.pool.last_logs
        path = self.live.machine.console if self.live else booted / "console.log" if booted else None
        if path is None or not path.exists():
            return
        length, self.complaints = logs.keep_console(self.directory, path, self.console_from)
        if self.live:
            self.live.console_read = self.console_from + length

    def result(self, started: datetime, seconds: float) -> Json:
        """Return the result of this attempt."""
        context, cell = self.context, self.cell
        return {
            "cell": {"id": cell.id, "experiment": context.experiment, **cell.point.to_json(), "params": cell.params},
            "outcome": self.outcome,
            "complaints": self.complaints,
            "samples": self.samples,
            "interference": self.beside.results,
            "instances": self.instances,
            "marks": [{"name": name, "time_s": at} for name, at in self.marks.items()],
            "counters": self._counters(),
            "placement": self.placement,
            "provenance": {
                "kernel": provenance.of_kernel(cell.machine.kernel, cell.params["kernel"]["sha256"]),
                "machine": self._machine(),
                "policy": [asdict(setting) for setting in self.settings],
                "sysctls_before": self.knobs_before,
                "sysctls_after": self.knobs_after,
                **context.run_facts,
                "host": {**context.run_facts["host"], "load": self.load},
                "reproduce": context.reproduce[cell.id],
            },
            "started": started.isoformat(timespec="milliseconds"),
            "seconds": round(seconds, 3),
        }

    def _machine(self) -> Json | None:
        if self.live is None:
            return None
        return {**self.live.facts, "boot": self.live.boot, "cells_before": self.live.cells - 1}

    def _counters(self) -> Json:
        whole = _between(self.readings, "start", "end")
        return {
            "kind": _count_kind(self.live.machine.accel) if self.live else None,
            "vmstat": whole["vmstat"] if whole else None,
            "numastat": whole["numastat"] if whole else None,
            "measured": _between(self.readings, "ready", "done"),
            "perf": self.perf.to_json(),
            "perf_running": {event.event: event.running for event in self.perf.events},
        }


def _count_kind(accel: str) -> Kind:
    """The kind of an exact count: in emulation it is counted, on hardware measured."""
    return Kind.COUNTED if accel == "tcg" else Kind.MEASURED


def _between(readings: Mapping[str, counters.Counters], first: str, last: str) -> Json | None:
    """The counters' change between two moments, None when one was not reached."""
    if first not in readings or last not in readings:
        return None
    return readings[last].since(readings[first]).to_json()
