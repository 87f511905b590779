"""Commands of a machine that is reached over a channel: what a machine and a guest of a machine have in common."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from numalab.machine import channel as ch
from numalab.machine.late import Action, LateActions
from numalab.machine.outcome import Completed, GuestFileError, GuestHangError, Mark, QemuDiedError
from numalab.machine.process import Process

#: Called with a mark and the machine whose command waits at it.
OnMark = Callable[[Mark, Any], None]


class Commands:
    """Runs commands and moves files through the channel to a guest's first process (`numalab.machine.channel`).

    Whoever inherits opens `_channel`, and says in `why_lost` how the machine ended.
    """

    hang_after: float

    def __init__(self) -> None:
        self._channel: ch.Channel | None = None
        self._late = LateActions()

    def __enter__(self) -> Self:
        self.boot()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def boot(self) -> None:
        """Start the machine and wait for its first process."""
        raise NotImplementedError

    def close(self) -> None:
        """End the machine; safe to call twice."""
        raise NotImplementedError

    def why_lost(self, *, booting: bool = False) -> Exception:
        """The exception that says how this machine ended."""
        raise NotImplementedError

    def _last_words(self) -> str:
        """The end of the console."""
        raise NotImplementedError

    def _silent_since(self) -> float | None:
        """When the guest could have been heard last (monotonic seconds); None while it stands still on purpose."""
        return self.channel.last_heard

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None = None,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        on_mark: OnMark | None = None,
        check: bool = False,
    ) -> Completed:
        """Run a command and wait for its end.

        Args:
            argv: program and arguments; the program is looked up in /bin:/usr/bin:/usr/sbin.
            timeout: seconds of wall time; then the command is killed.
            on_mark: called with each mark while the command waits at it.
            check: raise CommandFailedError unless it exits with 0.

        Raises:
            CommandTimeoutError: it took longer than `timeout`.
            GuestFileError: the program could not be started.
            MachineLostError: panic, hang, or QEMU died meanwhile.
        """
        process = self.start(argv, stdin=stdin, env=env, cwd=cwd, on_mark=on_mark)
        return process.wait(timeout, check=check)

    def start(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        on_mark: OnMark | None = None,
    ) -> Process:
        """Start a command and return at once; see `run` for the arguments."""
        serve, known_as = self._late.serving(on_mark)
        process = Process(self, argv, stdin=stdin, env=env, cwd=cwd, on_mark=serve)
        known_as(process.pid)
        return process

    def at_mark(self, name: str, action: Action) -> contextlib.AbstractContextManager[None]:
        """Do something to the next command when it announces the mark `name`; see `LateActions`."""
        return self._late.at_mark(name, action)

    def aside(self) -> contextlib.AbstractContextManager[None]:
        """Commands of the block are not the next one that something waits for; see `LateActions`."""
        return self._late.aside()

    def read_file(self, path: str) -> bytes:
        """Return the content of a file of the guest (proc and sysfs too); GuestFileError when it cannot be read."""
        with self.request(ch.GET, path.encode()) as (stream, status):
            if status:
                raise GuestFileError(path, status)
            stream.stdout.seek(0)
            return stream.stdout.read()

    def write_file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file of the guest; up to 128 KiB go in one write(2), as proc and sysfs want it."""
        step = 128 * 1024
        for offset in range(0, max(len(data), 1), step):
            kind, bits = (ch.APPEND, b"") if offset else (ch.PUT, b"%o" % mode)
            payload = path.encode() + b"\0" + bits + b"\0" + data[offset : offset + step]
            with self.request(kind, payload) as (_, status):
                if status:
                    raise GuestFileError(path, status)

    @contextlib.contextmanager
    def request(self, kind: bytes, payload: bytes) -> Iterator[tuple[ch.Stream, int]]:
        """Send one frame on a channel of its own and wait for the status that ends it."""
        number, stream = self.channel.open()
        try:
            self.send(number, kind, payload)
            while True:
                event = self.next_event(stream, timeout=None)
                if event and event[0] == ch.STATUS:
                    break
            yield stream, int(event[1])
        finally:
            self.channel.release(number)

    @property
    def channel(self) -> ch.Channel:
        """The channel to the guest; only while the machine runs."""
        if self._channel is None:
            raise QemuDiedError("the machine is not running")
        return self._channel

    def send(self, number: int, kind: bytes, payload: bytes = b"") -> None:
        """Send a frame; a lost machine is reported as what it was lost to."""
        try:
            self.channel.send(number, kind, payload)
        except ch.ChannelClosedError as error:
            raise self.why_lost() from error

    def next_event(self, stream: ch.Stream, timeout: float | None) -> tuple[bytes, bytes] | None:
        """Wait for the next event of a stream; None after `timeout` seconds.

        Raises:
            MachineLostError: the machine was lost while waiting.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            step = 1.0 if deadline is None else max(0.0, min(1.0, deadline - time.monotonic()))
            with contextlib.suppress(Exception):
                event = stream.events.get(timeout=step)
                if event[0] == b"":
                    break
                return event
            self._check_heartbeat()
            if deadline is not None and time.monotonic() >= deadline:
                return None
        raise self.why_lost()

    def _check_heartbeat(self) -> None:
        since = None if self.channel.closed.is_set() else self._silent_since()
        if since is not None and time.monotonic() - since > self.hang_after:
            raise GuestHangError(
                f"the guest has had no heartbeat for {time.monotonic() - since:.0f} s; its last words:\n"
                + self._last_words()
            )
