"""What running test programs needs of a machine; numalab.machine.session.Machine has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from numalab.machine.outcome import Completed


class ProcessLike(Protocol):
    """A command of the guest that was started."""

    def wait(self, timeout: float | None = None) -> Completed:
        """Wait for its end; after a time-out, called again, return what it left."""


class MachineLike(Protocol):
    """A running machine."""

    @property
    def accel(self) -> str:
        """ "kvm" or "tcg"."""

    @property
    def console(self) -> Path:
        """The log of its console."""

    def start(self, argv: Sequence[str], *, cwd: str = "/", env: Mapping[str, str] | None = None) -> ProcessLike:
        """Start a command."""

    def read_file(self, path: str) -> bytes:
        """Return a file of the guest."""

    def write_file(self, path: str, data: bytes) -> None:
        """Write a file of the guest."""


#: Gives a freshly booted machine for the length of a `with` block.
OpenMachine = Callable[[], AbstractContextManager[MachineLike]]
