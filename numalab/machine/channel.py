"""The host's side of the channel to the guest's first process (numalab/guest/protocol.h)."""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

PROTOCOL_VERSION = 1
FRAME_MAX = 256 * 1024
_HEADER = struct.Struct("<IIc")
#: Output up to here is kept in memory; more is spooled to a file of the machine's directory.
_SPOOL = 8 << 20

# Host to guest.
RUN, STDIN, KILL, RESUME, GET, PUT, APPEND, OFF = b"R", b"I", b"K", b"A", b"G", b"P", b"Q", b"O"
# Guest to host.
HELLO, BEAT, STARTED, STDOUT, STDERR = b"Y", b"H", b"S", b"1", b"2"
MARK, EXIT, DATA, STATUS = b"M", b"X", b"D", b"E"


class ChannelClosedError(Exception):
    """The other side of the channel is gone (QEMU ended)."""


@dataclass
class Stream:
    """What one command or file transfer has sent so far.

    Output goes to the spools as it comes, in the reader's thread; everything else waits in `events`
    as (type, payload). A closed channel puts (b"", b"").
    """

    stdout: IO[bytes]
    stderr: IO[bytes]
    events: queue.SimpleQueue[tuple[bytes, bytes]] = field(default_factory=queue.SimpleQueue)
    tap: Callable[[bytes, bytes], None] | None = None


class Channel:
    """A connected channel: sends frames, and sorts what comes back by channel number."""

    def __init__(self, sock: socket.socket, spool_dir: Path) -> None:
        self._sock = sock
        self._spool_dir = spool_dir
        self._send_lock = threading.Lock()
        self._lock = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._next = 1
        self.hello = threading.Event()
        self.version: int | None = None
        self.closed = threading.Event()
        self.last_heard = time.monotonic()
        self._reader = threading.Thread(target=self._read_loop, name="numalab-channel", daemon=True)
        self._reader.start()

    def open(self, tap: Callable[[bytes, bytes], None] | None = None) -> tuple[int, Stream]:
        """Reserve a channel number; `tap(type, data)` sees output as it comes (in the reader's thread)."""
        stream = Stream(self._spool(), self._spool(), tap=tap)
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._streams[number] = stream
        if self.closed.is_set():
            stream.events.put((b"", b""))
        return number, stream

    def go_on(self, other: Channel) -> None:
        """Talk to the first process that `other` talked to: its guest has been migrated to where this channel leads.

        Numbers go on, so that what commands of the other channel still send is dropped here.
        """
        with self._lock, other._lock:
            self._next = other._next
        self.version = other.version
        self.hello.set()

    def release(self, number: int) -> None:
        """Forget a channel; late frames of it are dropped."""
        with self._lock:
            stream = self._streams.pop(number, None)
        if stream:
            stream.stdout.close()
            stream.stderr.close()

    def send(self, number: int, kind: bytes, payload: bytes = b"") -> None:
        """Send one frame.

        Raises:
            ChannelClosedError: the guest is gone.
            ValueError: the payload is larger than a frame.
        """
        if len(payload) > FRAME_MAX:
            raise ValueError(f"a frame holds {FRAME_MAX} bytes, not {len(payload)}")
        try:
            with self._send_lock:
                self._sock.sendall(_HEADER.pack(len(payload), number, kind) + payload)
        except OSError as error:
            raise ChannelClosedError(str(error)) from error

    def close(self) -> None:
        """Close the socket and wait for the reader."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._reader.join(timeout=5)
        self._sock.close()

    def _spool(self) -> IO[bytes]:
        return tempfile.SpooledTemporaryFile(max_size=_SPOOL, dir=str(self._spool_dir))

    def _read_loop(self) -> None:
        try:
            with self._sock.makefile("rb", buffering=1 << 20) as source:
                while header := source.read(_HEADER.size):
                    if len(header) < _HEADER.size:
                        break
                    length, number, kind = _HEADER.unpack(header)
                    payload = source.read(length)
                    if len(payload) < length:
                        break
                    self.last_heard = time.monotonic()
                    self._sort(number, kind, payload)
        except OSError:
            pass
        finally:
            self.closed.set()
            with self._lock:
                for stream in self._streams.values():
                    stream.events.put((b"", b""))

    def _sort(self, number: int, kind: bytes, payload: bytes) -> None:
        if number == 0:
            if kind == HELLO:
                self.version = int(payload)
                self.hello.set()
            return
        with self._lock:
            stream = self._streams.get(number)
            if stream is None:
                return
            if kind in (STDOUT, DATA):
                stream.stdout.write(payload)
            elif kind == STDERR:
                stream.stderr.write(payload)
            else:
                stream.events.put((kind, payload))
                return
        if stream.tap:
            stream.tap(kind, payload)


def pack_run(argv: list[str], env: dict[str, str], cwd: str, *, tty: bool = False) -> bytes:
    """Return the payload of a RUN frame.

    Raises:
        ValueError: a word holds a NUL byte, or all words together do not fit a frame.
    """
    words = ["t" if tty else "-", cwd, str(len(argv)), *argv, *(f"{k}={v}" for k, v in env.items())]
    if any("\0" in word for word in words):
        raise ValueError("an argument of a command cannot hold a NUL byte")
    payload = b"".join(word.encode() + b"\0" for word in words)
    if len(payload) > FRAME_MAX:
        raise ValueError(f"the command line is {len(payload)} bytes long; at most {FRAME_MAX} fit")
    return payload
