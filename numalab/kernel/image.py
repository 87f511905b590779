"""A kernel that can be booted, whoever built it, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class KernelImage:
    """A bootable kernel.

    Attributes:
        name: what the user called it: "stock", "patched", "debug", "patched:SETS", an id or a path.
        path: the bzImage.
        release: what `uname -r` prints in it.
        modules: its `/lib/modules/RELEASE` directory, None when it needs none.
        build_id: hex of the GNU build-id of its vmlinux, "" when unknown.
        vmlinux: the ELF file with symbols (and DWARF when configured), None when there is none.
        config: its `.config`, None when unknown.
        provenance: version, source sha256, series and config hashes, compiler, flavour, applied
            patch sets ...; plain JSON values, copied into every result.
    """

    name: str
    path: Path
    release: str
    modules: Path | None = None
    build_id: str = ""
    vmlinux: Path | None = None
    config: Path | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
