"""Getting a 6.12.y source: Debian's package without root, or what `--source` names, unpacked once."""

from __future__ import annotations

import json
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from numalab.errors import ExperimentError, MissingError, UserError, nearest
from numalab.kernel import debian, directory, locks, tools
from numalab.kernel.patches import Original
from numalab.kernel.progress import Progress
from numalab.kernel.tree import Source, Tree, load, sha256_file, version_of
from numalab.paths import PATCHES, cache_dir, write_json

DEBIAN = "debian"
_MEMO = "debian.json"

_DECOMPRESSORS = {".xz": "xz", ".gz": "gzip", ".tgz": "gzip", ".bz2": "bzip2", ".zst": "zstd"}


@dataclass(frozen=True)
class Base:
    """`linux-patches/BASE`: the source the patches were made on.

    Attributes:
        version: of Linux, e.g. "6.12.117".
        package: Debian source package in the sense of apt, e.g. "linux-source-6.12".
        package_version: its version, e.g. "6.12.117-1~deb12u1".
        sha256: of the tarball inside that package, "" when not recorded.
    """

    version: str
    package: str
    package_version: str
    sha256: str = ""


def read_base(top: Path | None = None) -> Base:
    """Read `BASE`.

    Raises:
        MissingError: there is none. UserError: it cannot be understood.
    """
    file = (PATCHES if top is None else top) / "BASE"
    if not file.is_file():
        raise MissingError(f"there is no {file}", remedy="run numalab from a checkout of the project")
    try:
        table = tomllib.loads(file.read_text())
        package = table["debian"]
        return Base(
            table["version"], package["package"], package["version"], package.get("sha256", table.get("sha256", ""))
        )
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{file}: {type(error).__name__}: {error}") from None


def locate(request: str | None, base: Base, progress: Progress) -> Tree:
    """Return the kept tree for `--source request` (None or "debian": Debian's package).

    A package or tarball is fetched and unpacked the first time. A directory is only looked at:
    `directory.sync` reads it.

    Raises:
        UserError: no such file, not a kernel, not 6.12.y.
        MissingError: apt or a decompressor is absent, or the package cannot be had.
        ExperimentError: a damaged archive.
    """
    if request in (None, DEBIAN):
        return _debian(base, progress)
    path = Path(str(request)).expanduser()
    if path.is_dir():
        source = directory.source_at(path)
        root = cache_dir("trees", source.id)
        return Tree(root, source)
    if path.is_file():
        return _file(path.resolve(), progress)
    there = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UserError(f"--source: there is no {path}{nearest(str(path), there)}")


def pristine(tree: Tree) -> Original:
    """Return access to the unpatched files of a source, for checks that build nothing."""
    if tree.source.kind != "directory":
        return tree.original
    top = Path(tree.source.origin)

    def original(path: str) -> Path | None:
        return file if (file := top / path).is_file() else None

    return original


def remembered(base: Base) -> Source | None:
    """Return what Debian's source turned out to be when `base` was last asked for; looks at no tree.

    It is taken as long as `base` asks for the same: a newer package in the archive is no reason to
    change kernels between two experiments.
    """
    memo = cache_dir("trees") / _MEMO
    if not memo.is_file():
        return None
    kept = json.loads(memo.read_text())
    return Source.from_json(kept["source"]) if kept["wanted"] == [base.package, base.package_version] else None


def _debian(base: Base, progress: Progress) -> Tree:
    with locks.exclusive("trees", on_wait=progress.note):
        known = remembered(base)
        tree = load(cache_dir("trees") / known.id) if known else None
        if tree is None:
            tree = _fetch(base, progress)
            wanted = [base.package, base.package_version]
            write_json(cache_dir("trees") / _MEMO, {"wanted": wanted, "source": tree.source.to_json()})
        return tree


