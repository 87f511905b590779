"""A guest's physical memory, read in QEMU's address space.

QEMU tells over QMP where its guest's RAM is mapped; the bytes then come from /proc/PID/mem, whatever
backs the memory (memfd, file, anonymous, huge pages). drgn's own QMP target is not used: it asks QEMU
for a dump, and the event at the end of that dump crashes libvirt 9 (no dump job was started).
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from numalab.errors import ExperimentError, MissingError
from numalab.measure.pagetable import ENTRIES, PAGE_SHIFT

_RANGE = re.compile(r"^\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, ram\): ", re.MULTILINE)
_SECONDS = 30.0


class GuestMemoryError(ExperimentError):
    """Guest memory could not be read where the kernel's own data said there is something."""


class Range(NamedTuple):
    """Guest-physical addresses `start` to `end` (exclusive), mapped at `host` in QEMU."""

    start: int
    end: int
    host: int


class PhysicalMemory(Protocol):
    """A guest's physical memory, however it is reached (`GuestRam` has it)."""

    ranges: list[Range]

    def close(self) -> None:
        """Let go of it."""

    def read_host(self, host: int, size: int) -> bytes:
        """Bytes at an address on the side of `Range.host`."""

    def read(self, address: int, size: int) -> bytes:
        """Bytes at a guest-physical address."""

    def read_pages(self, frames: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Pages by frame number, as entries: uint64 [len(frames), 512]."""


class Qmp:
    """The few QMP commands needed here; a QMP socket serves one client at a time."""

    def __init__(self, path: Path) -> None:
        """Connect and leave the negotiation behind.

        Raises:
            ExperimentError: when nobody answers there.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_SECONDS)
        try:
            self._socket.connect(str(path))
            self._lines = self._socket.makefile("r")
            if "QMP" not in json.loads(self._lines.readline() or "{}"):
                raise ExperimentError(f"{path} is not the QMP socket of a running QEMU, or serves another client")
            self.execute("qmp_capabilities")
        except (OSError, ValueError) as error:
            self._socket.close()
            raise ExperimentError(f"QEMU does not answer on {path}: {error}") from error

    @property
    def peer_pid(self) -> int:
        """Process id of the QEMU that listens on the socket."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", credentials)[0]
        return pid

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one command and return its answer; events in between are skipped."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            line = self._lines.readline()
            if not line:
                raise ExperimentError("QEMU closed its QMP socket")
            answer = json.loads(line)
            if "error" in answer:
                raise ExperimentError(f"QMP {command}: {answer['error'].get('desc', answer['error'])}")
            if "return" in answer:
                return answer["return"]

    def monitor(self, line: str) -> str:
        """Run one command of the human monitor."""
        said: str = self.execute("human-monitor-command", **{"command-line": line})
        return said

    def close(self) -> None:
        """Free the socket for the next client."""
        self._lines.close()
        self._socket.close()


def parse_mtree(text: str) -> list[tuple[int, int]]:
    """(start, end) of the RAM ranges in the CPUs' address space, from `info mtree -f`."""
    for view in text.split("FlatView #"):
        if re.search(r'^\s*AS "memory"', view, re.MULTILINE):
            return [(int(first, 16), int(last, 16) + 1) for first, last in _RANGE.findall(view)]
    return []


def parse_gpa2hva(text: str) -> int:
    """Host address from the answer to `gpa2hva`.

    Raises:
        ExperimentError: when QEMU gave none.
    """
    found = re.search(r"is (0x[0-9a-f]+)\s*$", text.strip())
    if not found:
        raise ExperimentError(f"QEMU does not tell where guest memory is: {text.strip()}")
    return int(found[1], 16)


class GuestRam:
    """Physical memory of a running guest, for as long as its QEMU lives."""

    def __init__(self, pid: int, ranges: list[Range]) -> None:
        """Open the memory of process `pid`, in which guest memory lies at `ranges`.

        Raises:
            MissingError: when this user may not look into that process.
        """
        self.ranges = sorted(ranges)
        self._starts = np.array([each.start for each in self.ranges], np.int64)
        self._ends = np.array([each.end for each in self.ranges], np.int64)
        self._shifts = np.array([each.host - each.start for each in self.ranges], np.int64)
        try:
            self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
        except PermissionError as error:
            raise MissingError(
                f"this user may not read the memory of QEMU (process {pid})",
                remedy="be root or the user QEMU runs as, with sysctl kernel.yama.ptrace_scope=0",
            ) from error
        except OSError as error:
            raise ExperimentError(f"QEMU (process {pid}) is gone: {error}") from error

    @classmethod
    def attach(cls, qmp_socket: Path) -> GuestRam:
        """Find the memory of the guest behind a QMP socket; the socket is free again afterwards.

        Raises:
            ExperimentError: when QEMU does not answer.
            MissingError: see `GuestRam`.
        """
        qmp = Qmp(qmp_socket)
        try:
            spans = parse_mtree(qmp.monitor("info mtree -f"))
            hosts = [parse_gpa2hva(qmp.monitor(f"gpa2hva {start:#x}")) for start, _ in spans]
            ranges = [Range(*span, host) for span, host in zip(spans, hosts, strict=True)]
            return cls(qmp.peer_pid, ranges)
        finally:
            qmp.close()

    def close(self) -> None:
        """Let go of QEMU's memory."""
        os.close(self._memory)

    def read_host(self, host: int, size: int) -> bytes:
        """Bytes at an address of QEMU.

        Raises:
            GuestMemoryError: when they are not all there.
        """
        try:
            data = os.pread(self._memory, size, host)
        except OSError as error:
            raise GuestMemoryError(f"QEMU's memory at {host:#x} cannot be read: {error}") from error
        if not data:
            raise GuestMemoryError("QEMU is gone, and the guest's memory with it")
        if len(data) != size:
            raise GuestMemoryError(f"QEMU's memory at {host:#x} ends after {len(data)} of {size} bytes")
        return data

    def read(self, address: int, size: int) -> bytes:
        """Bytes at a guest-physical address, which must lie in one range.

        Raises:
            GuestMemoryError: when they do not.
        """
        for each in self.ranges:
            if each.start <= address and address + size <= each.end:
                return self.read_host(address - each.start + each.host, size)
        raise GuestMemoryError(f"the guest has no {size} bytes of memory at physical address {address:#x}")

    def read_pages(self, frames: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The pages with these frame numbers, as entries: uint64 [len(frames), 512].

        Raises:
            GuestMemoryError: when one of them is not in guest memory.
        """
        if not len(frames):
            return np.empty((0, ENTRIES), np.uint64)
        address = frames << PAGE_SHIFT
        which = np.searchsorted(self._starts, address, side="right") - 1
        lost = (which < 0) | (address + (1 << PAGE_SHIFT) > self._ends[which])
        if lost.any():
            raise GuestMemoryError(f"the guest has no memory at physical address {int(address[lost][0]):#x}")
        host = address + self._shifts[which]
        # Neighbours are read with one call.
        firsts = np.concatenate(([0], np.flatnonzero(np.diff(host) != 1 << PAGE_SHIFT) + 1))
        sizes = np.diff(np.concatenate((firsts, [len(host)]))) << PAGE_SHIFT
        read = self.read_host
        whole = b"".join([read(*run) for run in zip(host[firsts].tolist(), sizes.tolist(), strict=True)])
        return np.frombuffer(whole, "<u8").reshape(-1, ENTRIES)
