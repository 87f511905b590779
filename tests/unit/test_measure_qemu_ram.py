"""Guest memory through QEMU: the QMP conversation, the maps, and reading, with this process as QEMU."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from numalab.errors import ExperimentError, MissingError
from numalab.measure import guestmem
from numalab.measure.qemu_ram import GuestMemoryError, GuestRam, Qmp, Range, parse_gpa2hva, parse_mtree

MTREE = (Path(__file__).parent.parent / "fixtures" / "qemu" / "mtree.txt").read_text()
PAGES = 16
#: Guest-physical layout: two nodes of four pages at 0, eight pages behind a hole; in one buffer, out of order.
HIGH = 0x1_0000_0000


@pytest.fixture(scope="module")
def buffer() -> np.ndarray:
    whole = np.zeros((PAGES + 1) * 512, np.uint64)
    start = -(whole.ctypes.data // 8) % 512
    pages = whole[start : start + PAGES * 512].reshape(PAGES, 512)
    pages[:] = np.arange(PAGES, dtype=np.uint64)[:, None] * 1000 + np.arange(512, dtype=np.uint64)
    return pages


def ranges(buffer: np.ndarray) -> list[Range]:
    host = buffer.ctypes.data
    return [
        Range(HIGH, HIGH + 8 * 4096, host),
        Range(0, 4 * 4096, host + 12 * 4096),
        Range(4 * 4096, 8 * 4096, host + 8 * 4096),
    ]


@pytest.fixture
def ram(buffer: np.ndarray) -> Iterator[GuestRam]:
    made = GuestRam(os.getpid(), ranges(buffer))
    yield made
    made.close()


def test_pages_in_any_order(ram: GuestRam) -> None:
    frames = np.array([0, 1, 2, 3, 4, 7, HIGH >> 12, (HIGH >> 12) + 1, 5, 5, 3], np.int64)
    found = ram.read_pages(frames)
    assert found.shape == (11, 512)
    assert (found[:, 0] // 1000).tolist() == [12, 13, 14, 15, 8, 11, 0, 1, 9, 9, 15]
    assert (found - found[:, :1] == np.arange(512, dtype=np.uint64)).all()
    assert ram.read_pages(np.empty(0, np.int64)).shape == (0, 512)


def test_bytes(ram: GuestRam) -> None:
    assert struct.unpack("<Q", ram.read(HIGH + 4096 + 8, 8)) == (1001,)
    assert len(ram.read(0, 4 * 4096)) == 4 * 4096


@pytest.mark.parametrize("frame", [8, (HIGH >> 12) - 1, (HIGH >> 12) + 8, 1 << 39])
def test_pages_outside_are_named(ram: GuestRam, frame: int) -> None:
    with pytest.raises(GuestMemoryError, match=f"{frame << 12:#x}"):
        ram.read_pages(np.array([0, frame], np.int64))
    with pytest.raises(GuestMemoryError, match=f"{frame << 12:#x}"):
        ram.read(frame << 12, 8)


def test_bytes_across_a_border_are_refused(ram: GuestRam) -> None:
    for border in (4, 8):
        with pytest.raises(GuestMemoryError):
            ram.read(border * 4096 - 4, 8)


def test_memory_that_went_away(buffer: np.ndarray) -> None:
    made = GuestRam(os.getpid(), [Range(0, 4096, 0x1000)])  # nothing is ever mapped there
    with pytest.raises(GuestMemoryError, match="cannot be read"):
        made.read(0, 8)
    made.close()


def test_no_such_process() -> None:
    with pytest.raises(ExperimentError, match="is gone"):
        GuestRam(2**22 + 1, [])


def test_a_process_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MissingError) as caught:
        GuestRam(1, [])
    assert "ptrace_scope" in caught.value.remedy


def test_ram_ranges_of_a_real_machine() -> None:
    found = parse_mtree(MTREE)
    assert (0, 0xA0000) in found
    assert (0x1_0000_0000, 0x1_4000_0000) in found  # node 2 begins above the PCI hole
    assert all(start < end for start, end in found)
    assert parse_mtree('FlatView #0\n AS "I/O", root: io\n') == []


def test_host_addresses() -> None:
    assert parse_gpa2hva("Host virtual address for 0x100000 (m0) is 0x7f5ad80ff000\r\n") == 0x7F5AD80FF000
    with pytest.raises(ExperimentError, match="No memory is mapped"):
        parse_gpa2hva("No memory is mapped at address 0xf00000000000\r\n")


class FakeQemu:
    """Answers QMP on a socket as QEMU does, for as long as the test lasts."""

    def __init__(self, path: Path, buffer: np.ndarray) -> None:
        self.commands: list[str] = []
        self._ranges = sorted(ranges(buffer))
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(1)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:  # closed: the test is over
                return
            with contextlib.suppress(BrokenPipeError), client, client.makefile("rw") as stream:
                stream.write('{"QMP": {"version": {}, "capabilities": []}}\n')
                stream.flush()
                for line in stream:
                    stream.write('{"event": "STOP", "timestamp": {}}\n')
                    stream.write(json.dumps(self._answer(json.loads(line))) + "\n")
                    stream.flush()

    def _answer(self, asked: dict[str, Any]) -> dict[str, object]:
        if asked["execute"] != "human-monitor-command":
            return {"return": {}} if asked["execute"] == "qmp_capabilities" else {"error": {"desc": "no such command"}}
        line = asked["arguments"]["command-line"]
        self.commands.append(line)
        if line == "info mtree -f":
            text = 'FlatView #0\n AS "memory", root: system\n' + "".join(
                f"  {start:016x}-{end - 1:016x} (prio 0, ram): m0 @{start:016x}\n" for start, end, _ in self._ranges
            )
            return {"return": text.replace("\n", "\r\n")}
        address = int(line.split()[1], 16)
        host = next(host for start, _, host in self._ranges if start == address)
        return {"return": f"Host virtual address for {address:#x} (m0) is {host:#x}\r\n"}

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() alone does not
        self._thread.join(timeout=10)
        self._server.close()
        assert not self._thread.is_alive()


@pytest.fixture
def qemu(tmp_path: Path, buffer: np.ndarray) -> Iterator[tuple[Path, FakeQemu]]:
    server = FakeQemu(tmp_path / "qmp", buffer)
    yield tmp_path / "qmp", server
    server.close()


def test_attach_finds_all_memory_and_frees_the_socket(qemu: tuple[Path, FakeQemu]) -> None:
    path, server = qemu
    for _ in range(2):  # a second client is only served when the first has left
        made = GuestRam.attach(path)
        assert made.read_pages(np.array([0, HIGH >> 12], np.int64))[:, 0].tolist() == [12000, 0]
        made.close()
    assert server.commands[:2] == ["info mtree -f", "gpa2hva 0x0"]


def test_qmp_errors_are_errors(qemu: tuple[Path, FakeQemu]) -> None:
    client = Qmp(qemu[0])
    with pytest.raises(ExperimentError, match="no such command"):
        client.execute("dump-guest-memory")
    client.close()


def test_nobody_at_the_socket(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="does not answer"):
        Qmp(tmp_path / "absent")


def note(text: bytes, name: bytes = b"VMCOREINFO\0") -> bytes:
    padded = name + bytes(-len(name) % 4)
    return struct.pack("<III", len(name), len(text), 0) + padded + text + bytes(40)


def test_vmcoreinfo_note() -> None:
    assert guestmem.read_note(note(b"OSRELEASE=6.12\n")) == b"OSRELEASE=6.12\n"
    for broken in (b"", bytes(100), note(b"x", b"OTHER\0"), note(b"y" * 400)[:100]):
        with pytest.raises(GuestMemoryError, match="vmcoreinfo"):
            guestmem.read_note(broken)
