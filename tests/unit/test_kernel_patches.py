"""The series, and applying it: offsets, refusals, and git kept from thinking about repositories."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from numalab.errors import ExperimentError, MissingError, UserError
from numalab.kernel import series, tools
from numalab.kernel.patches import Offset, Original, Overlay, apply_series
from tests.unit.kernel_fakes import CODE_PATCH, COMMENT_PATCH, FAKE_LINUX, Lab, diff, make_lab

NEW_FILE = "numa/tables.c"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return make_lab(tmp_path, monkeypatch)


def below(tree: Path) -> Original:
    def original(path: str) -> Path | None:
        return file if (file := tree / path).is_file() else None

    return original


def apply(lab: Lab, tree: Path = FAKE_LINUX, *, where: str = "overlay") -> Overlay:
    top = lab.top / where
    top.mkdir()
    patches = series.read(lab.patches).patches
    return apply_series(patches, below(tree), top, onto="Linux 6.12.117")


# --- the series file


def test_comments_order_and_sets(lab: Lab) -> None:
    for name in ("common/1.patch", "mitosis/1.patch", "common/2.patch"):
        lab.patch(name, CODE_PATCH)
    (lab.patches / "series").write_text("# head\n\ncommon/1.patch # first\nmitosis/1.patch -p1\ncommon/2.patch\n")
    whole = series.read(lab.patches)
    assert [patch.name for patch in whole.patches] == ["common/1.patch", "mitosis/1.patch", "common/2.patch"]
    assert (whole.sets, whole.label) == (("common", "mitosis"), "")
    common = series.read(lab.patches, ["common"])
    assert [patch.name for patch in common.patches] == ["common/1.patch", "common/2.patch"]
    assert common.label == "common"
    assert series.read(lab.patches, ["none"]).label == "none"
    assert series.read(lab.patches, ["common", "mitosis"]).label == ""
    assert series.read(lab.patches, ["mitosis", "common"]).digest() == whole.digest() != common.digest()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("common/2.patch", r"series:2: no such patch common/2.patch \(did you mean 'common/1.patch'\?\)"),
        ("common/1.patch", "listed twice"),
        ("1.patch", "lies in no set"),
        ("common/1.patch -p0", "only -p1"),
    ],
)
def test_a_bad_line_of_the_series(lab: Lab, line: str, words: str) -> None:
    lab.patch("common/1.patch", CODE_PATCH)
    lab.series("common/1.patch", line)
    with pytest.raises(UserError, match=words):
        series.read(lab.patches)


def test_an_unknown_set_and_no_series_at_all(lab: Lab, tmp_path: Path) -> None:
    lab.patch("mitosis/1.patch", CODE_PATCH)
    lab.series("mitosis/1.patch")
    with pytest.raises(UserError, match=r"no patch set 'mitoss'.*did you mean 'mitosis'"):
        series.read(lab.patches, ["mitoss"])
    with pytest.raises(MissingError, match="series"):
        series.read(tmp_path / "nowhere")


def test_what_a_patch_changes_is_read_by_counting_lines(lab: Lab) -> None:
    before = {"mm/a.c": "".join(f"{n}\n" for n in range(40)), "mm/gone.c": "-- a/x\nold\n"}
    after = {"mm/a.c": before["mm/a.c"].replace("5\n", "five\n", 1).replace("30\n", "++ b/y\n"), NEW_FILE: "new\n"}
    text = "diff --git is a word of this message\n---\n" + diff(lab.top / "d", before, after)
    found = {(change.old, change.new): change.hunks for change in series.changes(text)}
    assert found == {("mm/a.c", "mm/a.c"): (3, 28), ("mm/gone.c", None): (1,), (None, NEW_FILE): (0,)}
    with pytest.raises(ValueError, match="ends inside a hunk"):
        series.changes(text[:-5])


# --- applying


def test_a_clean_series_leaves_only_touched_files_in_the_overlay(lab: Lab) -> None:
    lab.patch("common/1.patch", CODE_PATCH)
    new = diff(lab.top / "d", {}, {NEW_FILE: "int tables;\n"})
    (lab.patches / "common/2.patch").write_text(new)
    gone = diff(lab.top / "d", {"mm/mmap.c": (FAKE_LINUX / "mm/mmap.c").read_text()}, {})
    (lab.patches / "common/3.patch").write_text(gone)
    lab.series("common/1.patch", "common/2.patch", "common/3.patch")
    overlay = apply(lab)
    assert overlay.paths == {"mm/memory.c", NEW_FILE, "mm/mmap.c"}
    assert overlay.offsets == ()
    assert "tables[node] -= 1" in (overlay.get("mm/memory.c") or Path()).read_text()
    assert (overlay.get(NEW_FILE) or Path()).read_text() == "int tables;\n"
    assert overlay.get("mm/mmap.c") is None
    assert "tables[node]--" in (FAKE_LINUX / "mm/memory.c").read_text()


def test_offsets_are_reported(lab: Lab) -> None:
    tree = lab.tree()
    memory = tree / "mm/memory.c"
    memory.write_text("/* one */\n/* two */\n" + memory.read_text())
    lab.patch("common/1.patch", COMMENT_PATCH, CODE_PATCH)
    lab.series("common/1.patch")
    overlay = apply(lab, tree)
    assert overlay.offsets == (
        Offset("common/1.patch", "mm/memory.c", 1, 2),
        Offset("common/1.patch", "mm/memory.c", 2, 2),
    )
    assert str(overlay.offsets[1]) == "common/1.patch: mm/memory.c: hunk #2 applied +2 lines away"
    assert overlay.to_json()["offsets"][0]["lines"] == 2


def test_fuzz_is_refused_with_patch_file_and_hunk(lab: Lab) -> None:
    tree = lab.tree()
    memory = tree / "mm/memory.c"
    # `patch` would apply the second hunk with fuzz 1: only the outermost line of context differs.
    memory.write_text(memory.read_text().replace("int free_table(int node)\n{", "int free_table(int node)\n{ /* */"))
    path = lab.patch("common/0001-a.patch", COMMENT_PATCH, CODE_PATCH)
    lab.series("common/0001-a.patch")
    with pytest.raises(ExperimentError) as caught:
        apply(lab, tree)
    message = str(caught.value)
    assert message.startswith("common/0001-a.patch does not apply to Linux 6.12.117:")
    assert "mm/memory.c: hunk #2 (line " in message
    assert "fuzz" in caught.value.remedy
    if shutil.which("patch"):
        patch = ["patch", "-p1", "--dry-run", "-d", str(tree), "-i", str(path)]
        assert subprocess.run(patch, capture_output=True, check=False).returncode == 0, "GNU patch would take it"


def test_the_cause_of_a_refusal(lab: Lab) -> None:
    tree = lab.tree()
    (tree / "mm/mmap.c").unlink()
    (tree / "numa").mkdir()
    (tree / NEW_FILE).write_text("already\n")
    lab.patch("common/1.patch", ("mm/mmap.c", "return alloc_table(node);", "return 1;"))
    lab.series("common/1.patch")
    with pytest.raises(ExperimentError, match=r"mm/mmap\.c: no such file in this source"):
        apply(lab, tree)
    (lab.patches / "common/1.patch").write_text(diff(lab.top / "d", {}, {NEW_FILE: "int tables;\n"}))
    with pytest.raises(ExperimentError, match=r"numa/tables\.c: is already in this source"):
        apply(lab, tree, where="again")


def test_a_source_that_has_the_patch_already_is_told_apart(lab: Lab) -> None:
    tree = lab.tree()
    lab.patch("common/1.patch", CODE_PATCH)
    lab.series("common/1.patch")
    (tree / "mm/memory.c").write_text((tree / "mm/memory.c").read_text().replace(CODE_PATCH[1], CODE_PATCH[2]))
    with pytest.raises(ExperimentError) as caught:
        apply(lab, tree)
    assert "contains this patch already" in caught.value.remedy


def test_patches_build_on_each_other(lab: Lab) -> None:
    lab.patch("common/1.patch", CODE_PATCH)
    tree = lab.tree()
    (tree / "mm/memory.c").write_text((tree / "mm/memory.c").read_text().replace(CODE_PATCH[1], CODE_PATCH[2]))
    lab.patch("common/2.patch", ("mm/memory.c", "tables[node] -= 1;", "tables[node] -= 2;"), tree=tree)
    lab.series("common/1.patch", "common/2.patch")
    overlay = apply(lab)
    assert "tables[node] -= 2;" in (overlay.get("mm/memory.c") or Path()).read_text()
    assert overlay.patches == ("common/1.patch", "common/2.patch")


def test_a_repository_around_the_overlay_changes_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """`git apply` skips, without a word, files it takes to be outside of the repository around it."""
    subprocess.run(["git", "init", "-q", lab.top], check=True)
    (lab.top / ".gitignore").write_text("*\n")
    lab.patch("common/1.patch", CODE_PATCH)
    lab.series("common/1.patch")
    inside = lab.top / "probe"
    inside.mkdir()
    careless = ["git", "apply", str(lab.patches / "common/1.patch")]
    done = subprocess.run(careless, cwd=inside, capture_output=True, check=False)
    assert done.returncode == 0, "the premise: nothing there to patch, and git says nothing"
    monkeypatch.setenv("GIT_DIR", str(lab.top / ".git"))
    monkeypatch.setenv("GIT_PREFIX", "somewhere/")
    overlay = apply(lab)
    assert "tables[node] -= 1" in (overlay.get("mm/memory.c") or Path()).read_text()


def test_the_users_git_configuration_changes_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    config = lab.top / "gitconfig"
    config.write_text("[apply]\n\tignoreWhitespace = change\n\twhitespace = error\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    tree = lab.tree()
    memory = tree / "mm/memory.c"
    memory.write_text(memory.read_text().replace("\ttables[node]--", "        tables[node]--"))
    lab.patch("common/1.patch", CODE_PATCH)
    lab.series("common/1.patch")
    with pytest.raises(ExperimentError, match="hunk #1"):
        apply(lab, tree)


def test_a_cover_letter_and_an_unreadable_patch_in_the_series(lab: Lab) -> None:
    (lab.patches / "common").mkdir()
    (lab.patches / "common/0000-cover-letter.patch").write_text("Subject: [PATCH 0/3] tables\n\nWords.\n")
    lab.series("common/0000-cover-letter.patch")
    with pytest.raises(UserError, match=r"0000-cover-letter.patch: holds no change"):
        apply(lab)
    whole = lab.patch("common/1.patch", CODE_PATCH)
    whole.write_text(whole.read_text()[:-20].rsplit("\n", 2)[0] + "\n")
    lab.series("common/1.patch")
    with pytest.raises(UserError, match=r"1.patch: .*ends inside a hunk"):
        apply(lab, where="again")


def test_without_git_the_package_is_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "which", lambda tool: None)
    with pytest.raises(MissingError) as caught:
        apply(lab)
    assert caught.value.remedy.startswith("apt-get install git")
