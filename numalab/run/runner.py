"""A whole run: which cells are left to do, do them in order, keep what is done whatever happens."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from numalab.errors import MissingError, UserError
from numalab.kernel.progress import Progress
from numalab.results import CELLS, Json, succeeded
from numalab.run import cell as cells
from numalab.run import matrix, provenance, store
from numalab.run.lab import Lab
from numalab.run.machines import Pool, kind_of
from numalab.run.matrix import Point
from numalab.run.plan import Blocked, Cell, plan
from numalab.run.spec import Experiment
from numalab.run.store import Store

#: After so many failed boots of one kind of machine its other cells are left for another time.
_BOOT_TRIES = 2
_COMPLAINTS_SHOWN = 3


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        given: the experiment file or name as it was typed (for lines that reproduce).
        out: result directory, None for the default one.
        resume: skip cells that are done.
        retry_failed: do failed cells again (implies `resume`).
        only: "key=value" filters.
        repeats: in place of the experiment's number.
        accel: "auto", "kvm" or "tcg".
    """

    given: str
    out: Path | None = None
    resume: bool = False
    retry_failed: bool = False
    only: tuple[str, ...] = ()
    repeats: int | None = None
    accel: str = "auto"


@dataclass
class Summary:
    """How a run went; lists hold results of cells in the order of running."""

    directory: Path
    planned: int = 0
    skipped: list[Json] = field(default_factory=list)
    done: list[Json] = field(default_factory=list)
    given_up: list[Cell] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def failed(self) -> list[Json]:
        """The results that are no successes, of this run and of those before that it skipped."""
        return [result for result in [*self.skipped, *self.done] if not succeeded(result)]

    @property
    def left(self) -> int:
        """How many cells have no result."""
        return self.planned - len(self.skipped) - len(self.done)


def select(experiment: Experiment, options: Options) -> list[Point]:
    """Return the points the user asked for, in the order of running.

    Raises:
        UserError: a filter that names nothing of the matrix, or leaves nothing of it.
    """
    repeats = experiment.repeats if options.repeats is None else options.repeats
    wanted = matrix.parse_only(options.only, experiment, repeats)
    points = matrix.select(matrix.points(experiment, repeats=repeats), wanted)
    if not points:
        raise UserError(f"{experiment.file}: --only {' --only '.join(options.only)} leaves no cell of the matrix")
    return points


def run(experiment: Experiment, lab: Lab, options: Options, *, progress: Callable[[], Progress] = Progress) -> Summary:
    """Run an experiment; what was finished stays, also after an interruption or an error.

    Raises:
        UserError: nothing to do, a directory in use or with results and no `resume`.
        MissingError: something has to be built or installed first.
        DiskFullError: the disk ran full.
    """
    points = select(experiment, options)
    resume = options.resume or options.retry_failed
    directory = options.out or store.default_directory(experiment.name, resume=resume, today=date.today())
    if not resume and (directory / CELLS).is_dir() and any((directory / CELLS).iterdir()):
        raise UserError(
            f"{directory}: there are results here already",
            remedy="--resume goes on with them; --out names another directory",
        )
    planned, blocked = plan(experiment, points, lab, accel=options.accel)
    if blocked:
        raise _explained(blocked, planned)
    with store.opened(directory) as opened, _terminable():
        if options.out is None:
            store.point_latest(directory)
        summary = Summary(directory, planned=len(planned))
        todo = _left_to_do(opened, planned, summary, retry_failed=options.retry_failed)
        _record(opened, experiment, options, planned)
        if todo:
            try:
                with progress() as shown:
                    _run_cells(opened, experiment, lab, options, todo, summary, shown)
            except KeyboardInterrupt:
                summary.interrupted = True
    return summary


def _explained(blocked: Sequence[Blocked], planned: Sequence[Cell]) -> MissingError:
    """What is missing, and how to run the cells that do not need it."""
    why = blocked[0].why
    ready = dict.fromkeys(cell.point.kernel for cell in planned)
    only = " ".join(f"--only kernel={kernel}" for kernel in ready)
    return MissingError(str(why), remedy=f"{why.remedy}; or leave it out for now: {only}" if ready else why.remedy)


