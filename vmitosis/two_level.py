"""A machine with a guest in it, in the place of a machine: what `vmitosis.lab` gives to `numalab.run`."""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numalab.errors import ExperimentError, MissingError
from numalab.kernel.image import KernelImage
from numalab.machine.outcome import Completed, GuestFileError, Mark
from numalab.machine.process import Process
from numalab.machine.second import CPU, CPU_UNNAMED, SecondLevel
from numalab.machine.session import Machine
from numalab.machine.topology import Topology
from numalab.run.policy import number_list
from vmitosis.discovery import Grouping, discover
from vmitosis.latencies import parse
from vmitosis.policies import DOMAINS, HOST, MOVE, NID, POOL, REPROBE, SECOND, SHAPE, VM, WITH_SECOND
from vmitosis.provision import parse_shape, place
from vmitosis.regroup import moved, renumbered
from vmitosis.second_level import DebugFiles

__all__ = ["PROBE", "TwoLevel"]

NO_GUEST = "none"
#: In the guest (patch set vmitosis).
_REPL = "/sys/kernel/mm/pgtable_repl"
PROBE = "/bin/pgrepl-probe"
_PROBE_SECONDS = 600.0


class TwoLevel:
    """A machine with a guest in it, in the place of a machine of `numalab.run`.

    Attributes:
        machine: the machine.
        topology: its shape; node i of a wide NUMA-visible guest lies on its node i.
        guest: the guest, while there is one.
        events: what was moved, and when (seconds since its cell got the guest).
        grouping: what NO-F found, when it was asked.
    """

    def __init__(self, machine: Machine, kernel: KernelImage, files: Mapping[str, Path]) -> None:
        self.machine = machine
        self.kernel = kernel
        self.accel = machine.accel
        self.guest: SecondLevel | None = None
        self.events: list[dict[str, Any]] = []
        self.grouping: Grouping | None = None
        self._files = files
        self._parked: tuple[str, SecondLevel, list[list[int]]] | None = None
        self._text = NO_GUEST
        self._domains = "native"
        self._begun = 0.0
        self._home: list[list[int]] = []
        self._timers: list[threading.Timer] = []
        self._looks: threading.Timer | None = None
        self._failure: Exception | None = None
        self._lock = threading.Lock()

    # What `numalab.run` asks of a machine.

    @property
    def topology(self) -> Topology:
        """Of the machine, on whose nodes guests lie."""
        return self.machine.topology

    @property
    def console(self) -> Path:
        """Log of the machine's kernel."""
        return self.machine.console

    def facts(self) -> dict[str, Any]:
        """What this machine is, for provenance."""
        return self.machine.facts()

    def start(
        self, argv: Sequence[str], *, on_mark: Callable[[Mark, Any], None] | None = None, **options: Any
    ) -> Process:
        """Start a command in the guest; `on_mark` gets this object, not the guest alone."""

        def serve(mark: Mark, _: Any) -> None:
            assert on_mark
            on_mark(mark, self)

        return self.inner.start(argv, on_mark=serve if on_mark else None, **options)

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        """Run a command in the guest; one that sets a knob of ours at a mark sets it."""
        knob = next((place for place, word in enumerate(argv) if word.startswith((VM, HOST))), None)
        if knob is not None:
            return self._late(argv, int(argv[knob - 1]), argv[knob], argv[knob + 1])
        return (self.guest or self.machine).run(argv, **options)

    def read_file(self, path: str) -> bytes:
        """Return a file of the guest, or of what its path begins with."""
        if path.startswith(HOST):
            return self.machine.read_file(path.removeprefix(HOST))
        if path.startswith(VM):
            return self._read(path).encode()
        return (self.guest or self.machine).read_file(path)

    def write_file(self, path: str, data: bytes, **options: Any) -> None:
        """Write a file of the guest, or of what its path begins with."""
        if path.startswith(HOST):
            self.machine.write_file(path.removeprefix(HOST), data)
        elif path.startswith(VM):
            self._write(path, data.decode().strip())
        else:
            (self.guest or self.machine).write_file(path, data, **options)

    def at_mark(self, name: str, action: Callable[[int], None]) -> AbstractContextManager[None]:
        """See `numalab.machine.session.Machine.at_mark`."""
        return self.inner.at_mark(name, action)

    # The guest.

    @property
    def inner(self) -> SecondLevel:
        """The guest.

        Raises:
            ExperimentError: none was booted: the policy sets no shape.
        """
        if self.guest is None:
            raise ExperimentError(
                "there is no guest in this machine", remedy=f"take a policy of vmitosis: it sets {SHAPE}"
            )
        return self.guest

    def close(self) -> None:
        """End the guest; the machine is its opener's."""
        self._stop_timers()
        if self._parked is not None:
            _end(self._parked[1])
            self._parked = None
        if self.guest is not None:
            _end(self.guest)
            self.guest = None

    def _stop_timers(self) -> bool:
        """Cancel what was to be moved; whether something was."""
        waiting = any(timer.is_alive() for timer in self._timers)
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._looks is not None:
            self._looks.cancel()
            self._looks = None
        return waiting

    def _provision(self, text: str) -> None:
        if text == NO_GUEST:
            self._leave()
            return
        parked, self._parked = self._parked, None
        if parked is not None and parked[0] == text:
            self.guest = parked[1]
            for vcpu, cpus in enumerate(parked[2]):
                self.guest.pin(vcpu, cpus)
        else:
            if parked is not None:
                _end(parked[1])
            self.guest = self._boot(text)
        self._text, self._domains = text, "native"
        self._begun = time.monotonic()
        self._note("guest", shape=text)

    def _boot(self, text: str) -> SecondLevel:
        shape = parse_shape(text)
        placed = place(shape, self.machine.topology)
        guest = SecondLevel(
            self.machine,
            self.kernel,
            placed.topology,
            cpus=[[cpu] for cpu in placed.cpus],
            cells=placed.cells,
            huge_pages=shape.huge,
            extra_files=self._files,
            cpu=CPU_UNNAMED if shape.told else CPU,
        )
        guest.boot()
        self._home = [list(cpus) for cpus in guest.cpus]
        return guest

    def _leave(self) -> None:
        """The cell is done: keep the guest for the next one, where what it did to its memory does not matter.

        Where pages lie by first touch it does: such a guest ends with its cell.
        """
        too_early = self._stop_timers()
        with self._lock:
            guest, self.guest = self.guest, None
        if guest is None:
            return
        if said := guest.complaints:
            self._note("complaints", lines=said)
        if guest.cells and self._failure is None:
            self._parked = (self._text, guest, self._home)
        else:
            _end(guest)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise ExperimentError(f"the program or its machine could not be moved: {failure}")
        if too_early:
            raise ExperimentError(
                "the program ended before it was moved", remedy="give it more work, or move it earlier (after)"
            )

    def _directory(self) -> str:
        """Where KVM shows this guest."""
        return DebugFiles(self.machine, self.inner.qemu_pid).directory

    def _vcpu_files(self) -> list[str]:
        """The file that says which node's tables it walks, for each vCPU."""
        return [f"{self._directory()}/vcpu{number}/mmu_nid" for number in range(len(self.inner.threads))]

    def _read(self, path: str) -> str:
        if path == SHAPE:
            return self._text if self.guest else NO_GUEST
        if path == DOMAINS:
            self.inner.read_file(f"{_REPL}/provider")  # a kernel that has none says so
            return self._domains
        if path == POOL:
            pool = self.inner.read_file(f"{_REPL}/pool").decode()
            return pool.splitlines()[0].removeprefix("pages ")
        if path == SECOND:
            return self.machine.read_file(f"{self._directory()}/numa_mmu").decode().strip()
        if path == NID:
            said = {self.machine.read_file(each).decode().strip() for each in self._vcpu_files()}
            return " ".join(sorted({_nid(each) for each in said}))
        raise GuestFileError(path, errno.ENOENT)

    def _write(self, path: str, value: str) -> None:
        if path == SHAPE:
            self._provision(value)
        elif path == DOMAINS:
            self._set_domains(value)
        elif path == POOL:
            self.inner.write_file(f"{_REPL}/pool", value.encode() + b"\n")
        elif path == SECOND:
            self.machine.write_file(f"{self._directory()}/numa_mmu", value.encode() + b"\n")
        elif path == REPROBE:
            self._reprobe_every(float(value))
        elif path == NID:
            for each in self._vcpu_files():
                self.machine.write_file(each, value.encode() + b"\n")
        else:
            raise GuestFileError(path, errno.ENOENT)

    # NO-P and NO-F.

    def _set_domains(self, value: str) -> None:
        if value in ("native", "pv"):
            self.inner.write_file(f"{_REPL}/provider", value.encode() + b"\n")
        else:
            lists = self._probed().lists() if value == "probe" else self._told()
            self.inner.write_file(f"{_REPL}/provider", b"fv\n")
            self.inner.write_file(f"{_REPL}/domains", lists.encode() + b"\n")
        self._domains = value

    def _probed(self) -> Grouping:
        """Measure latencies in the guest and group its vCPUs.

        Raises:
            MissingError: the probe is not in the guest.
        """
        if PROBE not in self._files:
            raise MissingError(
                "NO-F measures latencies in the guest by tools/mm/pgrepl-probe of the patched kernel's source",
                remedy="`numalab selftest build` makes it (tools/pgrepl-probe): python -m vmitosis run --probe FILE",
            )
        latencies, cpus = self._latencies()
        self.grouping = discover(latencies).renumbered(cpus)
        self._note("grouped", **self.grouping.to_json())
        return self.grouping

    def _latencies(self, *words: str) -> tuple[NDArray[np.float64], tuple[int, ...]]:
        done = self.inner.run([PROBE, *words], timeout=_PROBE_SECONDS, check=True)
        return parse(done.stdout.decode(), "what pgrepl-probe printed")

    def _some(self, pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], float]:
        """Latencies of some pairs, the lower of both directions."""
        found = {}
        for one, other in pairs:
            latencies, _ = self._latencies("-c", f"{one},{other}", "-s", "3")
            found[one, other] = float(np.fmin(latencies[0, 1], latencies[1, 0]))
        return found

    def _reprobe(self, turn: int = 0) -> None:
        """Look whether the groups still hold; if not, find and write new ones under the old numbers.

        Runs while the program works, with `_lock` held.
        """
        old = self.grouping
        if self._domains != "probe" or old is None:
            return
        # A machine that was one group may be several now: of that no few pairs tell.
        if len(old.groups) > 1 and not moved(old, self._some, turn):
            self._note("groups hold")
            return
        self.grouping = renumbered(self._probed(), old)
        if self.grouping.groups != old.groups:
            self.inner.write_file(f"{_REPL}/domains", self.grouping.lists().encode() + b"\n")

    def _reprobe_every(self, seconds: float, turn: int = 0) -> None:
        if not seconds:
            return

        def look() -> None:
            try:
                with self._lock:
                    if self.guest is None:
                        return
                    self._reprobe(turn)
                self._reprobe_every(seconds, turn + 1)
            except Exception as error:
                self._failure = error

        timer = threading.Timer(seconds, look)
        timer.daemon = True
        self._looks = timer
        timer.start()

    def _told(self) -> str:
        """The groups as vCPUs are pinned: what a probe would find if latencies differed."""
        by_node: dict[int, list[int]] = {}
        for vcpu, cpus in enumerate(self.inner.cpus):
            by_node.setdefault(self._node_of(cpus[0]), []).append(vcpu)
        return " ".join(number_list(vcpus) for vcpus in by_node.values())

    def _node_of(self, cpu: int) -> int:
        there = self.machine.topology
        return next(node for node in range(len(there.nodes)) if cpu in there.cpus_of(node))

    # Moving.

    def _late(self, argv: Sequence[str], pid: int, path: str, value: str) -> Completed:
        try:
            if path == MOVE:
                self._plan_move(pid, value)
            else:
                self.write_file(path, value.encode() + b"\n")
        except GuestFileError as error:
            return Completed(list(argv), 1, None, b"", f"{path}: {error.strerror}".encode())
        return Completed(list(argv), 0, None, b"", b"")

    def _plan_move(self, pid: int, value: str) -> None:
        who, node, delay, *also = value.split()
        timer = threading.Timer(float(delay), self._move, (who, int(node), pid, also == [WITH_SECOND]))
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def _move(self, who: str, node: int, pid: int, with_second: bool) -> None:
        """Runs in a timer's thread, while the program works."""
        try:
            with self._lock:
                if self.guest is None:
                    return
                if who == "vm":
                    self.guest.move(node)
                    self._reprobe()
                else:
                    cpus = number_list(self.guest.topology.cpus_of(node))
                    self.guest.run(["taskset", "-apc", cpus, str(pid)], check=True)
                if with_second:
                    # The vCPUs of the old node stay there, and have something to do now and then: as long as they do,
                    # it is a right place for tables.
                    self._write(NID, str(node))
                self._note("moved", who=who, node=node)
        except Exception as error:
            self._failure = error

    def _note(self, what: str, **values: Any) -> None:
        self.events.append({"what": what, "seconds": time.monotonic() - self._begun, **values})


def _end(guest: SecondLevel) -> None:
    from vmitosis.snapshot2d import detach

    detach(guest)
    guest.close()


def _nid(said: str) -> str:
    """A vCPU's setting out of "auto 2" or "fixed 1": -1, or the node."""
    found = re.fullmatch(r"(auto|fixed)\s+(-?\d+)", said)
    if found is None:
        return said
    return "-1" if found[1] == "auto" else found[2]
