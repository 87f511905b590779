"""The cache directory as a whole: what lies in it, how big, when last used; and removing it safely.

Every directory `KIND/ID` below the cache directory is an entry, whichever room made it. Of a source
tree, the build directories are entries of their own: they are the bulk, and building again makes
them again. An entry is in use while some process holds the lock `KIND-ID`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from numalab.kernel import locks
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
        path: the directory.
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
    top = cache_dir()
    found: list[CacheEntry] = []
    for kind in sorted(path for path in top.iterdir() if path.is_dir() and path.name not in _NOT_KINDS):
        for root in sorted(path for path in kind.iterdir() if path.is_dir()):
            if root.name.startswith("."):
                found.append(_entry(_LEFT, root, f"{kind.name}/{root.name}", kind.name))
                continue
            lock = f"{kind.name}-{root.name}"
            builds = sorted((root / "out").glob("*/")) if kind.name == "trees" else []
            found += [_entry("builds", out, f"{root.name}/{out.name}", lock) for out in builds]
            found.append(_entry(kind.name, root, root.name, lock, without=builds))
    return sorted(found, key=lambda entry: -entry.bytes)


def _entry(kind: str, path: Path, name: str, lock: str, *, without: Iterable[Path] = ()) -> CacheEntry:
    with locks.try_exclusive(lock) as free:
        marker = path / ".used"
        newest = max(file.stat().st_mtime for file in (path, marker) if file.exists())
        return CacheEntry(kind, name, path, disk_usage(path, without), newest, lock, not free)


def disk_usage(top: Path, without: Iterable[Path] = ()) -> int:
    """Return the bytes on disk below `top`, files with several names counted once."""
    skip = {str(path) for path in without}
    seen: set[tuple[int, int]] = set()
    total = 0
    pending = [str(top)]
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
        except FileNotFoundError:  # somebody else's temporary file
            continue
    return total


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
    doomed = path.with_name(f".tmp-doomed-{os.getpid()}-{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed)
