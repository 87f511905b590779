"""A kernel developer's own source directory as a source: read, hashed, copied; never written to."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
import time
from dataclasses import replace as changed
from pathlib import Path
from typing import NamedTuple

from numalab.errors import UserError
from numalab.kernel import tools
from numalab.kernel.progress import Progress
from numalab.kernel.tree import Source, Tree, replace, sha256_file, version_of
from numalab.paths import write_json


class Entry(NamedTuple):
    """A file of the directory: what `stat` said when it was hashed, and the hash of its content."""

    size: int
    mtime_ns: int
    mode: int
    sha256: str

    @property
    def content(self) -> tuple[int, str]:
        """What makes it the same file for a build: executable or link or neither, and its bytes."""
        return self.mode & (stat.S_IFMT(0o777777) | stat.S_IXUSR), self.sha256


Manifest = dict[str, Entry]

#: Said over the .gitignore files, the last word counting. Debian's ignores the whole top directory
#: ("/*", meant for its packaging), so what a build puts there is named one by one; and some files of
#: the source have names its own patterns forbid.
_SOURCES = ("!.gitignore", "!.kunitconfig", "!.yamllint", "!/tools/testing/selftests/arm64/tags/")
_TOP: tuple[str, ...] = ("!/*", "/.*.cmd", "/.config*", "/.tmp*", "/.version", "/.vmlinux*", "/vmlinux*", "/System.map")
_TOP += ("/Module.symvers", "/modules.*", "/modules-only.symvers", "/*.a", "/*.o", "/*.order")


def source_at(directory: Path) -> Source:
    """Return the source a directory is, not read yet (`sha256` is "").

    Raises:
        UserError: it is no kernel tree of the wanted series.
    """
    top = directory.resolve()
    name = hashlib.sha256(os.fsencode(top)).hexdigest()[:12]
    return Source(f"dir-{name}", "directory", version_of(top), "", str(top))


def files_of(directory: Path) -> list[str]:
    """Return the source files of a tree: tracked ones, and others its .gitignore files do not name.

    That leaves out the results of a build inside the tree, with which it could not be built outside.
    """
    tools.require(tools.lacking(["git"]), purpose="reading a source directory")
    alone = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "HOME": "/nonexistent"}
    alone["XDG_CONFIG_HOME"] = "/nonexistent"
    names: set[str] = set()

    def ask(git_dir: Path, *words: str) -> None:
        git = ["git", f"--git-dir={git_dir}", f"--work-tree={directory}"]
        done = tools.run([*git, "ls-files", "-z", *words], purpose=f"listing {directory}", cwd=directory, env=alone)
        names.update(done.stdout.split("\0"))

    with tempfile.TemporaryDirectory(prefix="numalab-git-") as empty:
        tools.run(["git", "init", "-q", "--bare", empty], purpose=f"listing {directory}", env=alone)
        ask(Path(empty), "--others", "--exclude-standard", *(f"--exclude={pattern}" for pattern in (*_SOURCES, *_TOP)))
    if (directory / ".git").exists():
        ask(directory / ".git", "--cached")
    return sorted(name for name in names if name and not name.endswith("/"))


def scan(directory: Path, before: Manifest) -> Manifest:
    """Hash every source file; a file whose size, time and mode are as in `before` is not read again."""
    entries: Manifest = {}
    for name in files_of(directory):
        path = directory / name
        try:
            info = path.lstat()
        except FileNotFoundError:  # tracked, but deleted
            continue
        old = before.get(name)
        if old and (old.size, old.mtime_ns, old.mode) == (info.st_size, info.st_mtime_ns, info.st_mode):
            entries[name] = old
        elif stat.S_ISLNK(info.st_mode):
            digest = hashlib.sha256(os.fsencode(path.readlink())).hexdigest()
            entries[name] = Entry(info.st_size, info.st_mtime_ns, info.st_mode, digest)
        elif stat.S_ISREG(info.st_mode):
            entries[name] = Entry(info.st_size, info.st_mtime_ns, info.st_mode, sha256_file(path))
    if "Makefile" not in entries:
        raise UserError(f"{directory}: its .gitignore leaves out its Makefile")
    return entries


def digest(manifest: Manifest) -> str:
    """sha256 over path, kind (file, executable, link) and content of all files, sorted by path."""
    whole = hashlib.sha256()
    for name in sorted(manifest):
        mode, sha256 = manifest[name].content
        whole.update(f"{mode:o} {sha256} {name}\0".encode(errors="surrogateescape"))
    return whole.hexdigest()


def sync(tree: Tree, progress: Progress) -> Tree:
    """Bring `tree` up to its directory: only files whose content changed are written.

    The caller holds the tree's lock. Returns the tree with version and sha256 as they are now.
    """
    directory = Path(tree.source.origin)
    progress.step(f"reading {directory}")
    file = tree.root / "manifest.json"
    before: Manifest = {}
    if file.is_file():
        before = {name: Entry(*fields) for name, fields in json.loads(file.read_text()).items()}
    now = scan(directory, before)
    stale = [name for name in now if name not in before or before[name].content != now[name].content]
    gone = sorted(before.keys() - now.keys())
    if stale or gone:
        # Named before they are copied: should this be interrupted, the next sync knows of them.
        pending = {**before, **{name: Entry(0, 0, 0, "") for name in stale}}
        write_json(file, pending)
        _carry(tree, directory, stale, gone, first=not before)
    write_json(file, now)
    source = changed(tree.source, version=version_of(directory), sha256=digest(now))
    write_json(tree.root / "source.json", source.to_json())
    return Tree(tree.root, source)


def _carry(tree: Tree, directory: Path, stale: list[str], gone: list[str], *, first: bool) -> None:
    touched = tree.touched()
    for name in gone:
        if name in touched:
            (tree.root / "orig" / name).unlink(missing_ok=True)
            marker = tree.root / "absent" / name
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
        else:
            (tree.src / name).unlink(missing_ok=True)
    for name in stale:
        original = directory / name
        stamp = original.lstat().st_mtime_ns if first else time.time_ns()
        if name in touched:
            (tree.root / "absent" / name).unlink(missing_ok=True)
            replace(original, tree.root / "orig" / name, stamp)
        else:
            replace(original, tree.src / name, stamp)
