"""Debian's prebuilt generic 6.12 kernel, downloaded and unpacked without root: the unpatched side.

`stock/VERSION/`: bzImage · config · lib/modules/RELEASE (with modules.dep) · metadata.json.
"""

from __future__ import annotations

import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from numalab.errors import ExperimentError, MissingError
from numalab.kernel import bzimage, debian, locks, tools
from numalab.kernel.image import KernelImage
from numalab.kernel.progress import Progress
from numalab.kernel.source import scratch
from numalab.kernel.store import mark_used, read_metadata
from numalab.kernel.tree import sha256_file
from numalab.paths import cache_dir, write_json

STOCK = "stock"

#: Metapackages that depend on the newest 6.12 image: Debian 12 (security), Debian 13.
_METAS = ("linux-image-6.12-amd64", "linux-image-amd64")
_IMAGE = re.compile(r"linux-image-6\.12\.[\w.+~-]*amd64")


def load(*, use: bool = True) -> KernelImage | None:
    """Return the stock kernel of the cache (the one taken last), None when there is none yet.

    `use` marks it in use until this process ends.
    """
    memo = cache_dir(STOCK) / "current.json"
    if not memo.is_file():
        return None
    root = cache_dir(STOCK) / str(json.loads(memo.read_text())["id"])
    if not root.is_dir():
        return None
    if use:
        locks.hold(f"{STOCK}-{root.name}")
    if not (root / "metadata.json").is_file():  # pruned while we waited for the lock
        return None
    metadata = read_metadata(root)
    if use:
        mark_used(root)
    return KernelImage(
        name=STOCK,
        path=root / "bzImage",
        release=metadata["release"],
        modules=root / "lib/modules" / metadata["release"],
        build_id=metadata["build_id"],
        config=root / "config",
        provenance=metadata,
    )


def fetch(progress: Progress) -> KernelImage:
    """Return the stock kernel, from the cache or downloaded now.

    Raises:
        MissingError: apt has none here, or cannot reach the archive, or a tool is absent.
        ExperimentError: the package is damaged.
    """
    with locks.exclusive(STOCK, on_wait=progress.note):
        image = load()
        if image is not None:
            return image
        package, version = _choose()
        tools.require(tools.lacking(["dpkg-deb", "tar", "depmod"]), purpose="unpacking Debian's kernel")
        with scratch(cache_dir(STOCK)) as temporary:
            progress.step(f"downloading {package} {version}, Debian's prebuilt kernel")
            deb = debian.download(package, version, temporary)
            progress.step(f"unpacking {deb.name}")
            fresh = _unpack(deb, package, version, temporary)
            root = cache_dir(STOCK) / f"{package}_{version}"
            if root.exists():
                shutil.rmtree(root)
            fresh.rename(root)
        write_json(cache_dir(STOCK) / "current.json", {"id": root.name})
        image = load()
        assert image is not None
        return image


def _choose() -> tuple[str, str]:
    """Return (package, version) of the newest prebuilt generic 6.12 image apt has."""
    for meta in _METAS:
        for name in debian.depends(meta):
            if _IMAGE.fullmatch(name):
                return name, debian.choose(name)
    raise MissingError(
        "apt knows no prebuilt Linux 6.12 here (looked for " + " and ".join(_METAS) + ")",
        remedy="apt-get update (as root, or with sudo), then again; on another distribution give "
        "--kernel a path to a 6.12 bzImage",
    )


def _unpack(deb: Path, package: str, version: str, temporary: Path) -> Path:
    whole = temporary / "whole"
    whole.mkdir()
    debian.unpack(deb, whole)
    images = sorted(whole.glob("boot/vmlinuz-*"))
    modules = [*whole.glob("lib/modules/*"), *whole.glob("usr/lib/modules/*")]
    if not images or not modules:
        raise ExperimentError(f"{deb.name} holds no kernel image with modules")
    release = bzimage.release(images[0])
    fresh = temporary / "fresh"
    (fresh / "lib/modules").mkdir(parents=True)
    images[0].rename(fresh / "bzImage")
    modules[0].rename(fresh / "lib/modules" / release)
    for config in whole.glob("boot/config-*"):
        config.rename(fresh / "config")
    # The package does this when it is installed; without it nobody can load a module by name.
    tools.run(["depmod", "-b", fresh, release], purpose="listing the modules of Debian's kernel")
    elf = bzimage.vmlinux(fresh / "bzImage")
    metadata: dict[str, Any] = {
        "schema": 1,
        "kind": "numalab-kernel",
        "id": f"{package}_{version}",
        "name": STOCK,
        "flavour": STOCK,
        "release": release,
        "build_id": bzimage.build_id(elf) if elf else "",
        "package": package,
        "package_version": version,
        "package_sha256": sha256_file(deb),
        "bytes": {"bzImage": (fresh / "bzImage").stat().st_size},
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(fresh / "metadata.json", metadata)
    return fresh
