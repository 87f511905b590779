"""The program in a guest that holds memory, checks it and changes it, and what it says."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from numalab.errors import ExperimentError
from numalab.machine.outcome import GuestFileError
from numalab.machine.rootfs import static_program
from numalab.machine.second import SecondLevel
from vmitosis.second_level import wait_until

_SOURCES = Path(__file__).parent
#: In the guest, and in the machine.
KEEPER, COLLAPSE, PAGESUMS = "/bin/keeper", "/bin/collapse", "/bin/pagesums"
#: Seconds of wall time for a round through all of its memory in a guest of an emulated machine, on a busy host.
_PATIENCE = 300.0


def guest_files() -> dict[str, Path]:
    """What the guest needs, as guest path → host file."""
    return {KEEPER: static_program("keeper", [_SOURCES / "keeper.c"], "keeper", "-pthread")}


def machine_files() -> dict[str, Path]:
    """What the machine needs."""
    return {
        COLLAPSE: static_program("collapse", [_SOURCES / "collapse.c"], "collapse"),
        PAGESUMS: static_program("pagesums", [_SOURCES / "pagesums.c"], "pagesums"),
    }


@dataclass(frozen=True)
class Status:
    """What the keeper says.

    Attributes:
        checked, changed: pages, as often as it was done.
        rounds: through all memory, of the slowest thread.
        wrong: pages that did not hold what they should.
        state: "running" or "done".
    """

    checked: int
    changed: int
    rounds: int
    wrong: int
    state: str


class Keeper:
    """A keeper that runs in a guest; known by its process id, it goes on wherever the guest is moved."""

    def __init__(self, guest: SecondLevel, *, live: int = 24, same: int = 8, threads: int = 0, name: str = "k") -> None:
        """Start it and wait until all memory has been checked once.

        Args:
            guest: where.
            live: MiB that are changed all the time.
            same: MiB of pages that are alike.
            threads: each with a CPU of its own; 0: as many as the guest has vCPUs.
            name: of its status file.
        """
        self.guest = guest
        self.same_pages = same << 8
        self._status = f"/tmp/{name}.status"
        words = [KEEPER, str(live), str(same), str(threads or guest.topology.cpus), self._status]
        self._process = guest.start(words)
        self.pid = self._process.pid
        self._last: Status | None = None
        self.rounds(1)

    def status(self) -> Status | None:
        """What it said last; None before it has said anything."""
        try:
            text = self.guest.read_file(self._status).decode()
        except GuestFileError:
            return None
        found = re.fullmatch(r"checked (\d+) changed (\d+) rounds (\d+) wrong (\d+) state (\w+)\n", text)
        if found is None:
            raise ExperimentError(f"not what keeper says: {text!r}")
        return Status(int(found[1]), int(found[2]), int(found[3]), int(found[4]), found[5])

    def rounds(self, count: int, *, timeout: float = _PATIENCE) -> Status:
        """Wait until all memory has been checked so many times more; nothing may be wrong.

        A round that has begun does not count: `count` + 1 ends are waited for, but for the first time of all.

        Raises:
            ExperimentError: a page was wrong, or the guest does not get on.
        """
        begun = time.monotonic()
        first = self.status()
        until = first.rounds + count + 1 if first else count
        while True:
            said = self.status()
            if said and _right(said).rounds >= until:
                return said
            if time.monotonic() - begun > timeout:
                raise ExperimentError(f"the guest's memory was not checked within {timeout:.0f} s: {said}")
            time.sleep(0.5)

    def finish(self, *, timeout: float = _PATIENCE) -> Status:
        """Check everything once more and end it; once is enough.

        Raises:
            ExperimentError: a page was wrong, or it did not end.
        """
        if self._last is not None:
            return self._last
        self.guest.run(["kill", "-TERM", str(self.pid)], check=True)
        wait_until(lambda: f"keeper has ended: {self.status()}", self._ended, timeout)
        self._last = _right(self.status())
        return self._last

    def _ended(self) -> bool:
        said = self.status()
        return said is not None and said.state == "done"


def _right(said: Status | None) -> Status:
    """What the keeper has said; nothing may be wrong.

    Raises:
        ExperimentError: a page was.
    """
    assert said is not None
    if said.wrong:
        raise ExperimentError(f"memory of the guest is not what it should be: {said}")
    return said
