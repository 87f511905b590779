"""Source trees kept for building, in which only what really changed gets a new time stamp.

`make` compares times, so a tree that is patched anew for every build would be compiled anew every
time. A `Tree` is unpacked once; from then on only files whose content changes are written. Pristine
copies of the files that patches touch are kept aside, and each selection of patch sets remembers
which content of a touched file it had since when: going from one selection to another and back
costs no compilation in either build directory.

Layout below `root`: `source.json` (a `Source`) · `src/` the tree · `orig/` pristine touched files ·
`absent/` markers for touched files the source does not have · `variants.json` · `out/` build
directories. Files of `src/` are replaced, never written in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numalab.errors import ExperimentError, UserError
from numalab.kernel.patches import Overlay
from numalab.paths import write_json

SERIES_WANTED = "6.12"


@dataclass(frozen=True)
class Source:
    """Where the source of a kernel comes from.

    Attributes:
        id: name of its tree in the cache.
        kind: "debian", "tarball" or "directory".
        version: as its Makefile says, e.g. "6.12.117".
        sha256: of the tarball; of a directory: over sorted (path, mode, content) of its files, ""
            while it has not been read.
        origin: for people: the package, or the path that was given.
        package: Debian package and version, "" when it is none.
    """

    id: str
    kind: str
    version: str
    sha256: str
    origin: str
    package: str = ""

    def __str__(self) -> str:
        """One line for people."""
        return f"Linux {self.version} ({self.origin})"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Source:
        """Read what `to_json` wrote."""
        return cls(**value)


def version_of(top: Path) -> str:
    """Return the version the Makefile of the kernel tree `top` states.

    Raises:
        UserError: no kernel tree, or not of the series the patches are made for; says what it is.
    """
    makefile = top / "Makefile"
    text = makefile.read_text(errors="replace") if makefile.is_file() else ""
    parts = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION)[ \t]*=[ \t]*(.*?)[ \t]*$", text, re.M))
    if not {"VERSION", "PATCHLEVEL"} <= parts.keys():
        raise UserError(f"{top} is not a Linux source tree: no Makefile with VERSION and PATCHLEVEL")
    series = f"{parts['VERSION']}.{parts['PATCHLEVEL']}"
    version = f"{series}.{parts.get('SUBLEVEL') or 0}{parts.get('EXTRAVERSION', '')}"
    if series != SERIES_WANTED:
        raise UserError(f"{top} is Linux {version}; the patches are made for {SERIES_WANTED}.y")
    return version


class Tree:
    """A kept source tree; whoever changes it holds the lock `lock_name`."""

    def __init__(self, root: Path, source: Source) -> None:
        self.root = root
        self.source = source

    @property
    def src(self) -> Path:
        """The top of the source."""
        return self.root / "src"

    @property
    def lock_name(self) -> str:
        """Name of the lock that guards this tree and its build directories."""
        return f"trees-{self.source.id}"

    def out(self, flavour: str, label: str) -> Path:
        """Return the build directory of a flavour and a selection of sets (may not exist yet)."""
        return self.root / "out" / (f"{flavour}-{label.replace(',', '+')}" if label else flavour)

    def original(self, path: str) -> Path | None:
        """Return the pristine file at `path`, None when the source has none there."""
        if (kept := self.root / "orig" / path).is_file():
            return kept
        if (self.root / "absent" / path).exists():
            return None
        return file if (file := self.src / path).is_file() else None

    def touched(self) -> set[str]:
        """Return the paths some patch has ever touched here."""
        return {path for part in ("orig", "absent") for path in _files_below(self.root / part)}

    def apply(self, label: str, overlay: Overlay) -> int:
        """Make `src` the source under `overlay`, for the selection of sets `label`.

        Returns the number of files written or removed; 0 when it was so already.
        """
        for path in sorted(overlay.paths - self.touched()):
            self._keep(path)
        records = self._variants()
        record: dict[str, list[Any]] = records.setdefault(label, {})
        changed = 0
        for path in sorted(self.touched()):
            wanted = overlay.get(path) if path in overlay.paths else self.original(path)
            changed += self._put(path, wanted, record, pristine=wanted == self.original(path))
        write_json(self.root / "variants.json", records)
        return changed

    def _variants(self) -> dict[str, dict[str, list[Any]]]:
        file = self.root / "variants.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def _keep(self, path: str) -> None:
        """Set the pristine file aside (or note that there is none) before the first change of it."""
        file = self.src / path
        if file.is_file():
            replace(file, self.root / "orig" / path, file.stat().st_mtime_ns)
        else:
            marker = self.root / "absent" / path
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()

    def _put(self, path: str, wanted: Path | None, record: dict[str, list[Any]], *, pristine: bool) -> int:
        file = self.src / path
        if wanted is None:
            if path in record or not pristine:
                record[path] = ["", 0]
            existed = file.exists()
            file.unlink(missing_ok=True)
            return int(existed)
        digest = sha256_file(wanted)
        if path not in record and pristine:
            stamp = wanted.stat().st_mtime_ns
        else:
            known = record.get(path)
            stamp = known[1] if known and known[0] == digest else time.time_ns()
            record[path] = [digest, stamp]
        if file.is_file() and sha256_file(file) == digest:
            if file.stat().st_mtime_ns == stamp:
                return 0
            os.utime(file, ns=(stamp, stamp))
            return 1
        replace(wanted, file, stamp)
        return 1


def replace(source: Path, target: Path, mtime_ns: int) -> None:
    """Put a copy of `source` (content and mode) in the place of `target`, stamped `mtime_ns`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.numalab")
    temporary.unlink(missing_ok=True)
    shutil.copy2(source, temporary, follow_symlinks=False)
    os.utime(temporary, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
    temporary.replace(target)


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _files_below(top: Path) -> Iterator[str]:
    return (str(file.relative_to(top)) for file in top.rglob("*") if file.is_file())


def load(root: Path) -> Tree | None:
    """Return the complete tree kept at `root`, None when there is none."""
    file = root / "source.json"
    if not file.is_file():
        return None
    try:
        return Tree(root, Source.from_json(json.loads(file.read_text())))
    except (ValueError, TypeError) as error:
        raise ExperimentError(
            f"{file} is damaged: {error}", remedy=f"rm -r {root}   (it is a cache; the source is fetched again)"
        ) from None
