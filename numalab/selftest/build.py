"""Building the kernel's own test programs from its source, once per source, compiler and recipe.

Only the part of the source that they need is copied and worked on; the source itself is never written to. Programs are
static where that is possible, because the guest has no libraries; what is not (no static library here, or a test of the
dynamic loader) is built dynamically and runs on the host's libraries in the guest. What cannot be built at all is
recorded with the compiler's error, and the rest goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numalab.errors import ExperimentError
from numalab.kernel import buildlog, locks, tools
from numalab.kernel.source import scratch
from numalab.paths import cache_dir, write_json
from numalab.selftest import catalogue

#: What of a kernel source the test programs need; directories stand for all below them.
PARTS = (
    "Makefile",
    "Kbuild",
    "scripts",
    "include/uapi",
    "include/vdso",
    "include/asm-generic/Kbuild",
    "arch/x86/Makefile",
    "arch/x86/include",
    "arch/x86/entry/syscalls",
    "arch/x86/tools",
    "mm/gup_test.h",
    "lib/test_hmm_uapi.h",
    "tools/arch/x86",
    "tools/build",
    "tools/include",
    "tools/lib",
    "tools/scripts",
)
_SELFTESTS = "tools/testing/selftests"
#: Directories of kselftest that others take sources from.
_SHARED = ("kselftest", "rseq")
#: Debian packages whose libraries some tests use; without one, those tests are recorded as not built.
LIBRARIES = {"sys/capability.h": "libcap-dev", "numa.h": "libnuma-dev", "liburing.h": "liburing-dev"}
#: Raised when a change of this module makes other programs from the same inputs.
_RECIPE = 1
#: Compiles a program by itself: as the makefiles of x86 would.
_ALONE = ("gcc", "-O2", "-g", "-std=gnu99", "-Wall", "-pthread", "-static", "-DCAN_BUILD_64")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Programs:
    """The programs of one source.

    Attributes:
        top: directory that holds them, as "mm/cow", "futex/functional/futex_wait".
        built: their paths below `top`, each with "static" or "dynamic".
        failed: path → the compiler's first error, for those that could not be built.
        key: what names this build in the cache.
    """

    top: Path
    built: Mapping[str, str]
    failed: Mapping[str, str]
    key: str

    def linkage(self, path: str) -> str | None:
        """ "static", "dynamic", or None when there is no such program."""
        return self.built.get(path)


def selftest_parts() -> tuple[str, ...]:
    """Return the paths below a kernel source that the build reads."""
    recipe = catalogue.recipe()
    below = (*recipe.targets, *_SHARED)
    return (*PARTS, *recipe.alone.values(), *(f"{_SELFTESTS}/{name}" for name in below))


def files_of(top: Path) -> dict[str, Path]:
    """Return the files the build needs of the kernel source in `top`, by path below it.

    Raises:
        UserError: it is no kernel source, or of another series.
    """
    from numalab.kernel.tree import version_of

    version_of(top)
    found = {str(path.relative_to(top)): path for part in selftest_parts() for path in _below(top / part)}
    # kselftest's own files, beside the directories of tests.
    found |= {str(path.relative_to(top)): path for path in (top / _SELFTESTS).iterdir() if path.is_file()}
    return found


def _below(path: Path) -> Iterable[Path]:
    return [path] if path.is_file() else (each for each in path.rglob("*") if each.is_file() or each.is_symlink())


def build(files: Mapping[str, Path], *, say: Say = lambda _: None) -> Programs:
    """Return the test programs of the source whose files are `files`, from the cache or built now.

    Raises:
        MissingError: make or gcc is not here.
        ExperimentError: nothing at all could be built; ends with the first error and the log's path.
    """
    lacks = tools.lacking(["make", "gcc"])
    tools.require(lacks, purpose="building the kernel's test programs")
    key = _key(files)
    target = cache_dir("selftests") / key
    with locks.exclusive("selftests", on_wait=say):
        if not (target / "manifest.json").is_file():
            say(f"building the kernel's test programs ({', '.join(catalogue.recipe().targets)})")
            with scratch(target.parent) as temporary:
                _build(files, temporary, key, say)
                if target.exists():
                    shutil.rmtree(target)
                (temporary / "result").rename(target)
    return load(target)


def load(target: Path) -> Programs:
    """Return the programs kept in `target`."""
    manifest = json.loads((target / "manifest.json").read_text())
    return Programs(target, manifest["built"], manifest["failed"], target.name)


def _alone(tree: Path, out: Path, log: Path) -> dict[str, Path]:
    """Compile what the recipe has compiled by itself, as far as the source has it; return what is there then."""
    found = {}
    for name, source in catalogue.recipe().alone.items():
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (tree / source).is_file():
            words = [*_ALONE, "-isystem", str(tree / "usr/include"), str(tree / source), "-o", str(target)]
            with log.open("ab") as file:
                subprocess.run(words, stdout=file, stderr=file, env=_environment(), check=False)
        if target.is_file():
            found[name] = target
    return found


def _key(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256(repr((_RECIPE, catalogue.recipe(), missing_libraries())).encode())
    version = tools.run(["gcc", "--version"], purpose="naming the compiler").stdout
    digest.update(version.partition("\n")[0].encode())
    for name in sorted(files):
        file = files[name]
        text = str(file.readlink()).encode() if file.is_symlink() else file.read_bytes()
        digest.update(f"{name}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()[:16]


def missing_libraries() -> list[str]:
    """Return the Debian packages of libraries that are absent and that some tests need."""
    done = subprocess.run(
        ["gcc", "-E", "-v", "-x", "c", "/dev/null"], capture_output=True, text=True, env=_environment(), check=False
    )
    places = [Path(line.strip()) for line in done.stderr.splitlines() if line.startswith(" /")]
    return [package for header, package in LIBRARIES.items() if not any((at / header).is_file() for at in places)]


def _build(files: Mapping[str, Path], temporary: Path, key: str, say: Say) -> None:
    tree, out, result = temporary / "tree", temporary / "out", temporary / "result"
    _copy(files, tree)
    log = cache_dir("selftests") / f"{key}.log"
    log.unlink(missing_ok=True)
    _make(["-C", str(tree), "ARCH=x86", "headers"], log, {})
    if not (tree / "usr/include/linux").is_dir():
        raise buildlog.failure("making the kernel's headers", log.read_text(), str(log), strip=str(tree))
    recipe = catalogue.recipe()
    repairs = " ".join(cflags for cflags, _ in recipe.repairs.values())
    # Each stage makes what the ones before it could not.
    static = _stage(tree, out / "static", log, ["-static", f"-static {repairs}"], link="-static")
    static |= _alone(tree, out / "alone", log)
    expected = _expected(files)
    absent = expected - static.keys()
    dynamic: dict[str, Path] = {}
    if absent or recipe.dynamic:
        say(f"building {len(absent | recipe.dynamic.keys())} of them dynamically")
        dynamic = _stage(tree, out / "dynamic", log, ["", repairs], link="")
    chosen = {name: ("static", path) for name, path in static.items() if Path(name).name not in recipe.dynamic}
    for name, path in dynamic.items():
        chosen.setdefault(name, ("dynamic", path))
    if not chosen:
        raise buildlog.failure("building the kernel's test programs", log.read_text(), str(log), strip=str(tree))
    for name, (_, path) in chosen.items():
        (result / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, result / name)
    text = log.read_text(errors="replace").replace(f"{tree}/", "").replace(f"{out}/", "")
    write_json(
        result / "manifest.json",
        {
            "built": {name: linkage for name, (linkage, _) in sorted(chosen.items())},
            "failed": {name: _error_of(name, text) for name in sorted(expected - chosen.keys())},
            "missing_libraries": missing_libraries(),
        },
    )
    (result / "build.log").write_text(text)
    log.unlink()


def _copy(files: Mapping[str, Path], tree: Path) -> None:
    for name, file in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, tree / name, follow_symlinks=False)


def _stage(tree: Path, out: Path, log: Path, flags: list[str], *, link: str) -> dict[str, Path]:
    """Make all targets, once per word of compiler flags; return the programs that are there then."""
    targets = " ".join(catalogue.recipe().targets)
    for cflags in flags:
        # Through the environment: kselftest's makefiles append to these, a command line would replace them.
        more = {"EXTRA_CFLAGS": cflags, "USERCFLAGS": cflags, "USERLDFLAGS": link}
        _make(["-C", str(tree / _SELFTESTS), "-k", f"TARGETS={targets}", f"O={out}"], log, more)
    top = out / "kselftest"
    found = (path for path in top.rglob("*") if path.is_file() and os.access(path, os.X_OK))
    return {str(path.relative_to(top)): path for path in found if path.read_bytes()[:4] == b"\x7fELF"}


def _make(words: list[str], log: Path, more: Mapping[str, str]) -> None:
    """Run make; what failed is seen by what is not there afterwards."""
    jobs = len(os.sched_getaffinity(0)) + 1
    with log.open("ab") as out:
        subprocess.run(
            ["make", f"-j{jobs}", "--output-sync=target", *words],
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            env={**_environment(), **more},
            check=False,
        )


def _environment() -> dict[str, str]:
    return {**tools.clean_environment(), "LC_ALL": "C"}


def _expected(files: Mapping[str, Path]) -> set[str]:
    """Programs that should be there, by path: what the groups want to run, and what is compiled by itself."""
    alone = {name for name, source in catalogue.recipe().alone.items() if source in files}
    return alone | {
        f"{group.directory}/{program.argv[0]}"
        for group in catalogue.groups().values()
        if group.directory
        for program in group.programs
    }


def _error_of(name: str, log: str) -> str:
    """The first error about a program in the log."""
    stem = re.escape(Path(name).name.removesuffix("_64").removesuffix("_32"))
    found = re.search(rf"^(?:\S*/)?{stem}\.[chS]:\d+.*error: .*$", log, re.MULTILINE)
    if found:
        return found[0]
    around = re.search(rf"(?:^.*\n){{0,40}}^make.*\*\*\* \[.*/{stem}(?:_64)?\] .*$", log, re.MULTILINE)
    return buildlog.first_error(around[0]).text if around else "was not made; see build.log"


def describe(programs: Programs) -> dict[str, Any]:
    """Plain JSON values about a build."""
    return {"key": programs.key, "directory": str(programs.top), "built": programs.built, "failed": programs.failed}


def check_any(programs: Programs, group: catalogue.Group) -> None:
    """Raise ExperimentError when none of a group's programs could be built."""
    wanted = {f"{group.directory}/{program.argv[0]}" for program in group.programs}
    if group.directory and not wanted & programs.built.keys():
        first = next((programs.failed[name] for name in sorted(wanted) if name in programs.failed), "not attempted")
        raise ExperimentError(f"no program of group {group.name} could be built: {first}")
