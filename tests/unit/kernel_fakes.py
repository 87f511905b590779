"""A kernel tree in miniature, packed in every way a source can come, and a fake apt that serves it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from numalab.kernel import locks, plan, preflight, source
from numalab.kernel.progress import Progress

FAKE_LINUX = Path(__file__).resolve().parents[1] / "fixtures/fakelinux"

BASE_CONFIG = """\
# More than one CPU.
CONFIG_SMP=y
CONFIG_ACPI=y
CONFIG_NUMA=y
CONFIG_NODES_SHIFT=6
CONFIG_LOCALVERSION="-numalab"
# CONFIG_SLUB_TINY is not set
"""
RACES_CONFIG = "CONFIG_KCSAN=y\n"
DEBUG_CONFIG = "# Finds use after free.\nCONFIG_KASAN=y\n"

COMMENT_PATCH = ("mm/memory.c", " * One table page more on a node.\n", " * One table page more on one node.\n")
CODE_PATCH = ("mm/memory.c", "\ttables[node]--;\n", "\ttables[node] -= 1;\n")


class Told(Progress):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.notes: list[str] = []
        self.advances: list[tuple[int, int | None, str]] = []

    def step(self, text: str) -> None:
        self.steps.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, done: int, total: int | None, text: str = "") -> None:
        self.advances.append((done, total, text))


@dataclass
class Lab:
    """A private cache, a private linux-patches/, and an empty archive for the fake apt."""

    top: Path
    patches: Path
    archive: Path
    cache: Path

    def series(self, *names: str) -> None:
        (self.patches / "series").write_text("".join(f"{name}\n" for name in names))

    def patch(self, name: str, *edits: tuple[str, str, str], tree: Path = FAKE_LINUX) -> Path:
        """Write a patch that replaces, in each (file, old, new), old by new; see `diff`."""
        after = {file: (tree / file).read_text() for file, _, _ in edits}
        for file, old, new in edits:
            assert old in after[file]
            after[file] = after[file].replace(old, new, 1)
        before = {file: (tree / file).read_text() for file in after}
        path = self.patches / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("From: A Developer <dev@example.org>\nSubject: " + name + "\n\nWhy.\n---\n")
        with path.open("a") as out:
            out.write(diff(self.top / "diff", before, dict(after)))
        return path

    def config(self, **fragments: str) -> None:
        for name, text in fragments.items():
            (self.patches / f"configs/{name}.config").write_text(text)

    def base(self, version: str = "6.12.117-1", sha256: str = "") -> None:
        (self.patches / "BASE").write_text(
            f'version = "6.12.117"\n[debian]\npackage = "linux-source-6.12"\nversion = "{version}"\n'
            f'sha256 = "{sha256}"\n'
        )

    def tree(self, name: str = "mytree") -> Path:
        """Return a fresh copy of the fake kernel."""
        return Path(shutil.copytree(FAKE_LINUX, self.top / name))

    def tarball(self, suffix: str = ".tar.xz", version: str = "117", name: str = "linux-source-6.12") -> Path:
        tree = self.top / f"pack-{version}" / name
        if not tree.exists():
            shutil.copytree(FAKE_LINUX, tree)
            makefile = tree / "Makefile"
            makefile.write_text(makefile.read_text().replace("SUBLEVEL = 117", f"SUBLEVEL = {version}"))
        tarball = self.top / f"{name}-{version}{suffix}"
        subprocess.run(["tar", "-caf", tarball, "-C", tree.parent, name], check=True)
        return tarball

    def serve_source(self, version: str = "6.12.117-1", sublevel: str = "117") -> Path:
        """Put linux-source-6.12 in `version` into the archive; returns the .deb."""
        tarball = self.tarball(version=sublevel)
        return self.serve("linux-source-6.12", version, {"usr/src/linux-source-6.12.tar.xz": tarball})

    def serve(self, package: str, version: str, files: dict[str, Path], depends: str = "") -> Path:
        root = self.top / f"deb-{package}-{version}"
        for name, file in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, root / name)
        (root / "DEBIAN").mkdir(parents=True, exist_ok=True)
        (root / "DEBIAN/control").write_text(
            f"Package: {package}\nVersion: {version}\nArchitecture: amd64\nMaintainer: A <a@example.org>\n"
            + (f"Depends: {depends}\n" if depends else "")
            + "Description: fake\n"
        )
        deb = self.archive / f"{package}_{version}_amd64.deb"
        subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "-b", root, deb], check=True, capture_output=True)
        return deb


def diff(work: Path, before: dict[str, str], after: dict[str, str]) -> str:
    """Return the git diff between two sets of files."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    git = ["git", "-C", str(work), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    for files in (before, after):
        for name, text in files.items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_text(text)
        for name in before.keys() - files.keys():
            (work / name).unlink()
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    done = subprocess.run([*git, "diff", "HEAD^", "HEAD"], capture_output=True, text=True, check=True)
    return done.stdout


_APT_CACHE = """#!/bin/sh
cd '{archive}' || exit 1
case $1 in
madison)
	for deb in $(ls -r "$2"_*.deb 2>/dev/null); do
		v=$(dpkg-deb -f "$deb" Version)
		echo " $2 | $v | http://deb.example.org trixie/main amd64 Packages"
	done ;;
show)
	for deb in "$3"_*.deb; do test -e "$deb" && dpkg-deb -f "$deb"; done ;;
esac
exit 0
"""
_APT_GET = """#!/bin/sh
# apt-get download -q PACKAGE=VERSION
echo "$@" >> '{archive}/log'
deb='{archive}'/$(echo "$3" | tr = _)_amd64.deb
if [ -e '{archive}/offline' ]; then
	echo 'E: Failed to fetch http://deb.example.org/x.deb  Could not resolve host' >&2
	exit 100
fi
cp "$deb" .
"""


def make_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Set everything up; the series is empty, BASE asks for what `serve_source` serves by default."""
    lab = Lab(tmp_path, tmp_path / "linux-patches", tmp_path / "archive", tmp_path / "cache/numalab")
    (lab.patches / "configs").mkdir(parents=True)
    lab.archive.mkdir()
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for name, text in (("apt-cache", _APT_CACHE), ("apt-get", _APT_GET)):
        (bin_dir / name).write_text(text.format(archive=lab.archive))
        (bin_dir / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_dir}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(plan, "PATCHES", lab.patches)
    monkeypatch.setattr(source, "PATCHES", lab.patches)
    # The fake kernel needs a compiler and nothing of what a real one needs.
    monkeypatch.setattr(preflight, "lacking", lambda settings: [])
    monkeypatch.setattr(preflight, "SOURCE_BYTES", 1 << 20)
    monkeypatch.setattr(preflight, "BUILD_BYTES", {"patched": 1 << 20, "debug": 1 << 20, "races": 1 << 20})
    locks.release_all()
    lab.series()
    lab.base()
    lab.config(base=BASE_CONFIG, debug=DEBUG_CONFIG, races=RACES_CONFIG)
    return lab
