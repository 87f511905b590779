"""`perf stat -j`: the argv in front of a command, and its output as typed values.

perf prints one JSON object per event. A counter the machine lacks is the string `<not supported>`,
one that was never scheduled `<not counted>`: both are missing here (None), never 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numalab.errors import UserError
from numalab.machine.outcome import Completed, GuestFileError
from numalab.measure.counters import GuestFiles

#: What the papers on page tables count; user space only, as they do.
DEFAULT_EVENTS = (
    "cycles:u",
    "instructions:u",
    "dTLB-load-misses:u",
    "dTLB-store-misses:u",
    "page-faults",
    "task-clock",
)

#: Numbers that perf writes and JSON does not know.
_NO_NUMBER = re.compile(r":\s*-?(nan|inf)\b")


@dataclass(frozen=True)
class PerfEvent:
    """One event of a `perf stat` run.

    Attributes:
        event: as perf names it.
        value: the count, scaled by perf when the event was multiplexed; None when it is missing.
        unit: of the value, "" for plain counts.
        running: share of the time the event was counted, in percent; below 100 it was multiplexed.
            None when perf does not say.
        missing: why there is no value ("<not supported>", "<not counted>", "<not reported>"), "" when
            there is one.
    """

    event: str
    value: float | None
    unit: str = ""
    running: float | None = None
    missing: str = ""


@dataclass(frozen=True)
class PerfReport:
    """Output of one run: its events in order, and the lines that could not be read."""

    events: tuple[PerfEvent, ...]
    broken: tuple[str, ...] = ()

    def to_json(self) -> dict[str, float | None]:
        """event → value, None for what is missing."""
        return {each.event: each.value for each in self.events}


def argv_prefix(output: str, events: Sequence[str] = DEFAULT_EVENTS) -> list[str]:
    """Words to put in front of a command: it is counted, and the report goes to the file `output`.

    `output` keeps the report apart from the command's own error output. LC_ALL=C keeps decimal
    commas out of it.

    Raises:
        UserError: for an empty list or an event name perf would take for several.
    """
    if not events:
        raise UserError("perf: no events are named")
    for event in events:
        if not event or re.search(r"[\s,]", event):
            raise UserError(f"perf: {event!r} is not the name of one event")
    return ["env", "LC_ALL=C", "perf", "stat", "-j", "-o", output, "-e", ",".join(events), "--"]


def parse(text: str, wanted: Sequence[str] = ()) -> PerfReport:
    """Read what `perf stat -j` wrote; events of `wanted` that it does not mention are missing.

    Comment lines and metric-only lines are left out; a line cut short, as when perf was killed, is
    kept in `broken`.
    """
    events, broken = [], []
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        try:
            fields = json.loads(_NO_NUMBER.sub(": null", stripped))
            if "event" in fields:
                events.append(_event(fields))
        except (ValueError, TypeError, KeyError):
            broken.append(line)
    seen = {each.event for each in events} | {_plain(each.event) for each in events}
    absent = [PerfEvent(name, None, missing="<not reported>") for name in wanted if _plain(name) not in seen]
    return PerfReport((*events, *absent), tuple(broken))


class Guest(Protocol):
    """What a machine must offer (`numalab.machine.session.Machine` does)."""

    def run(self, argv: list[str]) -> Completed:
        """Run a command of the guest to its end."""


def known(machine: Guest, events: Sequence[str]) -> tuple[str, ...]:
    """Return those of `events` that perf on the machine takes, in their order.

    The names are the processor's (`perf list`): one that it does not know would keep perf from counting the others too,
    and the program from running. perf itself is asked, by counting nothing: aliases and modifiers are in no list.
    """

    def takes(some: Sequence[str]) -> bool:
        return machine.run([*argv_prefix("/dev/null", some), "true"]).ok

    if not events or takes(events):
        return tuple(events)
    return tuple(event for event in events if takes([event]))


def _plain(event: str) -> str:
    """An event without its modifier: perf adds `:u` by itself where it may not count the kernel."""
    return event.partition(":")[0]


def _event(fields: dict[str, Any]) -> PerfEvent:
    raw = str(fields["counter-value"])
    missing = raw if raw.startswith("<") else ""
    running = fields.get("pcnt-running")
    return PerfEvent(
        event=fields["event"],
        value=None if missing else float(raw),
        unit=fields.get("unit", ""),
        # Of an event that never ran, perf says that it ran all the time.
        running=None if running is None or missing else float(running),
        missing=missing,
    )


def has_pmu(machine: GuestFiles) -> bool:
    """Whether the machine's kernel found a hardware PMU; emulated machines have none."""
    for name in ("cpu", "cpu_core"):  # cpu_core: hybrid processors
        try:
            machine.read_file(f"/sys/bus/event_source/devices/{name}/type")
        except GuestFileError:
            continue
        return True
    return False
