"""Locks between numalab processes that share one cache (flock: the system frees them with the process)."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from numalab.paths import cache_dir

#: Shared locks this process keeps until it ends, by path of the lock file.
_held: dict[Path, int] = {}


def _open(name: str) -> tuple[Path, int]:
    path = cache_dir("locks") / f"{name}.lock"
    return path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


@contextlib.contextmanager
def exclusive(name: str, *, on_wait: Callable[[str], None] | None = None) -> Iterator[int]:
    """Hold lock `name` alone for the block; waits for whoever has it and tells `on_wait` so.

    Yields the descriptor: a child process that inherits it keeps the lock until it, too, has ended,
    so that a build outliving a killed numalab is never joined by a second one.
    """
    _, handle = _open(name)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "?"
            if on_wait:
                on_wait(f"waiting for another numalab (process {holder}) to finish with {name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def try_exclusive(name: str) -> Iterator[bool]:
    """Like `exclusive`, but never waits: yields False when somebody, this process included, holds it."""
    _, handle = _open(name)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def held(name: str) -> bool:
    """Return whether somebody, this process included, holds lock `name` now, shared or alone."""
    if not (cache_dir("locks") / f"{name}.lock").exists():
        return False
    with try_exclusive(name) as free:
        return not free


def hold(name: str) -> None:
    """Share lock `name` until this process ends: what it protects is in use and must not be pruned."""
    path, handle = _open(name)
    if path in _held:
        os.close(handle)
        return
    fcntl.flock(handle, fcntl.LOCK_SH)
    _held[path] = handle


def release_all() -> None:
    """Give back every lock taken with `hold` (for processes that live on, such as test runs)."""
    while _held:
        os.close(_held.popitem()[1])
