"""The result directory while it is written: one directory per cell that appears whole or not at all.

A cell is written under a name that starts with "." and renamed when its result.json is complete, so that
neither a crash nor a full disk leaves half a cell. What is in the way is moved aside, never deleted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from numalab.errors import ExperimentError, UserError
from numalab.machine.outcome import GuestFileError
from numalab.paths import write_json
from numalab.results import (
    CELLS,
    EXPERIMENT_FILE,
    EXPERIMENT_KIND,
    EXPERIMENT_SCHEMA,
    RESULT_FILE,
    RESULT_KIND,
    RESULT_SCHEMA,
    CorruptResultError,
    Json,
    load_experiment,
    load_result,
    result_files,
)

LATEST = "_latest"
_LOCK = ".lock"
_PARTIAL = ".partial-"
_MACHINES = ".machines"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class DiskFullError(ExperimentError):
    """The disk ran full while results were written; what was finished is kept."""


class Store:
    """A result directory that this process alone writes to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cells = directory / CELLS
        #: Logs of running machines; gone when the run is over.
        self.machines = directory / _MACHINES

    def results(self) -> tuple[dict[str, Json], list[CorruptResultError]]:
        """Return the finished cells by id, and the damaged ones.

        Raises:
            NewerSchemaError: one was written by a newer numalab.
        """
        good: dict[str, Json] = {}
        corrupt = []
        for path in result_files(self.directory):
            try:
                good[path.parent.name] = load_result(path)
            except CorruptResultError as error:
                corrupt.append(error)
        return good, corrupt

    def move_aside(self, cell_id: str, why: str) -> Path:
        """Rename a cell's directory to "<id>.<why>" (with a number when that is taken); returns the new path."""
        target = self.cells / f"{cell_id}.{why}"
        number = 2
        while target.exists():
            target = self.cells / f"{cell_id}.{why}-{number}"
            number += 1
        return (self.cells / cell_id).rename(target)

    @contextlib.contextmanager
    def new_cell(self, cell_id: str) -> Iterator[Path]:
        """Yield a fresh directory for a cell's files; it is gone again unless `commit` is called.

        Raises:
            DiskFullError: the disk ran full meanwhile.
        """
        partial = self.cells / f"{_PARTIAL}{cell_id}"
        with write_errors_explained(self.directory):
            try:
                partial.mkdir(parents=True)
                yield partial
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def commit(self, partial: Path, result: Json) -> Path:
        """Complete a cell: write its result.json and give the directory its name; returns that."""
        cell_id = result["cell"]["id"]
        write_json(partial / RESULT_FILE, {"schema": RESULT_SCHEMA, "kind": RESULT_KIND, **result})
        return partial.rename(self.cells / cell_id)

    def experiment(self) -> Json | None:
        """Return experiment.json as it stands, None when there is none that can be read."""
        if not (self.directory / EXPERIMENT_FILE).exists():
            return None
        try:
            return load_experiment(self.directory)
        except CorruptResultError:
            return None  # everything in it is written anew from the experiment and the cells

    def write_experiment(self, value: Json) -> None:
        """Write experiment.json."""
        with write_errors_explained(self.directory):
            write_json(
                self.directory / EXPERIMENT_FILE,
                {"schema": EXPERIMENT_SCHEMA, "kind": EXPERIMENT_KIND, **value},
            )

    def sweep(self) -> None:
        """Remove what a killed run left behind; only under the lock."""
        for left in [*self.cells.glob(f"{_PARTIAL}*"), self.machines]:
            shutil.rmtree(left, ignore_errors=True)
        for left in self.directory.glob(f".{EXPERIMENT_FILE}.*"):
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[Store]:
    """Yield the store of `directory` (made when absent), locked against other processes.

    Raises:
        UserError: another run writes here, or the directory belongs to something else.
        DiskFullError: not even the directory can be made.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: not a directory")
    known = (EXPERIMENT_FILE, CELLS, _LOCK)
    if directory.is_dir() and any(directory.iterdir()) and not any((directory / name).exists() for name in known):
        raise UserError(f"{directory}: not empty, and no result directory", remedy="name another with --out")
    with write_errors_explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "?"
            raise UserError(
                f"{directory}: another run (process {holder}) writes here", remedy="wait for it, or use another --out"
            ) from None
        with write_errors_explained(directory):
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        store = Store(directory)
        store.sweep()
        try:
            yield store
        finally:
            shutil.rmtree(store.machines, ignore_errors=True)
    finally:
        os.close(handle)


@contextlib.contextmanager
def write_errors_explained(directory: Path) -> Iterator[None]:
    """Turn "no space left on device" and "permission denied" inside the block into errors that say what to do."""
    try:
        yield
    except OSError as error:
        where = error.filename or directory
        if disk_full(error):
            raise DiskFullError(
                f"the disk is full: {where}: {error.strerror}; finished cells are kept",
                remedy="make room, then run the same command with --resume",
            ) from error
        if error.errno in _FORBIDDEN and not isinstance(error, GuestFileError):
            raise UserError(
                f"{where}: {error.strerror}", remedy="name a directory you may write to with --out"
            ) from error
        raise


def disk_full(error: BaseException) -> bool:
    """Whether `error` is the host (not the guest) saying that a disk or quota is full."""
    return isinstance(error, OSError) and not isinstance(error, GuestFileError) and error.errno in _FULL


def default_directory(name: str, *, resume: bool, today: date, base: Path = Path("results")) -> Path:
    """Return where a run of experiment `name` goes: results/NAME-DATE, with a number when that is taken.

    With `resume`, the newest directory of that experiment, if there is one.
    """
    if resume:
        pattern = re.compile(re.escape(name) + r"-(\d{4}-\d\d-\d\d)(?:-(\d+))?")
        found = [(match, path) for path in base.glob(f"{name}-*") if (match := pattern.fullmatch(path.name))]
        if found:
            return max(found, key=lambda each: (each[0][1], int(each[0][2] or 1)))[1]
    first = base / f"{name}-{today.isoformat()}"
    target, number = first, 2
    while target.exists():
        target = first.with_name(f"{first.name}-{number}")
        number += 1
    return target


def point_latest(directory: Path) -> None:
    """Make `_latest` beside `directory` point to it, atomically."""
    link = directory.parent / LATEST
    new = directory.parent / f".{LATEST}.{os.getpid()}"
    new.unlink(missing_ok=True)
    new.symlink_to(directory.name)
    new.replace(link)
