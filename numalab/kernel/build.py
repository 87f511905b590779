"""Building a patched kernel: one call from nothing to a cached image, interruptible at any point."""

from __future__ import annotations

import errno
import json
import platform
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from numalab.errors import ExperimentError, MissingError
from numalab.kernel import bzimage, config, directory, locks, make, preflight, source, store
from numalab.kernel.image import KernelImage
from numalab.kernel.patches import Overlay, apply_series
from numalab.kernel.plan import DEBUG, PATCHED, Plan, compiler, make_plan
from numalab.kernel.progress import Progress, clock
from numalab.kernel.tree import Source, Tree
from numalab.paths import cache_dir, write_atomic, write_json

#: Steps of make in a whole build and objects it leaves, until they have been counted on this machine.
_WHOLE = {PATCHED: (2350, 1750), DEBUG: (2500, 1900)}


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
        flavour: "patched" or "debug".
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
    with _full_disk_is_missing():
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
        return _dotconfig(tree, plan, progress)


def patch(tree: Tree, plan: Plan, progress: Progress) -> Overlay:
    """Make the kept tree the source with the series of `plan` applied; the caller holds its lock."""
    count = len(plan.series.patches)
    progress.step(f"applying {count} patch{'es' * (count != 1)} to {tree.source}")
    with tempfile.TemporaryDirectory(prefix="numalab-patch-") as temporary:
        overlay = apply_series(plan.series.patches, tree.original, Path(temporary), onto=str(tree.source))
        for offset in overlay.offsets:
            progress.note(str(offset))
        tree.apply(plan.series.label, overlay)
    return overlay


def _environment(tree: Tree) -> tuple[dict[str, str], bool]:
    masquerade = make.masquerade(tree.root / "ccache-bin")
    return make.environment(masquerade), masquerade is not None


def _dotconfig(tree: Tree, plan: Plan, progress: Progress) -> str:
    progress.step("configuring")
    env, _ = _environment(tree)
    out = tree.root / "out" / "kconfig"
    out.mkdir(parents=True, exist_ok=True)
    log = out / "kconfig.log"
    log.unlink(missing_ok=True)
    return config.configure(tree.src, out, plan.settings, log=log, env=env)


def _build(tree: Tree, plan: Plan, key: str, jobs: int, lock: int, progress: Progress) -> None:
    overlay = patch(tree, plan, progress)
    dotconfig = _dotconfig(tree, plan, progress)
    out = tree.out(plan.flavour, plan.series.label)
    out.mkdir(parents=True, exist_ok=True)
    there = sum(file.stat().st_blocks * 512 for file in out.rglob("*") if file.is_file())
    needed = max(preflight.BUILD_BYTES[plan.flavour] - there, 0)
    preflight.require_space(out, needed, purpose=f"building the {plan.name} kernel")
    kept = out / ".config"
    if not kept.is_file() or kept.read_text() != dotconfig:
        write_atomic(kept, dotconfig)

    env, ccache = _environment(tree)
    log = out / "build.log"
    log.unlink(missing_ok=True)
    modules = "CONFIG_MODULES=y\n" in dotconfig
    steps = _Steps(out, plan.flavour, progress)
    progress.step(f"building {plan.name} with {jobs} jobs{' and ccache' * ccache}, log in {log}")
    began = time.monotonic()
    count = make.run(
        make.command(tree.src, out, ["bzImage", *(["modules"] if modules else [])], jobs=jobs),
        what=f"building the {plan.name} kernel",
        log=log,
        env=env,
        on_step=steps.advance,
        keep=[lock],
        strip=str(tree.src),
    )
    seconds = time.monotonic() - began
    steps.finished(count)
    release = make.ask(tree.src, out, "kernelrelease", env)
    vmlinux = out / "vmlinux"
    metadata: dict[str, Any] = {
        "schema": store.SCHEMA,
        "kind": "numalab-kernel",
        "id": key,
        "name": plan.name,
        "flavour": plan.flavour,
        "release": release,
        "build_id": bzimage.build_id(vmlinux),
        "source": tree.source.to_json(),
        "series": {"sha256": plan.series.digest(), "sets": list(plan.series.sets), **overlay.to_json()},
        "config_sha256": plan.config_digest,
        "compiler": compiler(),
        "ccache": ccache,
        "jobs": jobs,
        "host": platform.platform(),
        "seconds": round(seconds, 1),
        "steps": count,
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
        "reproduce": plan.build_command + _source_option(tree.source),
    }
    files = {
        "bzImage": out / "arch/x86/boot/bzImage",
        "vmlinux": vmlinux,
        "System.map": out / "System.map",
        "config": kept,
        "build.log": log,
    }
    progress.step(f"built {release} in {clock(seconds)}")
    with tempfile.TemporaryDirectory(prefix=".modules-", dir=out) as installed:
        if modules:
            _install_modules(tree, out, Path(installed), log, env)
        store.publish(key, files, Path(installed, "lib/modules") if modules else None, metadata)
    store.mark_used(out)
    store.mark_used(tree.root)


def _source_option(origin: Source) -> str:
    return "" if origin.kind == source.DEBIAN else f" --source {shlex.quote(origin.origin)}"


def _install_modules(tree: Tree, out: Path, into: Path, log: Path, env: dict[str, str]) -> None:
    words = [f"INSTALL_MOD_PATH={into}", "INSTALL_MOD_STRIP=1"]
    make.run(
        make.command(tree.src, out, ["modules_install"], more=words),
        what="installing the modules",
        log=log,
        env=env,
        strip=str(tree.src),
    )
    for link in (*into.glob("lib/modules/*/build"), *into.glob("lib/modules/*/source")):
        link.unlink()


class _Steps:
    """Turns make's steps into progress: of how many, learned from the last whole build."""

    def __init__(self, out: Path, flavour: str, progress: Progress) -> None:
        self._out = out
        self._file = out.parent / f"steps-{flavour}.json"
        self._progress = progress
        self._whole, whole_objects = _WHOLE[flavour]
        if self._file.is_file():
            known = json.loads(self._file.read_text())
            self._whole, whole_objects = known["steps"], known["objects"]
        objects = self._objects()
        #: After a finished build only what changed is made, and nobody knows how much that is.
        self._incremental = (out / "vmlinux").is_file()
        #: An interrupted build goes on where it was.
        self._before = 0 if self._incremental else min(self._whole * objects // whole_objects, self._whole)
        self._fresh = objects == 0

    def advance(self, count: int, text: str) -> None:
        """Another step was made."""
        if self._incremental:
            self._progress.advance(count, None, text)
        else:
            done = self._before + count
            self._progress.advance(done, max(self._whole, done), text)

    def finished(self, count: int) -> None:
        """The build is complete: remember its size if it was a whole one."""
        if self._fresh:
            write_json(self._file, {"steps": count, "objects": max(self._objects(), 1)})

    def _objects(self) -> int:
        return sum(1 for _ in self._out.rglob("*.o"))


@contextmanager
def _full_disk_is_missing() -> Iterator[None]:
    try:
        yield
    except (OSError, shutil.Error) as error:
        if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MissingError(
            f"the disk of {cache_dir()} is full: {error}",
            remedy="`numalab cache prune`, or set XDG_CACHE_HOME to a bigger disk; the build resumes",
        ) from None
