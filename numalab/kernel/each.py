"""Does the kernel build and boot after each patch of the series, not only after the last?

A series that is bisected, or taken patch by patch, has to. For every prefix of the series: apply, build in one kept
directory (so that only what the next patch changes is compiled), boot, and see whether the kernel complains about
itself. Each answer is kept under a hash of everything it depends on: what stands is not tried again.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from numalab.errors import ExperimentError, MachineLostError
from numalab.kernel import config, directory, locks, make, preflight, source, store
from numalab.kernel.build import full_disk_is_missing
from numalab.kernel.compile import make_image
from numalab.kernel.fragments import Setting
from numalab.kernel.image import KernelImage
from numalab.kernel.patches import DoesNotApplyError
from numalab.kernel.plan import PATCHED, Plan, compiler, make_plan, settings_of
from numalab.kernel.progress import Progress
from numalab.kernel.series import Patch, Series
from numalab.kernel.tree import Tree
from numalab.paths import cache_dir, write_json

SCHEMA = 1
#: The selection all prefixes share, and so their build directory.
_LABEL = "each"
_FILE = "result.json"
_WARNING = re.compile(r": warning: ")


class State(StrEnum):
    """What became of one prefix of the series."""

    OK = "ok"
    NOT_APPLIED = "does not apply"
    NOT_BUILT = "does not build"
    NOT_BOOTED = "does not boot"
    COMPLAINS = "boots, and the kernel complains"
    NOT_TRIED = "not tried: an earlier patch does not apply"


@dataclass(frozen=True)
class Booted:
    """What a machine on the kernel said.

    Attributes:
        release: what `uname -r` prints.
        seconds: from start to the first answer, on the host's clock.
        complaints: lines of the kernel's log in which it warns about itself.
    """

    release: str
    seconds: float
    complaints: tuple[str, ...] = ()


#: Boots an image; the directory is for the machine's logs. MachineLostError when it does not come up.
Boot = Callable[[KernelImage, Path], Booted]


@dataclass(frozen=True)
class Tried:
    """One prefix of the series, named by its last patch.

    Attributes:
        patch: the last patch of the prefix.
        number: how many patches it has.
        key: 16 hex digits of a hash of everything the answer depends on.
        state, detail: the answer, and what went wrong.
        release: of the kernel, "" when there is none.
        build_seconds: wall time of make; None when it was not run, or the kernel came from the cache.
        boot_seconds: wall time until the first answer, on an emulated machine no speed of anything.
        warnings: of the compiler, in what was compiled for this patch.
        complaints: lines of the kernel's log.
        when: ISO 8601, UTC.
        stood: the answer is an earlier one.
    """

    patch: str
    number: int
    key: str
    state: State
    detail: str = ""
    release: str = ""
    build_seconds: float | None = None
    boot_seconds: float | None = None
    warnings: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()
    when: str = ""
    stood: bool = False

    @property
    def logs(self) -> Path:
        """The directory of its logs."""
        return cache_dir("each") / self.key

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "logs": str(self.logs)}


def each(
    boot: Boot,
    *,
    sets: Sequence[str] | None = None,
    request: str | None = None,
    jobs: int | None = None,
    again: bool = False,
    progress: Progress | None = None,
) -> Iterator[Tried]:
    """Yield the answer for every patch of the series, in its order, as soon as it is known.

    Args:
        boot: boots an image.
        sets: only the patches of these sets, None for all.
        request: the source, as `source.locate` takes it.
        jobs: of make; default one more than there are CPUs.
        again: try also what was fine before; what was not is tried again in any case.
        progress: is told what happens.

    Raises:
        MissingError, UserError: as `numalab.kernel.build.build`; what a patch does wrong is an answer, no error.
    """
    progress = progress or Progress()
    whole = make_plan(PATCHED, sets)
    preflight.require_tools(whole.settings)
    with full_disk_is_missing():
        tree = source.locate(request, source.read_base(), progress)
        if tree.source.kind == "directory":
            with locks.exclusive(tree.lock_name, on_wait=progress.note):
                tree = directory.sync(tree, progress)
        count = len(whole.series.patches)
        broken = False
        for number in range(1, count + 1):
            prefix = _Prefix(whole, number, tree, boot, jobs or make.jobs_default(), progress)
            known = None if again else prefix.kept()
            if broken:
                yield prefix.tried(State.NOT_TRIED)
                continue
            if known is not None:
                yield known
                continue
            progress.step(f"patch {number} of {count}: {prefix.patch.name}")
            done = prefix.attempt()
            broken = done.state is State.NOT_APPLIED
            yield done


class _Prefix:
    """The first patches of a series, built and booted."""

    def __init__(self, whole: Plan, number: int, tree: Tree, boot: Boot, jobs: int, progress: Progress) -> None:
        patches = whole.series.patches[:number]
        self.patch: Patch = patches[-1]
        self.number = number
        self._tree = tree
        self._boot = boot
        self._jobs = jobs
        self._progress = progress
        sets = tuple(dict.fromkeys(patch.set for patch in patches))
        self._plan = Plan(whole.flavour, Series(patches, sets, _LABEL), settings_of(whole.flavour, sets))
        self._whole = number == len(whole.series.patches)
        later = {patch.set for patch in whole.series.patches[number:]}
        #: Fragments of sets that are not complete yet: what they ask for may come with a later patch.
        self._open = {f"{name}{kind}.config" for name in sets if name in later for kind in ("", "-debug")}
        self.key = self._plan.key(tree.source.sha256, compiler())

    @property
    def _place(self) -> Path:
        return cache_dir("each") / self.key

    def tried(self, state: State, **more: Any) -> Tried:
        return Tried(self.patch.name, self.number, self.key, state, **more)

    def kept(self) -> Tried | None:
        """The answer of an earlier time, if it was a good one."""
        try:
            value = json.loads((self._place / _FILE).read_text())
            if value["schema"] != SCHEMA or value["state"] != State.OK:
                return None
            # The same patches may be another prefix by now: of a series with another name or order of sets.
            fields = ("release", "build_seconds", "boot_seconds", "when")
            return self.tried(
                State.OK,
                **{name: value[name] for name in fields},
                warnings=tuple(value["warnings"]),
                stood=True,
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def attempt(self) -> Tried:
        """Build and boot; the answer is on disk when this returns."""
        with locks.exclusive(f"each-{self.key}", on_wait=self._progress.note):
            shutil.rmtree(self._place, ignore_errors=True)
            done = replace(self._try(), when=datetime.now(UTC).isoformat(timespec="seconds"))
            write_json(self._place / _FILE, {"schema": SCHEMA, **done.to_json()})
            store.mark_used(self._place)
        return done

    def _try(self) -> Tried:
        place = cache_dir("each", self.key)
        try:
            image, seconds, warnings = self._image(place)
        except DoesNotApplyError as error:
            return self.tried(State.NOT_APPLIED, detail=str(error))
        except ExperimentError as error:
            return self.tried(State.NOT_BUILT, detail=str(error))
        made = {"release": image.release, "build_seconds": seconds, "warnings": warnings}
        try:
            booted = self._boot(image, place)
        except (MachineLostError, ExperimentError) as error:
            return self.tried(State.NOT_BOOTED, detail=str(error), **made)
        made |= {"boot_seconds": round(booted.seconds, 1), "complaints": booted.complaints}
        if booted.release != image.release:
            detail = f"the machine runs {booted.release!r}, not {image.release!r}"
            return self.tried(State.NOT_BOOTED, detail=detail, **made)
        if booted.complaints:
            return self.tried(State.COMPLAINS, detail=booted.complaints[0], **made)
        return self.tried(State.OK, **made)

    def _image(self, place: Path) -> tuple[KernelImage, float | None, tuple[str, ...]]:
        """The image, seconds of its build (None: it was in the cache), and the compiler's warnings."""
        known = store.load(self.key, self.patch.name)
        if known is not None:
            return known, None, ()
        log = self._tree.out(self._plan.flavour, _LABEL) / "build.log"
        with locks.exclusive(self._tree.lock_name, on_wait=self._progress.note) as lock:
            log.unlink(missing_ok=True)
            try:
                made = make_image(
                    self._tree, self._plan, jobs=self._jobs, lock=lock, progress=self._progress, spare=self._spare
                )
                shutil.copy2(made.image, place / "bzImage")
            finally:
                if log.is_file():  # the next patch's build replaces it
                    shutil.copy2(log, place / "build.log")
        lines = (place / "build.log").read_text(errors="replace").splitlines()
        warnings = tuple(line.replace(f"{self._tree.src}/", "") for line in lines if _WARNING.search(line))
        image = KernelImage(self.patch.name, place / "bzImage", made.release)
        return image, round(made.seconds, 1), warnings

    def _spare(self, setting: Setting) -> bool:
        """Whether a value may be lost here: its symbol, or what that depends on, may come with a later patch."""
        if self._whole:
            return False
        return setting.file in self._open or not config.files_with(self._tree.src, setting.symbol)


def boot_on_four_nodes(accel: str = "tcg", timeout: float = 120.0) -> Boot:
    """Return what boots an image on a machine of 4 nodes × 1 CPU × 512 MiB and asks it for release and log.

    `timeout` is in seconds of the host's clock, for the boot and for each command.
    """

    def boot(image: KernelImage, logs: Path) -> Booted:
        from numalab.machine import console
        from numalab.machine.session import Machine
        from numalab.machine.topology import uniform

        with Machine(image, uniform(), accel=accel, log_dir=logs, boot_timeout=timeout) as machine:
            release = machine.run(["uname", "-r"], timeout=timeout, check=True).stdout.decode().strip()
            log = machine.run(["dmesg"], timeout=timeout, check=True).stdout.decode(errors="replace")
            return Booted(release, machine.boot_seconds or 0.0, tuple(console.complaints(log.splitlines())))

    return boot
