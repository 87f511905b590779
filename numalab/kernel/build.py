"""Building a patched kernel: one call from nothing to a cached image, interruptible at any point."""

from __future__ import annotations

import errno
import platform
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from numalab.errors import ExperimentError, MissingError
from numalab.kernel import bzimage, directory, locks, make, preflight, source, store
from numalab.kernel.compile import dotconfig_of, install_modules, make_image, patch
from numalab.kernel.image import KernelImage
from numalab.kernel.patches import Overlay, apply_series
from numalab.kernel.plan import PATCHED, Plan, compiler, make_plan
from numalab.kernel.progress import Progress
from numalab.kernel.tree import Source, Tree
from numalab.paths import cache_dir


@dataclass(frozen=True)
class Checked:
    """Outcome of `check`: the source, and what the series did to it."""

    source: Source
    overlay: Overlay


def build(
    flavour: str = PATCHED,
    *,
    sets: Sequence[str] | None = None,
    request: str | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> KernelImage:
    """Return the kernel of a flavour, from the cache or built now.

    Args:
        flavour: "patched", "debug" or "races".
        sets: patch sets to apply, None for all of the series, ["none"] for none.
        request: the source, as `source.locate` takes it; remembered as the selected one.
        jobs: of make; default one more than there are CPUs.
        progress: is told what happens.

    Raises:
        MissingError: a program, a header, disk space or the source is absent; said before the build.
        UserError: a wrong set, source or fragment.
        ExperimentError: a patch does not apply, a value did not survive, the compiler found an error.
    """
    progress = progress or Progress()
    plan = make_plan(flavour, sets)
    base = source.read_base()
    if request in (None, source.DEBIAN) and (known := source.remembered(base)) is not None:
        image = store.load(plan.key(known.sha256, compiler()), plan.name)
        if image is not None:
            store.select(known)
            return image
    preflight.require_tools(plan.settings)
    with full_disk_is_missing():
        if not any(cache_dir("trees").glob("*/source.json")):
            needed = preflight.SOURCE_BYTES + preflight.BUILD_BYTES[flavour]
            preflight.require_space(cache_dir(), needed, purpose="the source and a build of it")
        tree = source.locate(request, base, progress)
        with locks.exclusive(tree.lock_name, on_wait=progress.note) as lock:
            if tree.source.kind == "directory":
                tree = directory.sync(tree, progress)
            key = plan.key(tree.source.sha256, compiler())
            image = store.load(key, plan.name)
            if image is None:
                _build(tree, plan, key, jobs or make.jobs_default(), lock, progress)
                image = store.load(key, plan.name)
    if image is None:
        raise ExperimentError(f"kernel {key} was built, but another numalab has just pruned it")
    store.select(tree.source)
    return image


def check(request: str | None, *, sets: Sequence[str] | None = None, progress: Progress | None = None) -> Checked:
    """Apply the series to a source, in a scratch directory; nothing is built and nothing kept.

    Raises:
        As `build`; an ExperimentError names the patch, file and hunk that do not apply.
    """
    progress = progress or Progress()
    plan = make_plan(PATCHED, sets)
    tree = source.locate(request, source.read_base(), progress)
    with tempfile.TemporaryDirectory(prefix="numalab-check-") as temporary:
        overlay = apply_series(plan.series.patches, source.pristine(tree), Path(temporary), onto=str(tree.source))
    return Checked(tree.source, overlay)


def configure(
    flavour: str,
    request: str | None,
    *,
    sets: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> str:
    """Return the whole `.config` of a flavour: patches the kept tree, runs Kconfig, checks what survived.

    Raises:
        As `build`.
    """
    progress = progress or Progress()
    plan = make_plan(flavour, sets)
    preflight.require_tools(plan.settings)
    tree = source.locate(request, source.read_base(), progress)
    with locks.exclusive(tree.lock_name, on_wait=progress.note):
        if tree.source.kind == "directory":
            tree = directory.sync(tree, progress)
        patch(tree, plan, progress)
        return dotconfig_of(tree, plan, progress)


def _build(tree: Tree, plan: Plan, key: str, jobs: int, lock: int, progress: Progress) -> None:
    made = make_image(tree, plan, jobs=jobs, lock=lock, progress=progress)
    out = made.out
    vmlinux = out / "vmlinux"
    metadata: dict[str, Any] = {
        "schema": store.SCHEMA,
        "kind": "numalab-kernel",
        "id": key,
        "name": plan.name,
        "flavour": plan.flavour,
        "release": made.release,
        "build_id": bzimage.build_id(vmlinux),
        "source": tree.source.to_json(),
        "series": {"sha256": plan.series.digest(), "sets": list(plan.series.sets), **made.overlay.to_json()},
        "config_sha256": plan.config_digest,
        "compiler": compiler(),
        "ccache": made.ccache,
        "jobs": jobs,
        "host": platform.platform(),
        "seconds": round(made.seconds, 1),
        "steps": made.steps,
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
        "reproduce": plan.build_command + _source_option(tree.source),
    }
    files = {
        "bzImage": made.image,
        "vmlinux": vmlinux,
        "System.map": out / "System.map",
        "config": out / ".config",
        "build.log": made.log,
    }
    with tempfile.TemporaryDirectory(prefix=".modules-", dir=out) as installed:
        if made.modules:
            install_modules(tree, made, Path(installed))
        store.publish(key, files, Path(installed, "lib/modules") if made.modules else None, metadata)
    store.mark_used(out)
    store.mark_used(tree.root)


def _source_option(origin: Source) -> str:
    return "" if origin.kind == source.DEBIAN else f" --source {shlex.quote(origin.origin)}"


@contextmanager
def full_disk_is_missing() -> Iterator[None]:
    """Turn a full disk inside the block into a MissingError that says what to do."""
    try:
        yield
    except (OSError, shutil.Error) as error:
        if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MissingError(
            f"the disk of {cache_dir()} is full: {error}",
            remedy="`numalab cache prune`, or set XDG_CACHE_HOME to a bigger disk; the build resumes",
        ) from None
