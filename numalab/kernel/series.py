"""The series of patches: what is in it, which sets, and what each patch file changes (no git needed).

`linux-patches/series` is quilt style: one path per line, in the order of application; the first
component of a path is the patch's set.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from numalab.errors import MissingError, UserError, nearest
from numalab.paths import PATCHES

#: What `--sets` says for a kernel of the same configuration without any patch.
NO_SETS = "none"

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


@dataclass(frozen=True)
class Patch:
    """One entry of the series; `name` is as written there, e.g. "common/0001-count.patch"."""

    name: str
    path: Path

    @property
    def set(self) -> str:
        """The set it belongs to."""
        return self.name.split("/", 1)[0]


@dataclass(frozen=True)
class FileChange:
    """What a patch does to one file: its name before (None: new) and after (None: deleted).

    `hunks` holds the first line, in the old file, of each hunk in order.
    """

    old: str | None
    new: str | None
    hunks: tuple[int, ...]


@dataclass(frozen=True)
class Series:
    """Patches in order of application, and the label of the selection ("" means all sets)."""

    patches: tuple[Patch, ...]
    sets: tuple[str, ...]
    label: str

    def digest(self) -> str:
        """sha256 over names and bytes of all patches, in order."""
        whole = hashlib.sha256()
        for patch in self.patches:
            data = patch.path.read_bytes()
            whole.update(f"{patch.name}\0{len(data)}\0".encode() + data)
        return whole.hexdigest()


def read(top: Path = PATCHES, sets: Sequence[str] | None = None) -> Series:
    """Read `top`/series, all of it or only the patches of `sets` (the order stays that of the file).

    Raises:
        MissingError: there is no series file (numalab does not run from a checkout).
        UserError: an entry that is no file, an option quilt knows and we do not, an unknown set.
    """
    file = top / "series"
    if not file.is_file():
        raise MissingError(
            f"there is no {file}", remedy="run numalab from a checkout of the project, which has linux-patches/"
        )
    patches: list[Patch] = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        words = re.sub(r"(^|\s)#.*", "", line).split()
        if not words:
            continue
        name, *options = words
        if any(option != "-p1" for option in options):
            raise UserError(f"{file}:{number}: only -p1 patches can be applied, not {' '.join(options)}")
        if "/" not in name:
            raise UserError(f"{file}:{number}: {name} lies in no set (write SET/{name})")
        if name in {patch.name for patch in patches}:
            raise UserError(f"{file}:{number}: {name} is listed twice")
        path = top / name
        if not path.is_file():
            there = [f"{other.parent.name}/{other.name}" for other in top.glob("*/*.patch")]
            raise UserError(f"{file}:{number}: no such patch {name}{nearest(name, there)}")
        patches.append(Patch(name, path))
    return _select(patches, sets)


def _select(patches: list[Patch], sets: Sequence[str] | None) -> Series:
    known = list(dict.fromkeys(patch.set for patch in patches))
    if sets is None or list(sets) == known:
        return Series(tuple(patches), tuple(known), "")
    chosen = [name for name in sets if name != NO_SETS]
    for name in chosen:
        if name not in known:
            raise UserError(
                f"no patch set {name!r}{nearest(name, known)}",
                remedy=f"the series has: {', '.join(known) or 'none'} ({NO_SETS!r}: no patch at all)",
            )
    kept = tuple(name for name in known if name in chosen)
    return Series(tuple(patch for patch in patches if patch.set in kept), kept, ",".join(kept) or NO_SETS)


def parse_sets(text: str | None) -> list[str] | None:
    """Return the sets named in "a,b"; None for None or "" (all of them)."""
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    return names or None


def changes(text: str) -> list[FileChange]:
    """Return what a patch file (git format, mail header allowed) does to each file.

    Raises:
        ValueError: a hunk is cut short, or the patch carries a symbolic link or binary data.
    """
    lines = text.splitlines()
    return [_section(lines[start:end]) for start, end in pairwise([*_sections(lines), len(lines)])]


def _sections(lines: list[str]) -> Iterator[int]:
    """Yield where each "diff --git" stands; hunk bodies are skipped by their counts."""
    at = 0
    while at < len(lines):
        hunk = _HUNK.match(lines[at])
        if hunk:
            at = _after_hunk(lines, at, hunk)
            continue
        if lines[at].startswith("diff --git a/"):
            yield at
        at += 1


def _after_hunk(lines: list[str], at: int, hunk: re.Match[str]) -> int:
    old, new = int(hunk[2] or 1), int(hunk[4] or 1)
    at += 1
    while old > 0 or new > 0:
        if at >= len(lines):
            raise ValueError(f"line {at}: the patch ends inside a hunk")
        sign = lines[at][:1]
        old -= sign in ("-", " ", "")
        new -= sign in ("+", " ", "")
        at += 1
    return at


def _section(lines: list[str]) -> FileChange:
    header = re.fullmatch(r"diff --git a/(.+) b/(.+)", lines[0])
    if not header:
        raise ValueError(f"cannot read {lines[0]!r}")
    old: str | None = header[1]
    new: str | None = header[2]
    hunks: list[int] = []
    at = 1
    while at < len(lines):
        line = lines[at]
        hunk = _HUNK.match(line)
        if hunk:
            hunks.append(int(hunk[1]))
            at = _after_hunk(lines, at, hunk)
            continue
        if line.startswith(("new file mode 120000", "GIT binary patch", "Binary files ")):
            raise ValueError(f"{new}: symbolic links and binary files cannot be carried in the series")
        if line.startswith("new file mode"):
            old = None
        elif line.startswith("deleted file mode"):
            new = None
        at += 1
    return FileChange(old, new, tuple(hunks))
