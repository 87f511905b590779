"""The cache of kernels: one directory per kernel, named by the hash of all its inputs.

`kernels/ID/`: bzImage · vmlinux · System.map · config · build.log · metadata.json, and lib/modules
when it has modules. An entry appears whole (rename) or not at all; `.used` is touched by each use.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from numalab.errors import ExperimentError
from numalab.kernel import locks
from numalab.kernel.image import KernelImage
from numalab.kernel.source import scratch
from numalab.kernel.tree import Source
from numalab.paths import cache_dir, write_json

SCHEMA = 1
USED = ".used"


def lock_name(key: str) -> str:
    """Name of the lock that says entry `key` is in use."""
    return f"kernels-{key}"


def load(key: str, name: str, *, use: bool = True) -> KernelImage | None:
    """Return the kernel of entry `key` as `name`, None when the cache has none.

    `use` marks it in use until this process ends; without, another numalab may prune it meanwhile.

    Raises:
        ExperimentError: the entry was written by a newer numalab or is damaged.
    """
    root = cache_dir("kernels") / key
    if not root.is_dir():
        return None
    if use:
        locks.hold(lock_name(key))
    if not (root / "metadata.json").is_file():  # pruned while we waited for the lock
        return None
    metadata = read_metadata(root)
    if use:
        mark_used(root)
    modules = root / "lib/modules" / metadata["release"]
    return KernelImage(
        name=name,
        path=root / "bzImage",
        release=metadata["release"],
        modules=modules if modules.is_dir() else None,
        build_id=metadata["build_id"],
        vmlinux=root / "vmlinux",
        config=root / "config",
        provenance=metadata,
    )


def mark_used(root: Path) -> None:
    """Stamp a directory of the cache as used now; a cache we may only read is fine."""
    with suppress(OSError):
        (root / USED).touch()


def read_metadata(root: Path) -> dict[str, Any]:
    """Read an entry's metadata.

    Raises:
        ExperimentError: damaged, or of a newer schema.
    """
    file = root / "metadata.json"
    try:
        metadata: dict[str, Any] = json.loads(file.read_text())
        schema = metadata["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExperimentError(
            f"{file} is damaged: {error}", remedy=f"rm -r {root}   (a cache entry; build it again)"
        ) from None
    if schema > SCHEMA:
        raise ExperimentError(
            f"{file} has schema {schema}, this numalab knows {SCHEMA}", remedy="use the newer numalab that built it"
        )
    return metadata


def publish(key: str, files: Mapping[str, Path], modules: Path | None, metadata: Mapping[str, Any]) -> None:
    """Add entry `key`: copies of `files` (name → path), the tree `modules` (…/lib/modules), metadata.

    The sizes of the files are added to the metadata.
    """
    with locks.exclusive("kernels"), scratch(cache_dir("kernels")) as temporary:
        fresh = temporary / key
        fresh.mkdir()
        for name, path in files.items():
            shutil.copy2(path, fresh / name)
        if modules is not None:
            shutil.copytree(modules, fresh / "lib/modules", symlinks=True)
        sizes = {name: (fresh / name).stat().st_size for name in files}
        write_json(fresh / "metadata.json", {**metadata, "bytes": sizes})
        target = cache_dir("kernels") / key
        if target.exists():
            shutil.rmtree(target)
        fresh.rename(target)


def entries() -> list[dict[str, Any]]:
    """Return the metadata of all kernels in the cache, the newest first."""
    roots = [file.parent for file in cache_dir("kernels").glob("*/metadata.json")]
    found = [read_metadata(root) for root in roots if not root.name.startswith(".")]
    return sorted(found, key=lambda metadata: str(metadata["built"]), reverse=True)


def select(source: Source) -> None:
    """Remember `source` as the one kernels are named by from now on: that of the last build."""
    write_json(cache_dir("kernels") / "selected.json", source.to_json())


def selected() -> Source | None:
    """Return the source of the last build, None before the first."""
    file = cache_dir("kernels") / "selected.json"
    if not file.is_file():
        return None
    try:
        return Source.from_json(json.loads(file.read_text()))
    except (ValueError, TypeError):
        return None
