"""Where numalab keeps things on the host (XDG base directories), and atomic writes."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

#: The checkout (or installation) this package was imported from.
ROOT = Path(__file__).resolve().parent.parent
PATCHES = ROOT / "linux-patches"


def cache_dir(*parts: str) -> Path:
    """Return (and create) a directory under `$XDG_CACHE_HOME/numalab`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(base, "numalab", *parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def runtime_dir(*parts: str) -> Path:
    """Return (and create, mode 0700) the directory for sockets and locks of running machines.

    Kept short, because the path of a Unix socket has at most 107 bytes.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    top = Path(base, "numalab") if base else Path(tempfile.gettempdir(), f"numalab-{os.getuid()}")
    top.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = top.joinpath(*parts)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one whole."""
    raw = data.encode() if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(raw)
            out.flush()
            os.fsync(out.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=1, sort_keys=False) + "\n")
