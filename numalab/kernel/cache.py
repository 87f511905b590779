"""The cache directory as a whole: what lies in it, how big, when last used; and removing it safely.

Everything `KIND/NAME` below the cache directory, file or directory, is an entry, whichever room made
it. Of a source tree, the build directories are entries of their own: they are the bulk, and building
again makes them again. An entry is in use while some process holds the lock `KIND-NAME`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from numalab.kernel import locks
from numalab.kernel.store import USED
from numalab.paths import cache_dir

_DAY = 86400.0
#: Directories that are no kinds of entries.
_NOT_KINDS = {"locks"}
_LEFT = "leftover"


@dataclass(frozen=True)
class CacheEntry:
    """One thing in the cache.

    Attributes:
        kind: "kernels", "stock", "trees", "builds", another room's, or "leftover" (of a killed run).
        id: its name within the kind.
        path: the directory or file.
        bytes: on disk.
        used: time of the last use, seconds since the epoch.
        lock: name of the lock that guards it.
        in_use: somebody holds that lock now.
    """

    kind: str
    id: str
    path: Path
    bytes: int
    used: float
    lock: str
    in_use: bool


def entries() -> list[CacheEntry]:
    """Return all entries, biggest first."""
    found: list[CacheEntry] = []
    for kind in sorted(path for path in cache_dir().iterdir() if path.is_dir() and path.name not in _NOT_KINDS):
        for root in sorted(kind.iterdir()):
            lock = f"{kind.name}-{root.name}"
            if root.name.startswith("."):
                found.append(_entry(_LEFT, root, f"{kind.name}/{root.name}", kind.name))
            elif kind.name == "trees" and root.is_dir():
                builds = sorted((root / "out").glob("*/"))
                for out in builds:
                    kind_of_out = _LEFT if out.name.startswith(".") else "builds"
                    found.append(_entry(kind_of_out, out, f"{root.name}/{out.name}", lock))
                found.append(_entry(kind.name, root, root.name, lock, without=builds))
            elif root.is_dir() or root.suffix != ".json":  # notes such as kernels/selected.json are no entries
                found.append(_entry(kind.name, root, root.name, lock))
    return sorted(found, key=lambda entry: -entry.bytes)


def _entry(kind: str, path: Path, name: str, lock: str, *, without: Iterable[Path] = ()) -> CacheEntry:
    size, newest = _measure(path, without)
    marker = path / USED
    used = marker.stat().st_mtime if path.is_dir() and marker.exists() else newest
    return CacheEntry(kind, name, path, size, used, lock, locks.held(lock))


def _measure(top: Path, without: Iterable[Path]) -> tuple[int, float]:
    """Return (bytes on disk, newest access or change of a file) of everything at and below `top`.

    Files with several names count once.
    """
    skip = {str(path) for path in without}
    seen: set[tuple[int, int]] = set()
    info = top.lstat()
    total, newest = info.st_blocks * 512, info.st_mtime
    pending = [str(top)] if top.is_dir() else []
    while pending:
        try:
            with os.scandir(pending.pop()) as found:
                for item in found:
                    info = item.stat(follow_symlinks=False)
                    if item.is_dir(follow_symlinks=False):
                        if item.path not in skip:
                            pending.append(item.path)
                    elif (info.st_dev, info.st_ino) not in seen:
                        seen.add((info.st_dev, info.st_ino))
                        total += info.st_blocks * 512
                        newest = max(newest, info.st_mtime, info.st_atime)
        except FileNotFoundError:  # somebody else's temporary file
            continue
    return total, newest


@dataclass(frozen=True)
class Pruned:
    """What `prune` did (or would do): entries removed, and entries spared although they were due."""

    removed: tuple[CacheEntry, ...]
    in_use: tuple[CacheEntry, ...]

    @property
    def bytes(self) -> int:
        """Bytes freed."""
        return sum(entry.bytes for entry in self.removed)


def prune(*, older_than_days: float | None, dry_run: bool = False) -> Pruned:
    """Remove entries not used for `older_than_days` days (None: all); never one in use.

    Leftovers of killed runs go in any case.
    """
    limit = None if older_than_days is None else time.time() - older_than_days * _DAY
    removed: list[CacheEntry] = []
    spared: list[CacheEntry] = []
    for entry in entries():
        if limit is not None and entry.used > limit and entry.kind != _LEFT:
            continue
        with locks.try_exclusive(entry.lock) as free:
            if not free:
                spared.append(entry)
                continue
            removed.append(entry)
            if not dry_run:
                _remove(entry.path)
    return Pruned(tuple(removed), tuple(spared))


def _remove(path: Path) -> None:
    """Remove a directory so that nobody ever sees half of it: first out of sight, then away."""
    if not path.exists():  # went with the tree it was in
        return
    if path.is_file():
        path.unlink()
        return
    doomed = path.with_name(f".tmp-doomed-{os.getpid()}-{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed)
