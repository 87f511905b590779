"""Things that wait for a mark: what is to happen to the next command of a machine when it has come so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numalab.machine.outcome import Mark

#: Called with each mark of a command and with its machine.
Serve = Callable[[Mark, Any], None]
#: Called with the process id of a command.
Action = Callable[[int], None]


class LateActions:
    """What waits in one machine; a part of every kind of machine."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, Action]] = []

    @contextmanager
    def at_mark(self, name: str, action: Action) -> Iterator[None]:
        """Call `action` with the process id of the next command that is started, when it announces the mark `name`.

        That is after what the command's own `on_mark` does there; the command waits meanwhile. What has not found a
        command when the context ends never will.
        """
        late = (name, action)
        self._waiting.append(late)
        try:
            yield
        finally:
            if late in self._waiting:
                self._waiting.remove(late)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Commands of the block take nothing of what waits: they prepare something for the one that is meant."""
        waiting, self._waiting = self._waiting, []
        try:
            yield
        finally:
            self._waiting = waiting

    def serving(self, on_mark: Serve | None) -> tuple[Serve | None, Action]:
        """Hand all that waits to a command that is about to be started.

        Returns: its `on_mark` with all that in it, and a function to be told its process id.
        """
        late, self._waiting = self._waiting, []
        pids: list[int] = []

        def serve(mark: Mark, machine: Any) -> None:
            if on_mark:
                on_mark(mark, machine)
            for name, action in late:
                if name == mark.name:
                    action(pids[0])

        return (serve if late else on_mark), pids.append
