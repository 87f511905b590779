"""From a kept tree to an image: the series applied, the configuration made, make run; nothing is published here."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from numalab.kernel import config, make, preflight
from numalab.kernel.fragments import Setting
from numalab.kernel.patches import Overlay, apply_series
from numalab.kernel.plan import DEBUG, PATCHED, RACES, Plan
from numalab.kernel.progress import Progress, clock
from numalab.kernel.tree import Tree
from numalab.paths import write_atomic, write_json

#: Steps of make in a whole build and objects it leaves, until they have been counted on this machine.
_WHOLE = {PATCHED: (2350, 1750), DEBUG: (2500, 1900), RACES: (2400, 1800)}


@dataclass(frozen=True)
class Made:
    """What a run of make has left.

    Attributes:
        out: the build directory.
        overlay: what the series did to the source.
        log: all that make wrote.
        release: of the kernel.
        modules: whether it has modules.
        ccache: whether ccache was in front of the compiler.
        seconds: wall time of make.
        steps: things that were made; 0 when nothing had changed.
    """

    out: Path
    overlay: Overlay
    log: Path
    release: str
    modules: bool
    ccache: bool
    seconds: float
    steps: int

    @property
    def image(self) -> Path:
        """The bzImage; the next build in `out` replaces it."""
        return self.out / "arch/x86/boot/bzImage"


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


def dotconfig_of(
    tree: Tree, plan: Plan, progress: Progress, *, spare: Callable[[Setting], bool] = config.spare_none
) -> str:
    """Return the whole `.config` of a plan in the tree that `patch` has made; for `spare` see `config.check`.

    Raises:
        ExperimentError: an asked-for value did not survive.
    """
    progress.step("configuring")
    env, _ = _environment(tree)
    out = tree.root / "out" / "kconfig"
    out.mkdir(parents=True, exist_ok=True)
    log = out / "kconfig.log"
    log.unlink(missing_ok=True)
    return config.configure(tree.src, out, plan.settings, log=log, env=env, spare=spare)


def make_image(
    tree: Tree,
    plan: Plan,
    *,
    jobs: int,
    lock: int,
    progress: Progress,
    spare: Callable[[Setting], bool] = config.spare_none,
) -> Made:
    """Make the image of a plan in its build directory, as far as it is not made already.

    Args:
        tree: the kept tree; the caller holds its lock.
        plan: what to build.
        jobs: of make.
        lock: the descriptor of that lock, which make inherits.
        progress: is told what happens.
        spare: asked-for values that may be lost (`config.check`).

    Raises:
        MissingError: too little disk.
        ExperimentError: a patch does not apply, a value did not survive, the compiler found an error.
    """
    overlay = patch(tree, plan, progress)
    dotconfig = dotconfig_of(tree, plan, progress, spare=spare)
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
    progress.step(f"built {release} in {clock(seconds)}")
    return Made(out, overlay, log, release, modules, ccache, seconds, count)


def install_modules(tree: Tree, made: Made, into: Path) -> None:
    """Install the modules of an image below `into`, without links into the build."""
    words = [f"INSTALL_MOD_PATH={into}", "INSTALL_MOD_STRIP=1"]
    make.run(
        make.command(tree.src, made.out, ["modules_install"], more=words),
        what="installing the modules",
        log=made.log,
        env=_environment(tree)[0],
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
