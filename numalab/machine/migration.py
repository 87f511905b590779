"""Moving a second-level guest from one QEMU of a machine to another, or into a file and back.

    other = SecondLevel(machine, kernel, shape, cpus=cpus, slot=1, qemu_args=INCOMING)
    other.boot(run=False)
    listen(other, uri)
    send(guest, uri)                     # the guest is stopped from here on
    arrived(other)
    take_over(other, guest.channel)      # its first process answers there
    other.qmp.execute("cont")

Addresses are QEMU's: `unix:/path` and `exec:command`, in the machine.
"""

from __future__ import annotations

import time
from typing import Any

from numalab.errors import ExperimentError
from numalab.machine.channel import Channel
from numalab.machine.second import SecondLevel

#: For `qemu_args` of the guest that another one is to arrive in.
INCOMING = ("-incoming", "defer")
#: An emulated machine changes memory faster than it sends it: a guest that never fits into a short downtime would never
#: be done. What is shown here is that nothing is lost, not for how long a guest stands still.
_DOWNTIME_MS = 20_000
_BANDWIDTH = 1 << 34


def send(guest: SecondLevel, uri: str, *, timeout: float = 600.0, downtime_ms: int = _DOWNTIME_MS) -> dict[str, Any]:
    """Send a guest away; it is stopped when this returns. Gives what QEMU says of it (`query-migrate`).

    Raises:
        ExperimentError: it failed, or was not done in time.
    """
    limits = {"downtime-limit": downtime_ms, "max-bandwidth": _BANDWIDTH}
    guest.qmp.execute("migrate-set-parameters", **limits)
    guest.qmp.execute("migrate", uri=uri)
    return _await(guest, "sent", timeout)


def listen(guest: SecondLevel, uri: str) -> None:
    """Have a guest that was booted with `run=False` and INCOMING wait for what is sent to `uri`."""
    guest.qmp.execute("migrate-incoming", uri=uri)


def arrived(guest: SecondLevel, *, timeout: float = 600.0) -> None:
    """Wait until all of a guest is there; it stays stopped.

    Raises:
        ExperimentError: it failed, or was not done in time.
    """
    _await(guest, "received", timeout)


def take_over(guest: SecondLevel, channel: Channel) -> None:
    """Talk to the first process of a guest that has arrived, where `channel` talked to it before.

    Commands that were started there are known by their process ids only.
    """
    guest.channel.go_on(channel)


def _await(guest: SecondLevel, what: str, timeout: float) -> dict[str, Any]:
    deadline = time.monotonic() + timeout
    while True:
        said: dict[str, Any] = guest.qmp.execute("query-migrate")
        state = said.get("status")
        if state == "completed":
            return said
        if state in ("failed", "cancelled") or time.monotonic() > deadline:
            why = said.get("error-desc") or guest.qmp.words or "QEMU said no more"
            raise ExperimentError(f"the guest was not {what} ({state}): {why}")
        time.sleep(0.5)
