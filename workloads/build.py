"""The static programs of the workloads, built once and cached by the hash of what they are made of."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from numalab.errors import ExperimentError, MissingError
from numalab.kernel.buildlog import first_error
from numalab.paths import cache_dir
from workloads.catalogue import names

SOURCES = Path(__file__).resolve().parent
#: Static: the guest has no libraries. No contraction: STREAM's check compares to the last bit. Warnings are errors in
#: the unit tests only, so that a newer compiler's new warning does not stop a user.
FLAGS = ("-O2", "-std=gnu11", "-static", "-pthread", "-ffp-contract=off", "-Wall", "-Wextra")
LIBRARIES = ("-lm",)


def binaries() -> dict[str, Path]:
    """Return name → static program of every workload; compiles when sources, compiler or flags have changed.

    Raises:
        MissingError: no gcc or no static C library on this machine.
        ExperimentError: a source does not compile; ends with the compiler's first error.
    """
    target = cache_dir("workloads") / _key(_compiler())
    if not target.is_dir():
        _build(target)
    return {name: target / name for name in names()}


def sources_of(name: str) -> list[Path]:
    """Return the C files of a workload's program."""
    return [*sorted((SOURCES / "common").glob("*.c")), *sorted((SOURCES / name).glob("*.c"))]


def compile_command(name: str, output: Path, *extra: str) -> list[str]:
    """Return the command that compiles a workload into `output`."""
    return ["gcc", *FLAGS, *extra, "-o", str(output), *map(str, sources_of(name)), *LIBRARIES]


def _compiler() -> str:
    """The first line of `gcc --version`."""
    if not shutil.which("gcc"):
        raise MissingError("gcc is not installed", remedy="apt-get install gcc libc6-dev")
    said = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True)
    return said.stdout.partition("\n")[0]


def _key(compiler: str) -> str:
    digest = hashlib.sha256(repr((compiler, FLAGS, LIBRARIES, names())).encode())
    for source in sorted(SOURCES.rglob("*.[ch]")):
        text = source.read_bytes()
        digest.update(f"{source.relative_to(SOURCES)}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()[:16]


def _build(target: Path) -> None:
    """Compile all programs beside `target` and rename: it appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as building:
        fresh = Path(building, target.name)
        fresh.mkdir()
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(lambda name: _compile(name, fresh / name), names()):
                pass
        try:
            fresh.rename(target)
        except OSError:
            if not target.is_dir():  # else: another process was faster with the same programs
                raise


def _compile(name: str, output: Path) -> None:
    done = subprocess.run(compile_command(name, output), capture_output=True, text=True, check=False)
    if not done.returncode:
        return
    if "cannot find -lc" in done.stderr:
        raise MissingError(
            "the C library is not here as a static one", remedy="apt-get install libc6-dev (Fedora: glibc-static)"
        )
    text = first_error(done.stderr).text.replace(f"{SOURCES}/", "")
    raise ExperimentError(f"the workload {name} does not compile:\n  {text}")
