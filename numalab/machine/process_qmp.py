"""QMP over the standard input and output of a QEMU that runs inside a machine."""

from __future__ import annotations

import json
import queue
import time
from typing import Any

from numalab.errors import ExperimentError
from numalab.machine import channel as ch
from numalab.machine.commands import Commands
from numalab.machine.outcome import QemuDiedError
from numalab.machine.process import Process

_SECONDS = 120.0


class ProcessQmp:
    """A QEMU started with `-qmp stdio` as a command of a machine, and the conversation with it.

    Attributes:
        process: the command; `wait` it for the end.
    """

    def __init__(self, machine: Commands, argv: list[str]) -> None:
        """Start `argv`, to which `-qmp stdio` is added, and leave the negotiation behind.

        Raises:
            QemuDiedError: it ended, or said something that is not QMP; with its last words.
        """
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._rest = b""
        self._errors = b""
        self.events: list[dict[str, Any]] = []
        self.process = Process(machine, [*argv, "-qmp", "stdio"], hold_input=True, tap=self._tap)
        if "QMP" not in self._next(time.monotonic() + _SECONDS):
            raise QemuDiedError("the second-level QEMU does not speak QMP")
        self.execute("qmp_capabilities")

    def _tap(self, kind: bytes, payload: bytes) -> None:
        """Part output into lines; runs in the channel's reader."""
        if kind == ch.STDERR:
            self._errors += payload
            return
        *whole, self._rest = (self._rest + payload).split(b"\n")
        for line in whole:
            self._lines.put(line)

    @property
    def words(self) -> str:
        """What QEMU has said on its standard error."""
        return self._errors.decode(errors="replace").strip()

    def _next(self, deadline: float) -> dict[str, Any]:
        while True:
            try:
                line = self._lines.get(timeout=0.2)
            except queue.Empty:
                if self.process.ended():
                    raise QemuDiedError(f"the second-level QEMU ended: {self.words or 'it said nothing'}") from None
                if time.monotonic() > deadline:
                    raise ExperimentError("the second-level QEMU does not answer") from None
                continue
            if line.strip():
                said: dict[str, Any] = json.loads(line)
                return said

    def execute(self, command: str, *, timeout: float = _SECONDS, **arguments: Any) -> Any:
        """Run one command and return its answer; events in between go to `events`.

        Raises:
            ExperimentError: QEMU refused, or did not answer within `timeout` seconds.
            QemuDiedError: it ended.
        """
        words = {"execute": command, **({"arguments": arguments} if arguments else {})}
        self.process.write(json.dumps(words).encode() + b"\n")
        deadline = time.monotonic() + timeout
        while True:
            answer = self._next(deadline)
            if "error" in answer:
                raise ExperimentError(f"QMP {command}: {answer['error'].get('desc', answer['error'])}")
            if "return" in answer:
                return answer["return"]
            self.events.append(answer)
