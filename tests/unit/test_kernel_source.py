"""Sources: Debian's package, tarballs of every kind, directories; and everything that is none."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from numalab.errors import ExperimentError, MissingError, UserError
from numalab.kernel import directory, locks, source, tools
from numalab.kernel import tree as tree_module
from numalab.kernel.tree import Tree, load, sha256_file, version_of
from tests.unit.kernel_fakes import FAKE_LINUX, Lab, Told, make_lab


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return make_lab(tmp_path, monkeypatch)


def locate(request: str | None = None) -> tuple[Tree, Told]:
    told = Told()
    return source.locate(request, source.read_base(), told), told


def downloads(lab: Lab) -> int:
    log = lab.archive / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


# --- BASE


def test_base_is_read_and_complains(lab: Lab) -> None:
    lab.base(sha256="ab" * 32)
    assert source.read_base() == source.Base("6.12.117", "linux-source-6.12", "6.12.117-1", "ab" * 32)
    (lab.patches / "BASE").write_text("version = ")
    with pytest.raises(UserError, match="BASE"):
        source.read_base()
    (lab.patches / "BASE").write_text('version = "6.12.117"\n')
    with pytest.raises(UserError, match="debian"):
        source.read_base()
    (lab.patches / "BASE").unlink()
    with pytest.raises(MissingError, match="BASE"):
        source.read_base()


# --- Debian


def test_debians_package_is_fetched_once(lab: Lab) -> None:
    lab.serve_source()
    tree, told = locate()
    assert told.steps[0] == "downloading linux-source-6.12 6.12.117-1"
    assert (tree.source.version, tree.source.kind) == ("6.12.117", "debian")
    assert tree.source.package == "linux-source-6.12 6.12.117-1"
    assert tree.source.sha256 == sha256_file(lab.tarball())
    assert (tree.src / "mm/memory.c").read_text() == (FAKE_LINUX / "mm/memory.c").read_text()
    again, told = locate()
    assert again.source == tree.source
    assert told.steps == []
    assert downloads(lab) == 1
    assert not list((lab.cache / "trees").glob(".tmp*"))


def test_the_bases_version_is_preferred_over_a_newer_one(lab: Lab) -> None:
    lab.serve_source()
    lab.serve_source("6.12.120-1", "120")
    tree, told = locate()
    assert (tree.source.version, told.notes) == ("6.12.117", [])


def test_another_version_is_taken_and_said_when_the_archive_has_only_that(lab: Lab) -> None:
    lab.serve_source("6.12.107-1", "107")
    tree, told = locate()
    assert tree.source.version == "6.12.107"
    assert told.notes == [
        "this machine's archive has linux-source-6.12 6.12.107-1, the patches were made on 6.12.117-1: "
        "taking 6.12.107-1"
    ]
    lab.serve_source("6.12.108-1", "108")
    assert locate()[0].source.version == "6.12.107", "no change of kernels behind the user's back"
    assert downloads(lab) == 1


def test_a_base_that_moves_on_is_followed(lab: Lab) -> None:
    lab.serve_source()
    lab.serve_source("6.12.120-1", "120")
    locate()
    lab.base("6.12.120-1")
    assert locate()[0].source.version == "6.12.120"
    assert source.remembered(source.read_base()) == locate()[0].source


def test_a_tarball_that_is_not_the_recorded_one_is_refused(lab: Lab) -> None:
    lab.serve_source()
    lab.base(sha256="0" * 64)
    with pytest.raises(ExperimentError, match="sha256") as caught:
        locate()
    assert "0" * 64 in str(caught.value)
    lab.base(sha256=sha256_file(lab.tarball()))
    assert locate()[0].source.version == "6.12.117"


def test_no_such_package_no_network_no_apt(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match=r"apt knows no package linux-source-6.12") as caught:
        locate()
    assert "apt-get update" in caught.value.remedy
    lab.serve_source()
    (lab.archive / "offline").touch()
    with pytest.raises(MissingError, match=r"could not download.*Could not resolve host"):
        locate()
    monkeypatch.setattr(tools, "which", lambda tool: None)
    with pytest.raises(MissingError, match="no apt") as caught:
        locate()
    assert "--source" in caught.value.remedy


def test_what_a_killed_numalab_left_is_removed(lab: Lab) -> None:
    lab.serve_source()
    left = lab.cache / "trees/.tmp-abc/tree/src"
    left.mkdir(parents=True)
    half = lab.cache / "trees" / sha256_file(lab.tarball())[:16]
    half.mkdir()
    (half / "src").mkdir()
    tree, _ = locate()
    assert (tree.src / "Makefile").is_file()
    assert not left.exists()


def test_two_at_once_unpack_one_tree(lab: Lab) -> None:
    lab.serve_source()
    found: list[Tree] = []
    threads = [threading.Thread(target=lambda: found.append(locate()[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tree.root for tree in found}) == 1 == downloads(lab)
    assert len(found) == 4


def test_a_damaged_note_about_a_tree_names_the_way_out(lab: Lab) -> None:
    lab.serve_source()
    tree, _ = locate()
    (tree.root / "source.json").write_text('{"id": 1}')
    with pytest.raises(ExperimentError, match="damaged") as caught:
        load(tree.root)
    assert f"rm -r {tree.root}" in caught.value.remedy


# --- --source


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"])
def test_tarballs_of_every_kind(lab: Lab, suffix: str) -> None:
    if suffix == ".tar.zst" and tools.which("zstd") is None:
        pytest.skip("no zstd here")
    tarball = lab.tarball(suffix, version="99", name="linux-6.12.99")
    tree, _ = locate(str(tarball))
    assert (tree.source.version, tree.source.kind, tree.source.package) == ("6.12.99", "tarball", "")
    assert tree.source.sha256 == sha256_file(tarball)
    assert tree.source.origin == str(tarball)
    assert (tree.src / "kernel/fork.c").is_file()


def test_a_tarball_without_a_top_directory(lab: Lab) -> None:
    tarball = lab.top / "flat.tar"
    subprocess.run(["tar", "-cf", tarball, "-C", FAKE_LINUX, "."], check=True)
    assert (locate(str(tarball))[0].src / "Makefile").is_file()


def test_a_deb_of_ones_own(lab: Lab) -> None:
    deb = lab.serve_source("6.12.200-1", "200")
    tree, _ = locate(str(deb))
    assert (tree.source.version, tree.source.package) == ("6.12.200", "linux-source-6.12 6.12.200-1")
    other = lab.serve("hello", "1", {"usr/bin/hello": FAKE_LINUX / "Makefile"})
    with pytest.raises((UserError, ExperimentError), match=r"hello_1_amd64.deb|usr/src"):
        locate(str(other))


def test_what_is_no_source(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*linux-7"):
        locate(str(tmp_path / "linux-7"))
    readme = tmp_path / "readme.txt"
    readme.write_text("x")
    with pytest.raises(UserError, match=r"no directory, .deb or tarball"):
        locate(str(readme))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a Linux source tree"):
        locate(str(tmp_path / "empty"))
    broken = tmp_path / "broken.tar.xz"
    broken.write_bytes(lab.tarball().read_bytes()[:500])
    with pytest.raises(ExperimentError, match=r"broken\.tar\.xz cannot be unpacked"):
        locate(str(broken))
    assert not list((lab.cache / "trees").glob(".tmp*"))


def test_another_series_is_refused_by_name(lab: Lab) -> None:
    tree = lab.tree()
    makefile = tree / "Makefile"
    text = makefile.read_text().replace("PATCHLEVEL = 12", "PATCHLEVEL = 13").replace("SUBLEVEL = 117", "SUBLEVEL = 0")
    makefile.write_text(text.replace("EXTRAVERSION =", "EXTRAVERSION = -rc4"))
    with pytest.raises(UserError, match=r"is Linux 6\.13\.0-rc4; the patches are made for 6\.12\.y"):
        locate(str(tree))
    tarball = lab.top / "new.tar"
    subprocess.run(["tar", "-cf", tarball, "-C", tree.parent, tree.name], check=True)
    with pytest.raises(UserError, match=rf"^{tarball} is Linux 6\.13"):
        locate(str(tarball))


def test_the_version_with_an_extra_part(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 3\nEXTRAVERSION = -rt1\n")
    assert version_of(tmp_path) == "6.12.3-rt1"


# --- directories


def synced(directory_: Path) -> Tree:
    tree, told = locate(str(directory_))
    with locks.exclusive(tree.lock_name):
        return directory.sync(tree, told)


def test_a_directory_is_copied_and_never_written_to(lab: Lab) -> None:
    mine = lab.tree()
    (mine / "tools").mkdir()
    (mine / "tools/run.sh").write_text("#!/bin/sh\n")
    (mine / "tools/run.sh").chmod(0o755)
    (mine / "include/uapi").symlink_to("linux")
    before = {path: path.lstat().st_mtime_ns for path in mine.rglob("*")}
    tree = synced(mine)
    assert {path: path.lstat().st_mtime_ns for path in mine.rglob("*")} == before
    assert (tree.source.kind, tree.source.version, tree.source.origin) == ("directory", "6.12.117", str(mine))
    assert len(tree.source.sha256) == 64
    assert os.access(tree.src / "tools/run.sh", os.X_OK)
    assert (tree.src / "include/uapi").readlink() == Path("linux")
    assert (tree.src / "include/uapi/mm.h").read_text() == (mine / "include/linux/mm.h").read_text()


def test_results_of_a_build_inside_the_directory_are_left_out(lab: Lab) -> None:
    mine = lab.tree()
    products = (".config", ".config.old", "mm/memory.o", "vmlinux", "vmlinux.o", "Module.symvers", ".vmlinux.cmd")
    for name in products:
        (mine / name).write_text("built")
    tree = synced(mine)
    assert not any((tree.src / name).exists() for name in products)
    clean = synced(lab.tree("clean"))
    assert clean.source.sha256 == tree.source.sha256


def test_debians_gitignore_hides_the_whole_tree_and_is_overruled(lab: Lab) -> None:
    mine = lab.tree()
    with (mine / ".gitignore").open("a") as out:
        out.write("\n# Debian packaging\n/*\n!/debian/\n")
    (mine / ".config").write_text("built")
    tree = synced(mine)
    assert (tree.src / "Makefile").is_file()
    assert (tree.src / "mm/memory.c").is_file()
    assert not (tree.src / ".config").exists()


def test_tracked_files_count_even_if_ignored(lab: Lab) -> None:
    mine = lab.tree()
    (mine / "firmware.o").write_text("blob")
    git = ["git", "-C", str(mine), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-f", "firmware.o", "Makefile", "mm/mmap.c"], check=True)
    (mine / "mm/mmap.c").unlink()
    tree = synced(mine)
    assert (tree.src / "firmware.o").is_file()
    assert not (tree.src / "mm/mmap.c").exists()
    assert not (tree.src / ".git").exists()


def test_only_what_changed_gets_a_new_time(lab: Lab) -> None:
    mine = lab.tree()
    tree = synced(mine)
    stamps = {path: path.stat().st_mtime_ns for path in tree.src.rglob("*") if path.is_file()}
    for path in mine.rglob("*.c"):
        os.utime(path)  # as `git checkout` there and back does
    memory = mine / "mm/memory.c"
    memory.write_text(memory.read_text() + "/* more */\n")
    os.utime(memory, (1, 1))  # an old time: `make` would not notice
    (mine / "mm/new.c").write_text("int new;\n")
    (mine / "kernel/fork.c").unlink()
    again = synced(mine)
    assert again.source.sha256 != tree.source.sha256
    now = {path: path.stat().st_mtime_ns for path in tree.src.rglob("*") if path.is_file()}
    changed = {str(path.relative_to(tree.src)) for path in now if now[path] != stamps.get(path)}
    assert changed == {"mm/memory.c", "mm/new.c"}
    assert now[tree.src / "mm/memory.c"] > max(stamps.values())
    assert not (tree.src / "kernel/fork.c").exists()


def test_an_interrupted_copy_is_finished_and_forgets_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = lab.tree()
    copied = 0
    real = tree_module.replace

    def dying(one: Path, two: Path, stamp: int) -> None:
        nonlocal copied
        copied += 1
        if copied > 5:
            raise KeyboardInterrupt
        real(one, two, stamp)

    monkeypatch.setattr(directory, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        synced(mine)
    monkeypatch.setattr(directory, "replace", real)
    (mine / "Kconfig").unlink()
    tree = synced(mine)
    files = {str(path.relative_to(mine)) for path in mine.rglob("*") if path.is_file()}
    assert {str(path.relative_to(tree.src)) for path in tree.src.rglob("*") if path.is_file()} == files