def _fetch(base: Base, progress: Progress) -> Tree:
    version = debian.choose(base.package, base.package_version)
    if version != base.package_version:
        progress.note(
            f"this machine's archive has {base.package} {version}, the patches were made on "
            f"{base.package_version}: taking {version}"
        )
    with scratch(cache_dir("trees")) as temporary:
        progress.step(f"downloading {base.package} {version}")
        deb = debian.download(base.package, version, temporary)
        tarball = _tarball_in(deb, temporary)
        digest = sha256_file(tarball)
        if base.sha256 and version == base.package_version and digest != base.sha256:
            raise ExperimentError(
                f"{tarball.name} of {base.package} {version} has sha256 {digest}, linux-patches/BASE says "
                f"{base.sha256}",
                remedy="the download is damaged or not Debian's; try again",
            )
        package = f"{base.package} {version}"
        return _unpacked(tarball, digest, f"Debian {package}", package, temporary, progress)


def _file(path: Path, progress: Progress) -> Tree:
    with locks.exclusive("trees", on_wait=progress.note), scratch(cache_dir("trees")) as temporary:
        if path.suffix == ".deb":
            package = " ".join(debian.package_of(path))
            tarball = _tarball_in(path, temporary)
            return _unpacked(tarball, sha256_file(tarball), str(path), package, temporary, progress)
        if ".tar" not in path.suffixes and path.suffix != ".tgz":
            raise UserError(f"--source: {path.name} is no directory, .deb or tarball (.tar, .tar.xz, .tar.gz ...)")
        return _unpacked(path, sha256_file(path), str(path), "", temporary, progress)


def _tarball_in(deb: Path, temporary: Path) -> Path:
    debian.unpack(deb, temporary, ["./usr/src/*.tar.*"])
    found = sorted((temporary / "usr/src").glob("*.tar.*"))
    if not found:
        raise UserError(f"{deb.name} holds no usr/src/*.tar.xz: it is no linux-source package")
    return found[0]


def _unpacked(tarball: Path, digest: str, origin: str, package: str, temporary: Path, progress: Progress) -> Tree:
    """Return the tree of a tarball, unpacking it unless the cache has it; atomic: all or nothing."""
    source = Source(digest[:16], DEBIAN if package else "tarball", "", digest, origin, package)
    root = cache_dir("trees") / source.id
    kept = load(root)
    if kept is not None:
        return kept
    progress.step(f"unpacking {tarball.name}")
    packed = _DECOMPRESSORS.get(tarball.suffix)
    tools.require(tools.lacking(["tar", *([packed] if packed else [])]), purpose=f"unpacking {tarball.name}")
    fresh = temporary / "tree"
    inside = fresh / "unpacked"
    inside.mkdir(parents=True)
    pick = [f"--use-compress-program={packed} -d"] if packed else []
    done = tools.run(
        ["tar", *pick, "-x", "--no-same-owner", "-C", inside, "-f", tarball],
        purpose=f"unpacking {tarball.name}",
        check=False,
    )
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise ExperimentError(
            f"{origin}: {tarball.name} cannot be unpacked: {words[0] if words else 'tar failed'}",
            remedy="free some space if the disk is full; otherwise the archive is damaged: fetch it again",
        )
    top = _only_directory(inside)
    try:
        version = version_of(top)
    except UserError as error:
        raise UserError(str(error).replace(str(top), origin)) from None
    top.rename(fresh / "src")
    if inside.exists():
        shutil.rmtree(inside)
    write_json(fresh / "source.json", replace(source, version=version).to_json())
    if root.exists():  # without source.json: not ours any more, or damaged
        shutil.rmtree(root)
    fresh.rename(root)
    return Tree(root, replace(source, version=version))


def _only_directory(inside: Path) -> Path:
    entries = list(inside.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else inside


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Give a temporary directory on the same file system as `parent`, and remove it in the end.

    The caller holds the lock of `parent`: whatever a killed numalab left there is removed first.
    """
    for left in parent.glob(".tmp-*"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