def _left_to_do(opened: Store, planned: Sequence[Cell], summary: Summary, *, retry_failed: bool) -> list[Cell]:
    """The cells without a result that still holds; what is in their way is moved aside."""
    found, corrupt = opened.results()
    for error in corrupt:
        kept = opened.move_aside(error.path.parent.name, "corrupt")
        summary.notes.append(f"{error.path}: {error.why}; moved to {kept.name}")
    by_point = {_coordinates(result["cell"]): cell_id for cell_id, result in found.items()}
    todo = []
    for cell in planned:
        result = found.get(cell.id)
        if result and retry_failed and not succeeded(result):
            opened.move_aside(cell.id, "failed")
        elif result:
            summary.skipped.append(result)
            continue
        else:
            old = by_point.get(_coordinates(cell.point.to_json()))
            if old:
                # Same place in the matrix, other parameters (say, a kernel built anew): they must not be mixed.
                kept = opened.move_aside(old, "superseded")
                summary.notes.append(
                    f"{cell.point}: its parameters have changed; the old result is kept as {kept.name}"
                )
        todo.append(cell)
    return todo


def _coordinates(axes: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(axes[key] for key in matrix.ONLY_KEYS)


def _record(opened: Store, experiment: Experiment, options: Options, planned: Sequence[Cell]) -> None:
    """Write experiment.json; cells of earlier runs that are not planned now stay in its list while they exist."""
    before = opened.experiment() or {"cells": [], "runs": []}
    new = [{"id": cell.id, **cell.point.to_json()} for cell in planned]
    ids = {cell["id"] for cell in new}
    old = [cell for cell in before["cells"] if cell["id"] not in ids and (opened.cells / cell["id"]).is_dir()]
    now = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "only": list(options.only),
        "repeats": options.repeats,
        "accel": options.accel,
        "cells": len(planned),
    }
    opened.write_experiment(
        {
            "name": experiment.name,
            "file": str(experiment.file),
            "seed": experiment.seed,
            "order": [cell["id"] for cell in [*old, *new]],
            "cells": [*old, *new],
            "spec": experiment.to_json(),
            "runs": [*before["runs"], now],
        }
    )


def _run_cells(
    opened: Store,
    experiment: Experiment,
    lab: Lab,
    options: Options,
    todo: Sequence[Cell],
    summary: Summary,
    shown: Progress,
) -> None:
    failed_boots: Counter[Hashable] = Counter()
    with Pool(lab, opened.machines) as pool:
        context = cells.Context(
            lab=lab,
            pool=pool,
            experiment=experiment.name,
            run_facts=provenance.of_run(),
            reproduce={
                cell.id: provenance.reproduce(options.given, cell.point, accel=options.accel, repeats=options.repeats)
                for cell in todo
            },
            timeout=experiment.running.timeout,
            fresh=experiment.running.fresh_machine,
            snapshots=experiment.measure.snapshots,
            perf=experiment.measure.perf,
        )
        shown.step(f"{len(todo)} cells into {opened.directory}")
        for number, cell in enumerate(todo):
            kind = kind_of(cell.machine)
            if failed_boots[kind] >= _BOOT_TRIES:
                summary.given_up.append(cell)
                continue
            shown.advance(number, len(todo), str(cell.point))
            boots = pool.boots
            with opened.new_cell(cell.id) as partial:
                result = cells.run(cell, context, partial)
                opened.commit(partial, result)
            summary.done.append(result)
            if result["provenance"]["machine"] is not None:
                failed_boots[kind] = 0
            elif pool.boots > boots:
                failed_boots[kind] += 1
            if not succeeded(result):
                shown.note(f"{cell.point}: {describe(result)}")
            for line in result["complaints"][:_COMPLAINTS_SHOWN]:
                shown.note(f"{cell.point}: the guest's kernel complained: {line}")


def describe(result: Json) -> str:
    """Return one line on how a cell ended."""
    outcome = result["outcome"]
    if succeeded(result):
        return "ok"
    return f"{outcome['type']}: {outcome['detail'].partition(chr(10))[0]}"


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the run as Ctrl-C does, so that machines are destroyed; main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


__all__ = ["Blocked", "Options", "Summary", "describe", "run", "select"]
