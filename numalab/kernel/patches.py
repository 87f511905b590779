"""Applying the series with `git apply`: offsets are reported, fuzz does not exist, failures are named.

A patch touches a few dozen files of eighty thousand. Only those are copied, into an *overlay*
directory, and patched there: the check of a whole series takes a second and no source tree is
ever written to. `kernel.tree` then carries the overlay into the tree that is built.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numalab.errors import ExperimentError, UserError
from numalab.kernel import tools
from numalab.kernel.series import FileChange, Patch, changes

#: Gives the pristine file at a path of the source tree, or None when the source has none there.
Original = Callable[[str], Path | None]


class DoesNotApplyError(ExperimentError):
    """A patch does not fit the source."""


@dataclass(frozen=True)
class Offset:
    """A hunk that was found `lines` lines away from where its patch says (the base version moved)."""

    patch: str
    file: str
    hunk: int
    lines: int

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.patch}: {self.file}: hunk #{self.hunk} applied {self.lines:+d} lines away"


@dataclass(frozen=True)
class Overlay:
    """The files a series touches, as they are after it, in directory `top`.

    `paths` are all files touched; those not in `top` any more are deleted by the series.
    """

    top: Path
    paths: frozenset[str]
    patches: tuple[str, ...]
    offsets: tuple[Offset, ...]

    def get(self, path: str) -> Path | None:
        """Return the patched file, or None when the series deletes it (or renames it away)."""
        file = self.top / path
        return file if file.is_file() else None

    def to_json(self) -> dict[str, Any]:
        """The facts worth keeping: patches in order, and every offset."""
        return {"patches": list(self.patches), "offsets": [asdict(offset) for offset in self.offsets]}


def apply_series(patches: Iterable[Patch], original: Original, top: Path, *, onto: str) -> Overlay:
    """Apply `patches` in order to the files `original` gives, inside the empty directory `top`.

    Args:
        patches: the series.
        original: access to the pristine source.
        top: an empty directory of ours.
        onto: name of the source for messages, e.g. "Linux 6.12.117".

    Raises:
        DoesNotApplyError: names patch, file and hunk.
        UserError: a patch file that cannot be read as a patch.
        MissingError: no git.
    """
    tools.require(tools.lacking(["git"]), purpose="applying the patch series")
    seen: set[str] = set()
    offsets: list[Offset] = []
    names: list[str] = []
    for patch in patches:
        files = _changes_of(patch)
        for path in sorted({path for file in files for path in (file.old, file.new) if path} - seen):
            seen.add(path)
            pristine = original(path)
            if pristine is not None:
                (top / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(pristine, top / path)
        offsets += _apply(patch, files, top, onto)
        names.append(patch.name)
    return Overlay(top, frozenset(seen), tuple(names), tuple(offsets))


def _changes_of(patch: Patch) -> list[FileChange]:
    try:
        files = changes(patch.path.read_text(errors="surrogateescape"))
    except ValueError as error:
        raise UserError(f"{patch.path}: {error}") from None
    if not files:
        raise UserError(f"{patch.path}: holds no change (a cover letter does not belong into the series)")
    return files


def _git_apply(patch: Patch, top: Path, *more: str) -> tuple[int, str]:
    # git must take `top` for what it is, a plain directory: inside a repository it would silently
    # skip files, and the user's configuration could allow what we refuse.
    alone = {
        "GIT_CEILING_DIRECTORIES": str(top.resolve().parent),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }
    unset = ["env", "-u", "GIT_DIR", "-u", "GIT_WORK_TREE", "-u", "GIT_INDEX_FILE", "-u", "GIT_PREFIX"]
    done = tools.run(
        [*unset, "git", "apply", "--verbose", "--whitespace=nowarn", *more, patch.path.resolve()],
        purpose="applying the patch series",
        cwd=top,
        env=alone,
        check=False,
    )
    return done.returncode, done.stderr


def _apply(patch: Patch, files: list[FileChange], top: Path, onto: str) -> list[Offset]:
    status, words = _git_apply(patch, top)
    if status:
        raise _failure(patch, files, top, onto, words)
    done = len(re.findall(r"^Applied patch .* cleanly\.$", words, re.MULTILINE))
    if done != len(files):
        raise ExperimentError(
            f"{patch.name}: git applied {done} of {len(files)} changed files and did not say why\n{words}"
        )
    return list(_offsets(patch, words))


def _offsets(patch: Patch, words: str) -> Iterable[Offset]:
    file = ""
    for line in words.splitlines():
        if found := re.match(r"Checking patch (.*)\.\.\.$", line):
            file = found[1].rsplit(" => ", 1)[-1]
        elif found := re.match(r"Hunk #(\d+) succeeded at \d+ \(offset (-?\d+) lines?\)", line):
            yield Offset(patch.name, file, int(found[1]), int(found[2]))


def _failure(patch: Patch, files: list[FileChange], top: Path, onto: str, words: str) -> DoesNotApplyError:
    by_name = {file.old or file.new: file for file in files}
    reasons: list[str] = []
    for line in words.splitlines():
        if found := re.match(r"error: patch failed: (.*):(\d+)$", line):
            change = by_name.get(found[1])
            start = int(found[2])
            hunks = change.hunks if change else ()
            which = f"hunk #{hunks.index(start) + 1}" if start in hunks else "a hunk"
            reasons.append(f"  {found[1]}: {which} (line {start}): the source reads differently there")
        elif found := re.match(r"error: (.*): (No such file or directory|already exists in .*)$", line):
            what = "no such file in this source" if "No such" in found[2] else "is already in this source"
            reasons.append(f"  {found[1]}: {what}")
        elif line.startswith("error: ") and not line.endswith(("does not apply", "while searching for:")):
            reasons.append(f"  {line.removeprefix('error: ')}")
    if _git_apply(patch, top, "--reverse", "--check")[0] == 0:
        remedy = "the source contains this patch already: give a pristine 6.12.y with --source"
    else:
        remedy = "patches are applied without fuzz; linux-patches/BASE names the version they were made for"
    detail = "\n".join(reasons) or words.strip()
    return DoesNotApplyError(f"{patch.name} does not apply to {onto}:\n{detail}", remedy=remedy)
