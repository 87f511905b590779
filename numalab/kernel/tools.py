"""Programs of the host: running them, and naming the package when one is absent."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from numalab.errors import ExperimentError, MissingError

#: Debian package of each program used; other distributions: see the README.
PACKAGES = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "bc": "bc",
    "bison": "bison",
    "bzip2": "bzip2",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "flex": "flex",
    "gcc": "gcc",
    "git": "git",
    "gzip": "gzip",
    "ld": "binutils",
    "lz4": "lz4",
    "lzop": "lzop",
    "make": "make",
    "pahole": "pahole",
    "perl": "perl",
    "tar": "tar",
    "xz": "xz-utils",
    "zstd": "zstd",
}


@dataclass(frozen=True)
class Lack:
    """Something absent: what it is, and the Debian package that has it."""

    what: str
    package: str


def which(tool: str) -> str | None:
    """Return the path of `tool`; looks in the sbin directories too, which users often lack in PATH."""
    path = os.environ.get("PATH", os.defpath)
    return shutil.which(tool, path=f"{path}:/usr/local/sbin:/usr/sbin:/sbin")


def lacking(tools: Iterable[str]) -> list[Lack]:
    """Return those of `tools` that this machine does not have."""
    return [Lack(tool, PACKAGES.get(tool, tool)) for tool in tools if which(tool) is None]


def require(lacks: Sequence[Lack], *, purpose: str) -> None:
    """Raise MissingError, with the one line that installs everything, unless `lacks` is empty."""
    if lacks:
        packages = " ".join(sorted({lack.package for lack in lacks}))
        raise MissingError(
            f"{purpose} needs what this machine lacks: {', '.join(lack.what for lack in lacks)}",
            remedy=f"apt-get install {packages}   (as root, or with sudo)",
        )


def run(
    argv: Sequence[str | Path],
    *,
    purpose: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a short program in the C locale and return it with its output as text.

    Raises:
        MissingError: the program is not installed.
        ExperimentError: it failed (and `check`); the message has the command and its last words.
    """
    words = [str(word) for word in argv]
    tool = which(words[0])
    if tool is None:
        require(lacking([words[0]]), purpose=purpose)
        raise AssertionError("unreachable")
    done = subprocess.run(
        [tool, *words[1:]],
        cwd=cwd,
        env={**os.environ, **(env or {}), "LC_ALL": "C"},
        input=stdin,
        stdin=None if stdin is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if check and done.returncode:
        raise failed(words, done.returncode, done.stderr or done.stdout, purpose=purpose)
    return done


def failed(argv: Sequence[str | Path], status: int, output: str, *, purpose: str) -> ExperimentError:
    """Return the error for a program that ended with `status`, with the last lines it wrote."""
    words = [str(word) for word in argv]
    last = "\n".join(line for line in output.strip().splitlines()[-12:])
    how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return ExperimentError(f"{purpose}: {shlex.join(words)} failed ({how})\n{last}".rstrip())


def clean_environment() -> dict[str, str]:
    """Return an environment in which `make` does what we say and nothing else.

    A MAKEFLAGS, ARCH, CROSS_COMPILE, KCFLAGS or LOCALVERSION of the caller (say, of a Makefile that
    runs numalab) would change the kernel or its number of jobs without a trace.
    """
    keep = {"HOME", "PATH", "TMPDIR", "USER", "LOGNAME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"}
    kept = {name: value for name, value in os.environ.items() if name in keep or name.startswith("CCACHE_")}
    return {**kept, "LC_ALL": "C"}
