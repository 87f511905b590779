"""The kept tree: only what really changed gets a new time, per selection of patch sets."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from numalab.kernel.patches import Overlay
from numalab.kernel.tree import Source, Tree

FILES = {"mm/a.c": "a", "mm/b.c": "b", "mm/c.c": "c", "include/x.h": "x"}
OLD = 1_600_000_000_000_000_000


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    for name, text in FILES.items():
        path = tmp_path / "tree/src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, ns=(OLD, OLD))
    return Tree(tmp_path / "tree", Source("id", "tarball", "6.12.1", "", "here"))


def overlay(tree: Tree, **changes: str | None) -> Overlay:
    """Return an overlay of mm/NAME.c → text (None: deleted)."""
    top = tree.root.parent / "overlay"
    shutil.rmtree(top, ignore_errors=True)
    (top / "mm").mkdir(parents=True)
    for name, text in changes.items():
        if text is not None:
            (top / f"mm/{name}.c").write_text(text)
    return Overlay(top, frozenset(f"mm/{name}.c" for name in changes), (), ())


def texts(tree: Tree) -> dict[str, str]:
    return {str(path.relative_to(tree.src)): path.read_text() for path in tree.src.rglob("*") if path.is_file()}


def stamps(tree: Tree) -> dict[str, int]:
    return {str(path.relative_to(tree.src)): path.stat().st_mtime_ns for path in tree.src.rglob("*") if path.is_file()}


def test_apply_change_again_and_go_back(tree: Tree) -> None:
    assert tree.apply("", overlay(tree, a="a1", b=None, new="n")) == 3
    assert texts(tree) == {"mm/a.c": "a1", "mm/c.c": "c", "mm/new.c": "n", "include/x.h": "x"}
    first = stamps(tree)
    assert first["mm/c.c"] == first["include/x.h"] == OLD < first["mm/a.c"]

    assert tree.apply("", overlay(tree, a="a1", b=None, new="n")) == 0
    assert stamps(tree) == first

    assert tree.apply("", overlay(tree, a="a2", b=None, new="n")) == 1
    second = stamps(tree)
    assert second["mm/a.c"] > first["mm/a.c"]
    assert {**second, "mm/a.c": 0} == {**first, "mm/a.c": 0}

    tree.apply("", overlay(tree))
    assert texts(tree) == FILES
    third = stamps(tree)
    # What was compiled last was patched: the pristine content is as new as any other to make.
    assert third["mm/a.c"] > second["mm/a.c"]
    assert third["mm/b.c"] > OLD
    assert tree.apply("", overlay(tree)) == 0


def test_originals_stay_readable_while_patched(tree: Tree) -> None:
    tree.apply("", overlay(tree, a="a1", b=None, new="n"))
    assert (tree.original("mm/a.c") or Path()).read_text() == "a"
    assert (tree.original("mm/b.c") or Path()).read_text() == "b"
    assert (tree.original("mm/c.c") or Path()).read_text() == "c"
    assert tree.original("mm/new.c") is None
    assert tree.original("mm/never.c") is None


def test_two_selections_do_not_rebuild_each_other(tree: Tree) -> None:
    tree.apply("", overlay(tree, a="a1", b="b1"))
    whole = stamps(tree)
    tree.apply("none", overlay(tree))
    assert texts(tree) == FILES
    assert set(stamps(tree).values()) == {OLD}, "a selection that never saw a patch sees the source's own times"
    tree.apply("common", overlay(tree, a="a1"))
    common = stamps(tree)
    assert common["mm/a.c"] > whole["mm/a.c"]
    tree.apply("", overlay(tree, a="a1", b="b1"))
    assert stamps(tree) == whole
    tree.apply("common", overlay(tree, a="a1"))
    assert stamps(tree) == common


def test_a_content_that_comes_back_is_new_to_its_selection(tree: Tree) -> None:
    """a1 → a2 → a1: the objects are of a2, so a1 must be newer than they are."""
    tree.apply("", overlay(tree, a="a1"))
    tree.apply("", overlay(tree, a="a2"))
    second = stamps(tree)["mm/a.c"]
    tree.apply("", overlay(tree, a="a1"))
    assert stamps(tree)["mm/a.c"] > second


def test_a_crash_between_files_and_record_errs_towards_compiling(tree: Tree) -> None:
    tree.apply("", overlay(tree, a="a1"))
    first = stamps(tree)["mm/a.c"]
    (tree.root / "variants.json").unlink()
    tree.apply("", overlay(tree, a="a1"))
    assert stamps(tree)["mm/a.c"] > first


def test_files_are_replaced_not_written_into(tree: Tree) -> None:
    other = tree.root.parent / "hard-link.c"
    other.hardlink_to(tree.src / "mm/a.c")
    tree.apply("", overlay(tree, a="a1"))
    assert other.read_text() == "a"


def test_build_directories_have_names_of_their_own(tree: Tree) -> None:
    names = {tree.out(flavour, label).name for flavour in ("patched", "debug") for label in ("", "none", "a,b")}
    assert names == {"patched", "patched-none", "patched-a+b", "debug", "debug-none", "debug-a+b"}
