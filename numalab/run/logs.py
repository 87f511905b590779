"""Logs of a cell: what its program wrote, and its part of the machine's console."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from numalab.machine import console
from numalab.machine.outcome import Completed

#: Of a longer output the first and the last half of this are kept.
LOG_BYTES = 8 << 20


def keep_output(directory: Path, completed: Completed) -> None:
    """Write stdout.txt and stderr.txt."""
    (directory / "stdout.txt").write_bytes(clipped(completed.stdout))
    (directory / "stderr.txt").write_bytes(clipped(completed.stderr))


def keep_instances(directory: Path, completed: Mapping[int, Completed]) -> None:
    """Write stdout-N.txt and stderr-N.txt of each instance."""
    for number, done in completed.items():
        (directory / f"stdout-{number}.txt").write_bytes(clipped(done.stdout))
        (directory / f"stderr-{number}.txt").write_bytes(clipped(done.stderr))


def keep_console(directory: Path, path: Path, begin: int) -> tuple[int, list[str]]:
    """Write console.log: what the console at `path` holds from byte `begin` on.

    Returns:
        the number of its bytes, and the lines in which the guest's kernel complained.
    """
    with path.open("rb") as file:
        file.seek(begin)
        said = file.read()
    kept = directory / "console.log"
    kept.write_bytes(clipped(said))
    return len(said), console.complaints(console.read(kept))


def clipped(data: bytes, limit: int = LOG_BYTES) -> bytes:
    """Return `data`, of a long one the first and the last `limit`/2 bytes with a line between that says so."""
    if len(data) <= limit:
        return data
    half = limit // 2
    return data[:half] + f"\n[numalab: {len(data) - 2 * half} bytes left out]\n".encode() + data[-half:]
