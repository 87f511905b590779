"""What a build needs, said before it: programs, headers, disk space."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from numalab.errors import MissingError
from numalab.kernel import tools
from numalab.kernel.fragments import Setting
from numalab.kernel.plan import DEBUG, PATCHED, RACES
from numalab.kernel.tools import Lack
from numalab.units import format_size

_ALWAYS = ("gcc", "ld", "make", "flex", "bison", "bc", "git", "perl", "tar")

#: (header, Debian package, who wants it)
_HEADERS = (("gelf.h", "libelf-dev"), ("openssl/opensslv.h", "libssl-dev"))

_COMPRESSORS = {
    "CONFIG_KERNEL_GZIP": "gzip",
    "CONFIG_KERNEL_BZIP2": "bzip2",
    "CONFIG_KERNEL_LZMA": "xz",
    "CONFIG_KERNEL_XZ": "xz",
    "CONFIG_KERNEL_LZO": "lzop",
    "CONFIG_KERNEL_LZ4": "lz4",
    "CONFIG_KERNEL_ZSTD": "zstd",
}

_GB = 10**9

#: Bytes; measured on Debian's 6.12.117: the package, the tarball in it and the unpacked tree ...
SOURCE_BYTES = 2 * _GB
#: ... and a build directory with DWARF and what is kept of it, rounded up.
BUILD_BYTES = {PATCHED: 5 * _GB // 2, DEBUG: 5 * _GB, RACES: 4 * _GB}


def lacking(settings: Mapping[str, Setting]) -> list[Lack]:
    """Return every program and header a kernel with `settings` needs and this machine lacks."""
    wanted = list(_ALWAYS)
    on = {symbol for symbol, setting in settings.items() if setting.value == "y"}
    wanted += [tool for symbol, tool in _COMPRESSORS.items() if symbol in on]
    if "CONFIG_DEBUG_INFO_BTF" in on:
        wanted.append("pahole")
    if "CONFIG_MODULES" in on:
        wanted.append("depmod")
    lacks = tools.lacking(dict.fromkeys(wanted))
    if tools.which("gcc"):
        lacks += [Lack(f"<{header}>", package) for header, package in _HEADERS if not _has_header(header)]
        if not _has_header("stdio.h"):
            lacks.append(Lack("<stdio.h>", "libc6-dev"))
    return lacks


def _has_header(header: str) -> bool:
    done = subprocess.run(
        ["gcc", "-x", "c", "-fsyntax-only", "-"],
        input=f"#include <{header}>\n".encode(),
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def require_tools(settings: Mapping[str, Setting]) -> None:
    """Raise MissingError, with the one line that installs all of it, when a build would lack something."""
    if platform.machine() != "x86_64":
        raise MissingError(f"kernels are built on x86-64, this machine is {platform.machine()}")
    tools.require(lacking(settings), purpose="building a kernel")


def require_space(where: Path, needed: int, *, purpose: str) -> None:
    """Raise MissingError when the file system of `where` has less than `needed` bytes free."""
    free = shutil.disk_usage(where).free
    if free < needed:
        raise MissingError(
            f"{purpose} needs {format_size(needed)} on the disk of {where}, which has {format_size(free)} free",
            remedy="`numalab cache prune`, or set XDG_CACHE_HOME to a directory on a bigger disk",
        )
