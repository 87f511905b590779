"""Debian packages without root: what apt offers, downloading, unpacking (apt-get download, dpkg-deb)."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from numalab.errors import ExperimentError, MissingError
from numalab.kernel import tools

_UPDATE = "apt-get update (as root, or with sudo), then again"
_OTHER = "on another distribution, give a 6.12.y tree or tarball with --source"


def _apt_cache(*words: str) -> str:
    if tools.which("apt-cache") is None:
        raise MissingError("this machine has no apt, so Debian's kernel packages are out of reach", remedy=_OTHER)
    return tools.run(["apt-cache", *words], purpose="asking apt", check=False).stdout


def versions(package: str) -> list[str]:
    """Return the versions of `package` that apt can fetch, newest first; empty when it knows none."""
    rows = [line.split("|") for line in _apt_cache("madison", package).splitlines()]
    found = [row[1].strip() for row in rows if len(row) >= 3 and "Packages" in row[2]]
    return list(dict.fromkeys(found))


def depends(package: str) -> list[str]:
    """Return the names in the first stanza of `package`'s Depends; empty when apt does not know it."""
    shown = _apt_cache("show", "--no-all-versions", package)
    line = re.search(r"^Depends: (.*)$", shown, re.MULTILINE)
    return [re.split(r"[ (|:]", word.strip(), maxsplit=1)[0] for word in line[1].split(",")] if line else []


def choose(package: str, wanted: str = "") -> str:
    """Return version `wanted` of `package` when apt still has it, else the newest it has.

    Raises:
        MissingError: apt knows no version at all; says what to do.
    """
    known = versions(package)
    if not known:
        raise MissingError(
            f"apt knows no package {package} here",
            remedy=f"{_UPDATE}; Debian 12 has it in bookworm-security, Debian 13 in main; {_OTHER}",
        )
    return wanted if wanted in known else known[0]


def download(package: str, version: str, into: Path) -> Path:
    """Download `package` in `version` to directory `into` (no root needed); returns the .deb.

    Raises:
        MissingError: the archive could not be reached, or apt's lists are stale.
    """
    tools.require(tools.lacking(["apt-get"]), purpose="downloading a Debian package")
    done = tools.run(
        ["apt-get", "download", "-q", f"{package}={version}"],
        purpose=f"downloading {package}",
        cwd=into,
        check=False,
    )
    found = sorted(into.glob(f"{package}_*.deb"))
    if done.returncode or not found:
        words = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        raise MissingError(
            f"could not download {package} {version}: {' '.join(words) or done.stderr.strip()[-300:]}",
            remedy=f"check the network; when the archive has moved on: {_UPDATE}",
        )
    return found[-1]


def unpack(deb: Path, into: Path, members: Sequence[str] = ()) -> None:
    """Unpack the files of `deb` (only those matching the patterns `members`, if any) below `into`.

    Raises:
        MissingError: no dpkg-deb or tar.
        ExperimentError: the package is damaged, or the disk is full.
    """
    tools.require(tools.lacking(["dpkg-deb", "tar"]), purpose="unpacking a Debian package")
    pick = ["--wildcards", *members] if members else []
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(
            subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
        tar = ["tar", "-x", "--no-same-owner", "-C", str(into), "-f", "-", *pick]
        done = subprocess.run(tar, stdin=source.stdout, capture_output=True, text=True, check=False)
        assert source.stdout is not None and source.stderr is not None
        source.stdout.close()
        words = source.stderr.read().decode(errors="replace")
        status = source.wait()
    if status not in (0, -13):  # -13: tar had all it wanted and closed the pipe
        raise ExperimentError(f"{deb.name} cannot be unpacked: {words.strip()[-300:]}")
    if done.returncode:
        raise tools.failed(tar, done.returncode, done.stderr, purpose=f"unpacking {deb.name}")


def package_of(deb: Path) -> tuple[str, str]:
    """Return (package, version) of a .deb file."""
    done = tools.run(
        ["dpkg-deb", "--show", "--showformat", "${Package} ${Version}", deb], purpose=f"reading {deb.name}"
    )
    package, _, version = done.stdout.strip().partition(" ")
    return package, version
