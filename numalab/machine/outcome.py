"""How a command or a machine can end; every end has a type, and none of the bad ones looks like success."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field

from numalab.errors import ExperimentError, MachineLostError


class GuestPanicError(MachineLostError):
    """The guest's kernel panicked or oopsed; `oops` is what it wrote."""

    type = "panic"

    def __init__(self, message: str, *, oops: str = "", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.oops = oops


class GuestHangError(MachineLostError):
    """The guest still runs but its first process has had no heartbeat for too long."""

    type = "hang"


class BootFailureError(MachineLostError):
    """The guest never answered."""

    type = "boot-failure"


class QemuDiedError(MachineLostError):
    """QEMU ended while it was needed, and the guest's kernel had not panicked."""

    type = "qemu-died"


class CommandTimeoutError(ExperimentError):
    """A command ran longer than it was given; the machine is still good."""

    type = "timeout"


class CommandFailedError(ExperimentError):
    """A command that had to succeed ended with another status than 0."""

    type = "exit"


class GuestFileError(OSError):
    """Reading or writing a file of the guest failed; `errno` is the guest's."""

    def __init__(self, path: str, errno: int) -> None:
        super().__init__(errno, os.strerror(errno), path)


@dataclass(frozen=True)
class Mark:
    """A point that a program in the guest announced, e.g. "ready"; `time_s` since the command started."""

    name: str
    time_s: float


@dataclass(frozen=True)
class Completed:
    """A command of the guest that ended by itself.

    `status` is its exit status, or None when signal number `signal` ended it.
    """

    argv: list[str]
    status: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    marks: list[Mark] = field(default_factory=list)

    @property
    def type(self) -> str:
        """ "exit" or "signal"."""
        return "exit" if self.signal is None else "signal"

    @property
    def ok(self) -> bool:
        """Whether it exited with status 0."""
        return self.status == 0

    def __str__(self) -> str:
        if self.signal is not None:
            return f"{self.argv[0]} was killed by signal {self.signal} ({signal.strsignal(self.signal)})"
        return f"{self.argv[0]} exited with status {self.status}"
