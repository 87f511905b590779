"""The kernel this host runs, as one that experiments can name: "running"."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from numalab.kernel import store
from numalab.kernel.image import KernelImage

RUNNING = "running"
_NOTES = Path("/sys/kernel/notes")
_VERSION = Path("/proc/version")
#: NT_GNU_BUILD_ID of elf.h.
_BUILD_ID = 3


def running(notes: Path = _NOTES) -> KernelImage:
    """Return the running kernel; what is known of it when it is one that was built here.

    Its `path` is no image but a file whose content no other kernel has: the ELF notes with the build-id.
    """
    build_id = build_id_in(notes.read_bytes()) if notes.exists() else ""
    release = os.uname().release
    return KernelImage(
        RUNNING, notes if build_id else _VERSION, release, build_id=build_id, provenance=_known(build_id)
    )


def _known(build_id: str) -> dict[str, Any]:
    for entry in store.entries():
        if build_id and entry["build_id"] == build_id:
            return entry
    return {"kind": "numalab-kernel", "flavour": RUNNING, "version": _VERSION.read_text().strip()}


def build_id_in(notes: bytes) -> str:
    """Return the hex build-id among ELF notes, "" when there is none."""
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + name_size]
        start = at + 12 + (name_size + 3) // 4 * 4
        if kind == _BUILD_ID and name == b"GNU\0":
            return notes[start : start + size].hex()
        at = start + (size + 3) // 4 * 4
    return ""
