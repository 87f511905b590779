"""One command of a running machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from numalab.machine import channel as ch
from numalab.machine.outcome import (
    CommandFailedError,
    CommandTimeoutError,
    Completed,
    GuestFileError,
    GuestHangError,
    Mark,
)

if TYPE_CHECKING:
    from numalab.machine.commands import Commands, OnMark

_CHUNK = 64 * 1024
#: Seconds a killed command has to be gone.
_KILL_GRACE = 30.0


class Process:
    """A command that was started; `pid` is its process id in the guest.

    Beyond `Machine.start`: `tty` runs it on a terminal, `hold_input` leaves its input open for `write`,
    and `tap(type, data)` sees its output as it comes.
    """

    def __init__(
        self,
        machine: Commands,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        on_mark: OnMark | None = None,
        tty: bool = False,
        hold_input: bool = False,
        tap: Callable[[bytes, bytes], None] | None = None,
    ) -> None:
        if not argv:
            raise ValueError("a command needs at least a program")
        self.argv = list(argv)
        self._machine = machine
        self._on_mark = on_mark
        self._marks: list[Mark] = []
        self._number, self._stream = machine.channel.open(tap)
        self._done: Completed | None = None
        try:
            machine.send(self._number, ch.RUN, ch.pack_run(self.argv, dict(env or {}), cwd, tty=tty))
            event = machine.next_event(self._stream, timeout=None)
            assert event is not None
            if event[0] == ch.STATUS:
                raise GuestFileError(argv[0], int(event[1]))
            self.pid = int(event[1])
            self._start = time.monotonic()
            if not hold_input:
                for offset in range(0, len(stdin), _CHUNK):
                    self.write(stdin[offset : offset + _CHUNK])
                self.write(b"")
        except BaseException:
            machine.channel.release(self._number)
            raise

    def write(self, data: bytes) -> None:
        """Give the command input; b"" closes it."""
        self._machine.send(self._number, ch.STDIN, data)

    def kill(self, signal: int = 9) -> None:
        """Send a signal to the command and its children."""
        self._machine.send(self._number, ch.KILL, str(signal).encode())

    def wait(self, timeout: float | None = None, *, check: bool = False) -> Completed:
        """Wait for the command's end, serving its marks; see `Machine.run`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._done is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            event = self._machine.next_event(self._stream, left)
            if event is None:
                assert timeout is not None
                self._give_up(timeout)
            elif event[0] == ch.MARK:
                self._serve_mark(event[1].decode(errors="replace"))
            elif event[0] == ch.EXIT:
                self._finish(int(event[1]))
        if check and not self._done.ok:
            words = self._done.stderr.decode(errors="replace").strip()
            raise CommandFailedError(f"{self._done}" + (f":\n{words}" if words else ""))
        return self._done

    def ended(self) -> bool:
        """Whether the command has ended, without waiting; serves the marks that have come meanwhile."""
        while self._done is None:
            event = self._machine.next_event(self._stream, 0)
            if event is None:
                return False
            if event[0] == ch.MARK:
                self._serve_mark(event[1].decode(errors="replace"))
            elif event[0] == ch.EXIT:
                self._finish(int(event[1]))
        return True

    def wait_mark(self, name: str, timeout: float | None = None) -> Mark:
        """Wait until the command announces the mark `name` and let it go on from there.

        Raises:
            CommandFailedError: it ended before.
            CommandTimeoutError: it did not come in time; the command runs on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._done is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            event = self._machine.next_event(self._stream, left)
            if event is None:
                raise CommandTimeoutError(f"{self.argv[0]} did not reach its mark {name!r} within {timeout:g} s")
            if event[0] == ch.MARK:
                mark = self._serve_mark(event[1].decode(errors="replace"))
                if mark.name == name:
                    return mark
            elif event[0] == ch.EXIT:
                self._finish(int(event[1]))
        raise CommandFailedError(f"{self._done} before its mark {name!r}")

    def _serve_mark(self, name: str) -> Mark:
        mark = Mark(name, time.monotonic() - self._start)
        self._marks.append(mark)
        try:
            if self._on_mark:
                self._on_mark(mark, self._machine)
        finally:
            self._machine.send(self._number, ch.RESUME)
        return mark

    def _give_up(self, timeout: float) -> None:
        self.kill()
        deadline = time.monotonic() + _KILL_GRACE
        while (left := deadline - time.monotonic()) > 0:
            event = self._machine.next_event(self._stream, left)
            if event and event[0] == ch.EXIT:
                self._finish(int(event[1]))
                break
        else:
            raise GuestHangError(f"{self.argv[0]} could not be killed within {_KILL_GRACE:.0f} s")
        raise CommandTimeoutError(f"{self.argv[0]} ran longer than {timeout:g} s and was killed")

    def _finish(self, wait_status: int) -> None:
        signal = os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else None
        status = os.WEXITSTATUS(wait_status) if signal is None else None
        outputs = []
        for spool in (self._stream.stdout, self._stream.stderr):
            spool.seek(0)
            outputs.append(spool.read())
        self._done = Completed(self.argv, status, signal, outputs[0], outputs[1], self._marks)
        self._machine.channel.release(self._number)
