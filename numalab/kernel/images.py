"""Kernels by name: what `--kernel` and experiment files say becomes an image that can be booted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from numalab.errors import MissingError, UserError, nearest
from numalab.kernel import bzimage, source, stock, store
from numalab.kernel.build import build as build_kernel
from numalab.kernel.image import KernelImage
from numalab.kernel.plan import FLAVOURS, Plan, compiler, plan_named
from numalab.kernel.progress import Progress
from numalab.kernel.series import NO_SETS

NAMES = (stock.STOCK, *FLAVOURS)


def resolve(name: str, *, build: bool = False, progress: Progress | None = None) -> KernelImage:
    """Return the kernel called `name`; a cached one in a few hundredths of a second.

    Args:
        name: "stock"; "patched", "debug" or "races", optionally of some patch sets only ("patched:common",
            "patched:none"); the id of a cached kernel (or at least 6 digits of it); or a path to a
            bzImage.
        build: build the kernel when the cache lacks it (minutes), instead of saying so.
        progress: is told about downloads and builds.

    Raises:
        UserError: nothing has that name, or the file is no bzImage.
        MissingError: it is not built; says the command. Or stock cannot be downloaded.
    """
    progress = progress or Progress()
    if name == stock.STOCK:
        return stock.load() or stock.fetch(progress)
    plan = plan_named(name)
    if plan is not None:
        image = _cached(plan)
        if image is None and build:
            known = store.selected()
            request = known.origin if known and known.kind != source.DEBIAN else None
            sets = (plan.series.sets or [NO_SETS]) if plan.series.label else None
            image = build_kernel(plan.flavour, sets=sets, request=request, progress=progress)
        if image is None:
            raise _not_built(plan)
        return image
    path = Path(name).expanduser()
    if path.is_file():
        return _file(name, path.resolve())
    if re.fullmatch(r"[0-9a-f]{6,16}", name):
        ids = [str(entry["id"]) for entry in store.entries() if str(entry["id"]).startswith(name)]
        image = store.load(ids[0], name) if len(ids) == 1 else None
        if image is not None:
            return image
    if "/" in name:
        raise UserError(f"there is no kernel image {name}")
    words = [*NAMES, *(str(entry["id"]) for entry in store.entries())]
    raise UserError(
        f"no kernel is called {name!r}{nearest(name.partition(':')[0], words)}",
        remedy=f"{', '.join(NAMES)}, patched:SETS, an id of `numalab kernel list`, or a path to a bzImage",
    )


def available() -> list[dict[str, Any]]:
    """Return a row per kernel that can be named: name, id, release, built, sets, bytes, path, state.

    `state` is "ready", "not built", "not downloaded", or "other inputs": a cached kernel that is no
    longer what its name stands for, because the source, the series, the configuration or the
    compiler is another now; its id still names it.
    """
    image = stock.load(use=False)
    rows = [_row(stock.STOCK, image, "ready" if image else "not downloaded")]
    for flavour in FLAVOURS:
        plan = plan_named(flavour)
        image = _cached(plan, use=False) if plan else None
        rows.append(_row(flavour, image, "ready" if image else "not built"))
    shown = {row["id"] for row in rows}
    for entry in store.entries():
        if entry["id"] not in shown:
            current = _current_id(str(entry["name"]))
            image = store.load(entry["id"], entry["name"], use=False)
            rows.append(_row(entry["name"], image, "ready" if current == entry["id"] else "other inputs"))
    return rows


def _current_id(name: str) -> str | None:
    """Return the id of the cached kernel that `name` stands for now, None when there is none."""
    try:
        plan = plan_named(name)
    except UserError:  # a patch set that is gone
        return None
    image = _cached(plan, use=False) if plan else None
    return str(image.provenance["id"]) if image else None


def _row(name: str, image: KernelImage | None, state: str) -> dict[str, Any]:
    facts = image.provenance if image else {}
    return {
        "name": name,
        "state": state,
        "id": facts.get("id"),
        "release": image.release if image else None,
        "sets": facts.get("series", {}).get("sets", []),
        "built": facts.get("built"),
        "bytes": sum(facts["bytes"].values()) if "bytes" in facts else None,
        "path": str(image.path) if image else None,
    }


def _cached(plan: Plan, *, use: bool = True) -> KernelImage | None:
    known = store.selected() or source.remembered(source.read_base())
    if known is None:
        return None
    gcc = compiler()
    if gcc:
        return store.load(plan.key(known.sha256, gcc), plan.name, use=use)
    # Without a compiler here: any compiler's build of the same inputs is the kernel meant.
    for entry in store.entries():
        if entry["id"] == plan.key(known.sha256, entry["compiler"]):
            return store.load(entry["id"], plan.name, use=use)
    return None


def _not_built(plan: Plan) -> MissingError:
    before = [entry for entry in store.entries() if entry["name"] == plan.name]
    why = ""
    if before:
        why = (
            f" from today's source, series, configuration and compiler (an older build of it is there: "
            f"{before[0]['id']}, which is a name of its own)"
        )
    return MissingError(f"the kernel {plan.name!r} is not built{why}", remedy=plan.build_command)


def _file(name: str, path: Path) -> KernelImage:
    release = bzimage.release(path)
    places = (path.parent / "lib/modules" / release, path.parent.parent / "lib/modules" / release)
    modules = next((place for place in (*places, Path("/lib/modules") / release) if place.is_dir()), None)
    unpacked = path.parent / "vmlinux"
    return KernelImage(
        name=name,
        path=path,
        release=release,
        modules=modules,
        build_id=bzimage.build_id(unpacked) if unpacked.is_file() else "",
        vmlinux=unpacked if unpacked.is_file() else None,
        provenance={"kind": "numalab-kernel", "flavour": "file", "path": str(path), "release": release},
    )
