"""One command on the host itself: as `numalab.machine.process.Process` is one in a guest."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal as signals
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from numalab.errors import ExperimentError
from numalab.machine.outcome import (
    CommandFailedError,
    CommandTimeoutError,
    Completed,
    GuestFileError,
    Mark,
)

if TYPE_CHECKING:
    from numalab.machine.host import HostMachine

#: Seconds a killed command has to be gone.
_KILL_GRACE = 30.0
#: Seconds that setpriv may take on a busy host until it has started the program.
_EXEC_SECONDS = 10.0
#: The environment variable that tells a program its mark channel (workloads/common/marks.c).
MARK_FD = "NUMALAB_MARK_FD"


class HostProcess:
    """A command that was started; `pid` is its process id, and that of its session."""

    def __init__(
        self,
        machine: HostMachine,
        argv: Sequence[str],
        *,
        stdin: bytes,
        env: Mapping[str, str],
        cwd: str,
        on_mark: Callable[[Mark, Any], None] | None,
    ) -> None:
        if not argv:
            raise ValueError("a command needs at least a program")
        self.argv = list(argv)
        self._machine = machine
        self._on_mark = on_mark
        self._marks: list[Mark] = []
        self._said = b""
        self._done: Completed | None = None
        program = shutil.which(argv[0], path=env["PATH"])
        if program is None:
            raise GuestFileError(argv[0], errno.ENOENT)
        self._channel, theirs = socket.socketpair()
        self._stdout, self._stderr = self._spool(), self._spool()
        with theirs, self._input(stdin) as given:
            try:
                self._child = subprocess.Popen(
                    [*_dying(), program, *self.argv[1:]],
                    stdin=given,
                    stdout=self._stdout,
                    stderr=self._stderr,
                    env={**env, MARK_FD: str(theirs.fileno())},
                    cwd=cwd,
                    start_new_session=True,
                    pass_fds=[theirs.fileno()],
                )
            except OSError as error:
                self._channel.close()
                raise GuestFileError(argv[0], error.errno or 0) from error
        self.pid = self._child.pid
        self._await_program()
        self._start = time.monotonic()
        # Readable when the command has ended: no polling beside a measured program.
        self._end = os.pidfd_open(self.pid)

    def _await_program(self) -> None:
        """Wait until setpriv has made place for the program: from then on it dies with us."""
        setpriv = shutil.which("setpriv")
        deadline = time.monotonic() + _EXEC_SECONDS
        with contextlib.suppress(OSError):  # it has ended already
            while setpriv and time.monotonic() < deadline and Path(f"/proc/{self.pid}/exe").samefile(setpriv):
                time.sleep(0.001)

    def _spool(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._machine.scratch)

    def _input(self, data: bytes) -> IO[bytes]:
        given = self._spool()
        given.write(data)
        given.seek(0)
        return given

    def kill(self, signal: int = signals.SIGKILL) -> None:
        """Send a signal to the command and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal)

    def wait(self, timeout: float | None = None) -> Completed:
        """Wait for the command's end, serving its marks; after a time-out, called again, return what it left.

        Raises:
            CommandTimeoutError: it took longer than `timeout` seconds and was killed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._done is None:
            if not self._step(deadline):
                assert timeout is not None
                self._give_up(timeout)
        return self._done

    def wait_mark(self, name: str, timeout: float | None = None) -> Mark:
        """Wait until the command announces the mark `name` and let it go on from there.

        Raises:
            CommandFailedError: it ended before.
            CommandTimeoutError: it did not come in time; the command runs on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        seen = len(self._marks)
        while self._done is None:
            if not self._step(deadline):
                raise CommandTimeoutError(f"{self.argv[0]} did not reach its mark {name!r} within {timeout:g} s")
            for mark in self._marks[seen:]:
                if mark.name == name:
                    return mark
            seen = len(self._marks)
        raise CommandFailedError(f"{self._done} before its mark {name!r}")

    def ended(self) -> bool:
        """Whether the command has ended, without waiting; serves the marks that have come meanwhile."""
        while self._done is None and self._step(time.monotonic()):
            pass
        return self._done is not None

    def close(self) -> None:
        """End the command and all it has started, if they have not ended."""
        self.kill()
        if self._done is None:
            self._finish()

    def _step(self, deadline: float | None) -> bool:
        """Wait for one thing to happen and see to it; False when nothing has until `deadline`."""
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        channels: list[Any] = [self._end]
        if self._channel.fileno() >= 0:
            channels.append(self._channel)
        ready, _, _ = select.select(channels, [], [], left)
        if self._channel in ready:  # first: what it said before it ended
            self._hear()
        elif self._end in ready:
            self._finish()
        return bool(ready)

    def _hear(self) -> None:
        try:
            data = self._channel.recv(4096)
        except ConnectionResetError:  # it ended with an answer of ours unread
            data = b""
        if not data:
            self._channel.close()
            return
        *lines, self._said = (self._said + data).split(b"\n")
        for line in lines:
            self._serve_mark(line.decode(errors="replace"))

    def _serve_mark(self, name: str) -> None:
        mark = Mark(name, time.monotonic() - self._start)
        self._marks.append(mark)
        try:
            if self._on_mark:
                self._on_mark(mark, self._machine)
        finally:
            with contextlib.suppress(OSError):  # it has been killed meanwhile
                self._channel.send(b"\n", socket.MSG_NOSIGNAL)

    def _give_up(self, timeout: float) -> None:
        self.kill()
        if not select.select([self._end], [], [], _KILL_GRACE)[0]:
            raise ExperimentError(f"{self.argv[0]} could not be killed within {_KILL_GRACE:.0f} s")
        self._finish()
        raise CommandTimeoutError(f"{self.argv[0]} ran longer than {timeout:g} s and was killed")

    def _finish(self) -> None:
        code = self._child.wait()
        outputs = []
        for spool in (self._stdout, self._stderr):
            spool.seek(0)
            outputs.append(spool.read())
            spool.close()
        status, signal = (code, None) if code >= 0 else (None, -code)
        self._done = Completed(self.argv, status, signal, outputs[0], outputs[1], self._marks)
        os.close(self._end)
        self._channel.close()


def _dying() -> list[str]:
    """Words that make a command die with us, however we die."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
