"""What long work tells its user: a bar on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO


class Progress:
    """Receives what happens; this base class is silent. Use as a context manager around the work."""

    def step(self, text: str) -> None:
        """Another stage begins."""

    def note(self, text: str) -> None:
        """The user should know this, but it is no error."""

    def advance(self, done: int, total: int | None, text: str = "") -> None:
        """`done` of `total` units of this stage are finished; `total` is None when nobody can know."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was found."""


def clock(seconds: float) -> str:
    """Return a duration as people say it: "42 s", "7 min 05 s", "1 h 12 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Lines(Progress):
    """Plain lines, at most one every `every` seconds while a stage advances: for logs and pipes."""

    def __init__(self, stream: TextIO, *, every: float = 15.0) -> None:
        self._stream = stream
        self._every = every
        self._begun = self._last = time.monotonic()
        self._first: int | None = None

    def step(self, text: str) -> None:
        """Print `text` and start the clock of this stage."""
        self._begun = self._last = time.monotonic()
        self._first = None
        print(f"numalab: {text}", file=self._stream, flush=True)

    def note(self, text: str) -> None:
        """Print `text`."""
        print(f"numalab: note: {text}", file=self._stream, flush=True)

    def advance(self, done: int, total: int | None, text: str = "") -> None:
        """Print how far it is, with the time left, when the last such line is old enough."""
        if self._first is None:
            self._first = done
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        spent = now - self._begun
        if total:
            share = f"{done}/{total} ({min(100 * done // total, 99)} %)"
            worked = done - self._first
            if worked > 0:
                share += f", {clock(spent * max(total - done, 0) / worked)} left"
        else:
            share = f"{done}"
        print(f"numalab:   {share}, {clock(spent)} so far {text}".rstrip(), file=self._stream, flush=True)


class Bar(Progress):
    """A rich progress bar with time left; only for a terminal."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._console = Console(file=stream)
        self._bar = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._task: Any = None

    def step(self, text: str) -> None:
        """Finish the bar of the last stage, print `text` and open a new bar."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._console.print(text, markup=False, highlight=False)
        self._task = self._bar.add_task("", total=None, count="", detail="")
        self._bar.start()

    def note(self, text: str) -> None:
        """Print `text` above the bar."""
        self._console.print(f"note: {text}", markup=False, highlight=False)

    def advance(self, done: int, total: int | None, text: str = "") -> None:
        """Move the bar."""
        if self._task is None:
            self.step("")
        count = f"{done}/{total}" if total else f"{done}"
        self._bar.update(self._task, completed=done, total=total, count=count, detail=text[-40:])

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()


def for_stream(stream: TextIO | None = None) -> Progress:
    """Return a `Bar` when `stream` (default: standard error) is a terminal, else `Lines`."""
    stream = sys.stderr if stream is None else stream
    return Bar(stream) if stream.isatty() else Lines(stream)
