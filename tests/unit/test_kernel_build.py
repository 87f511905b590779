"""Building, on a kernel tree in miniature with a real compiler."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from numalab.errors import ExperimentError, MissingError, UserError
from numalab.kernel import bzimage, locks, make, preflight, source, store, tools
from numalab.kernel.build import build, check, configure
from numalab.kernel.image import KernelImage
from numalab.kernel.plan import settings_of
from numalab.paths import ROOT
from tests.unit.kernel_fakes import BASE_CONFIG, CODE_PATCH, COMMENT_PATCH, Lab, Told, make_lab


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    lab = make_lab(tmp_path, monkeypatch)
    lab.serve_source()
    lab.patch("common/0001-code.patch", CODE_PATCH)
    lab.series("common/0001-code.patch")
    return lab


def made(told: Told) -> list[str]:
    """Return what make made."""
    return [text.split()[-1] for _, _, text in told.advances]


def log_of(image: KernelImage) -> str:
    return (image.path.parent / "build.log").read_text()


ALL = {"mm/memory.o", "mm/mmap.o", "kernel/fork.o", "vmlinux", "arch/x86/boot/bzImage"}


def test_from_nothing_to_an_image(lab: Lab) -> None:
    told = Told()
    image = build(progress=told)
    assert set(made(told)) == ALL
    assert (image.name, image.release, image.modules) == ("patched", "6.12.117-numalab", None)
    assert bzimage.release(image.path) == image.release
    assert image.vmlinux is not None
    assert image.build_id == bzimage.build_id(image.vmlinux)
    assert len(image.build_id) == 40
    assert image.config is not None
    assert "CONFIG_NODES_SHIFT=6\n" in image.config.read_text()
    facts = image.provenance
    assert facts["source"]["version"] == "6.12.117"
    assert facts["source"]["package"] == "linux-source-6.12 6.12.117-1"
    assert facts["series"]["patches"] == ["common/0001-code.patch"]
    assert facts["compiler"].startswith("gcc")
    assert facts["bytes"]["bzImage"] == image.path.stat().st_size
    assert facts["reproduce"] == "numalab kernel build"
    assert json.loads(json.dumps(facts)) == facts
    assert "tables[node] -= 1" in (lab.cache / "trees" / facts["source"]["id"] / "src/mm/memory.c").read_text()
    assert {path.name for path in image.path.parent.iterdir()} == {
        *("bzImage", "vmlinux", "System.map", "config", "build.log", "metadata.json", ".used"),
    }
    assert not list((lab.cache / "kernels").glob(".tmp*"))


def test_the_second_time_it_comes_from_the_cache_even_without_its_tree(lab: Lab) -> None:
    first = build()
    subprocess.run(["rm", "-r", lab.cache / "trees" / first.provenance["source"]["id"]], check=True)
    told = Told()
    assert build(progress=told).path == first.path
    assert told.steps == []


def test_after_editing_one_patch_one_file_is_compiled(lab: Lab) -> None:
    first = build()
    lab.patch("common/0001-code.patch", ("mm/memory.c", "tables[node]--", "tables[node] -= 3"))
    told = Told()
    second = build(progress=told)
    assert second.path != first.path
    assert set(made(told)) == {"mm/memory.o", "vmlinux", "arch/x86/boot/bzImage"}
    assert {total for _, total, _ in told.advances} == {None}, "nobody can know how much that will be"
    assert second.build_id != first.build_id
    assert first.path.is_file(), "the older kernel stays"


def test_a_header_in_a_patch_recompiles_its_users(lab: Lab) -> None:
    build()
    lab.patch("common/0002-header.patch", ("include/linux/mm.h", "int map(int node);", "int map(int node); /* x */"))
    lab.series("common/0001-code.patch", "common/0002-header.patch")
    told = Told()
    build(progress=told)
    assert set(made(told)) == ALL - {"kernel/fork.o"}
    lab.series("common/0001-code.patch")
    told = Told()
    build(progress=told)
    assert told.advances == [], "back to an older series: the cache has it"


def test_sets_are_kernels_of_their_own(lab: Lab) -> None:
    lab.patch("mitosis/0001-comment.patch", COMMENT_PATCH)
    lab.series("common/0001-code.patch", "mitosis/0001-comment.patch")
    whole = build()
    common = build(sets=["common"])
    none = build(sets=["none"])
    assert (common.name, none.name) == ("patched:common", "patched:none")
    assert common.provenance["reproduce"] == "numalab kernel build --sets common"
    assert len({whole.path, common.path, none.path}) == 3
    assert none.provenance["series"]["patches"] == []
    lab.patch("mitosis/0001-comment.patch", ("mm/memory.c", "One table page more", "Another table page"))
    told = Told()
    build(progress=told)
    assert set(made(told)) <= {"mm/memory.o", "vmlinux", "arch/x86/boot/bzImage"}, "going back and forth costs nothing"
    with pytest.raises(UserError, match="mitosis"):
        build(sets=["mitoss"])


def test_the_debug_flavour(lab: Lab) -> None:
    image = build("debug")
    assert image.name == "debug"
    assert image.config is not None
    assert "CONFIG_KASAN=y\n" in image.config.read_text()
    assert image.path != build().path


def test_a_sets_own_fragment_counts_when_the_set_is_in(lab: Lab) -> None:
    lab.config(common="# Wanted by the set.\nCONFIG_KASAN=y\n")
    with_it, without = build(), build(sets=["none"])
    assert with_it.config is not None
    assert without.config is not None
    assert "CONFIG_KASAN=y\n" in with_it.config.read_text()
    assert "CONFIG_KASAN=y\n" not in without.config.read_text()


def test_a_sets_debug_fragment_is_for_the_debug_flavour_with_that_set(lab: Lab) -> None:
    lab.config(**{"debug": "# Wanted.\n", "common-debug": "# Wanted by the set.\nCONFIG_KASAN=y\n"})
    told = {
        (flavour, sets): "CONFIG_KASAN" in settings_of(flavour, sets, lab.patches)
        for flavour in ("patched", "debug")
        for sets in ((), ("common",))
    }
    assert told == {
        ("patched", ()): False,
        ("patched", ("common",)): False,
        ("debug", ()): False,
        ("debug", ("common",)): True,
    }


def test_modules_are_kept_without_links_into_the_build(lab: Lab) -> None:
    lab.config(base=BASE_CONFIG + "CONFIG_MODULES=y\n")
    image = build()
    assert image.modules == image.path.parent / "lib/modules/6.12.117-numalab"
    assert {path.name for path in image.modules.rglob("*")} == {"kernel", "sample.ko", "modules.dep"}


def test_a_directory_as_source_rebuilds_only_what_was_edited(lab: Lab) -> None:
    mine = lab.tree()
    first = build(request=str(mine))
    assert first.provenance["source"]["kind"] == "directory"
    assert first.provenance["reproduce"] == f"numalab kernel build --source {mine}"
    (mine / "mm/mmap.c").write_text((mine / "mm/mmap.c").read_text() + "\nint more;\n")
    told = Told()
    second = build(request=str(mine), progress=told)
    assert set(made(told)) == {"mm/mmap.o", "vmlinux", "arch/x86/boot/bzImage"}
    assert second.provenance["source"]["sha256"] != first.provenance["source"]["sha256"]
    # An edit of a file that a patch touches, too.
    (mine / "mm/memory.c").write_text((mine / "mm/memory.c").read_text() + "\nint again;\n")
    told = Told()
    build(request=str(mine), progress=told)
    assert set(made(told)) == {"mm/memory.o", "vmlinux", "arch/x86/boot/bzImage"}
    assert store.selected() is not None
    build()
    assert (store.selected() or pytest.fail()).kind == "debian"


def test_same_inputs_same_image(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build()
    monkeypatch.setenv("XDG_CACHE_HOME", str(lab.top / "elsewhere"))
    monkeypatch.setenv("MAKEFLAGS", "-n")
    monkeypatch.setenv("LOCALVERSION", "-mine")
    second = build()
    assert second.path.read_bytes() == first.path.read_bytes()
    assert second.provenance["id"] == first.provenance["id"]


# --- what goes wrong


def test_a_compiler_error_ends_the_build_and_the_message(lab: Lab) -> None:
    lab.patch("common/0001-code.patch", ("mm/memory.c", "tables[node]--;", "no_such_table[node]--;"))
    with pytest.raises(ExperimentError) as caught:
        build()
    lines = str(caught.value).splitlines()
    assert lines[0] == "building the patched kernel failed:"
    assert lines[1].startswith("  mm/memory.c:21:9: error: 'no_such_table' undeclared")
    log = Path(lines[-1].removeprefix("full log: "))
    assert "no_such_table" in log.read_text()
    assert log.read_text().startswith("$ make -C ")
    assert store.entries() == []
    lab.patch("common/0001-code.patch", CODE_PATCH)
    told = Told()
    build(progress=told)
    assert "mm/memory.o" in made(told)


def test_values_that_do_not_survive_are_listed_with_their_lines(lab: Lab) -> None:
    lab.config(
        base="CONFIG_NUMA=y\n# why\nCONFIG_NO_SUCH=y\nCONFIG_ACPI=y\n# CONFIG_ACPI_TABLES is not set\nCONFIG_TINY=y\n"
    )
    with pytest.raises(ExperimentError) as caught:
        build()
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 of 5 asked-for values did not survive `make olddefconfig`:"
    assert lines[1:] == [
        "  base.config:1: CONFIG_NUMA: wanted y, got not set; depends on SMP && ACPI (Kconfig)",
        "  base.config:3: CONFIG_NO_SUCH: wanted y, got not set; this source has no such symbol",
        "  base.config:5: CONFIG_ACPI_TABLES: wanted not set, got y; selected at Kconfig:20",
    ]


def test_a_broken_kconfig_is_shown(lab: Lab) -> None:
    lab.patch("common/0001-code.patch", ("Kconfig", "config KASAN", "confik KASAN"))
    with pytest.raises(ExperimentError, match=r"(?s)make tinyconfig failed:\n  Kconfig:\d+: syntax error\nfull log: "):
        build()


def test_a_patch_that_does_not_apply_stops_before_anything_is_built(lab: Lab) -> None:
    text = (lab.patches / "common/0001-code.patch").read_text()
    (lab.patches / "common/0001-code.patch").write_text(text.replace("tables[node]--", "desks[node]--"))
    with pytest.raises(ExperimentError, match=r"common/0001-code\.patch does not apply to Linux 6\.12\.117 \(Debian"):
        build()
    assert not list((lab.cache / "trees").glob("*/out"))


def test_missing_tools_are_said_before_anything_is_fetched(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "lacking", lambda settings: [tools.Lack("flex", "flex")])
    with pytest.raises(MissingError, match="lacks: flex") as caught:
        build()
    assert caught.value.remedy.startswith("apt-get install flex ")
    assert not (lab.archive / "log").exists()


def test_too_little_disk_is_said_before_anything_is_fetched(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "BUILD_BYTES", {"patched": 1 << 60})
    with pytest.raises(MissingError, match=r"needs 1048576\.0 TiB on the disk of .* free") as caught:
        build()
    assert "cache prune" in caught.value.remedy
    assert not (lab.archive / "log").exists()
    monkeypatch.setattr(preflight, "BUILD_BYTES", {"patched": 0})
    tree = source.locate(None, source.read_base(), Told())
    monkeypatch.setattr(preflight, "BUILD_BYTES", {"patched": 1 << 60})
    with pytest.raises(MissingError, match="building the patched kernel needs"):
        build()
    assert not (tree.root / "out/patched/vmlinux").exists()


def test_a_disk_that_fills_up_is_said(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numalab.kernel.store.shutil.copy2", full)
    with pytest.raises(MissingError, match=r"the disk of .* is full") as caught:
        build()
    assert "resumes" in caught.value.remedy
    monkeypatch.undo()


def test_interrupted_it_leaves_no_process_no_entry_and_resumes(lab: Lab) -> None:
    tree = lab.tree()
    (tree / "slow").touch()
    script = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n"
        "from pathlib import Path\n"
        "from numalab.kernel import plan, preflight, source, build\n"
        f"plan.PATCHES = source.PATCHES = Path({str(lab.patches)!r})\n"
        "preflight.lacking = lambda settings: []\n"
        "preflight.SOURCE_BYTES = 0\n"
        "preflight.BUILD_BYTES = {'patched': 0}\n"
        f"build.build(request={str(tree)!r})\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script])
    located = source.locate(str(tree), source.read_base(), Told())
    log = located.root / "out/patched/build.log"
    deadline = time.monotonic() + 30
    while not (log.is_file() and "BUILD" in log.read_text()) and time.monotonic() < deadline:
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    killed = time.monotonic()
    # The lock is free only when make, too, is gone; it was told to end when numalab died.
    with locks.exclusive(located.lock_name):
        assert not [line for line in processes() if str(located.root) in line]
    assert time.monotonic() - killed < 10
    assert store.entries() == []
    (tree / "slow").unlink()
    told = Told()
    build(request=str(tree), progress=told)
    assert set(made(told)) <= {"arch/x86/boot/bzImage"}, "what was made before is not made again"


def test_ctrl_c_ends_make_and_its_children(lab: Lab) -> None:
    tree = lab.tree()
    (tree / "slow").touch()

    class Impatient(Told):
        def advance(self, done: int, total: int | None, text: str = "") -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(request=str(tree), progress=Impatient())
    located = source.locate(str(tree), source.read_base(), Told())
    assert not [line for line in processes() if str(located.root) in line]
    assert not locks.held(located.lock_name)


def processes() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in found if line.startswith(("make", "gcc", "sleep", "sh "))]


def test_a_second_build_waits_and_says_so(lab: Lab) -> None:
    tree = source.locate(None, source.read_base(), Told())
    told = Told()
    with locks.exclusive(tree.lock_name):
        probe = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import fcntl,os; fcntl.flock(os.open({str(lab.cache)!r} + '/locks/"
                f"{tree.lock_name}.lock', os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)",
            ],
            stderr=subprocess.DEVNULL,
        )
        assert probe.wait() != 0, "the premise: another process sees the lock"
        reader, writer = os.pipe()
        if os.fork() == 0:  # the lock is released by our end, while the child waits
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.close(reader)
    # The forked child still shares the descriptor, as make would: the lock is not free yet.
    assert locks.held(tree.lock_name)
    os.close(writer)
    os.wait()
    with locks.exclusive(tree.lock_name, on_wait=told.note):
        assert told.notes == []


# --- check and configure


def test_check_applies_without_building(lab: Lab) -> None:
    mine = lab.tree()
    memory = mine / "mm/memory.c"
    memory.write_text("/* one more line */\n" + memory.read_text())
    before = {path: path.stat().st_mtime_ns for path in mine.rglob("*")}
    done = check(str(mine))
    assert [offset.lines for offset in done.overlay.offsets] == [1]
    assert {path: path.stat().st_mtime_ns for path in mine.rglob("*")} == before
    assert check(None).overlay.offsets == ()
    build()
    assert check(None).overlay.offsets == (), "the kept tree is patched now, what is checked is the source"
    assert check(None, sets=["none"]).overlay.patches == ()


def test_configure_gives_the_whole_config(lab: Lab) -> None:
    text = configure("debug", None)
    assert "CONFIG_KASAN=y\n" in text
    assert "CONFIG_ACPI_TABLES=y\n" in text
    assert "# CONFIG_SLUB_TINY is not set\n" in text


# --- make


def test_progress_learns_from_the_last_whole_build(lab: Lab) -> None:
    build(progress=(told := Told()))
    assert told.advances[0][1] == 2350
    lab.config(debug="# d\nCONFIG_KASAN=y\n")
    tree = lab.cache / "trees" / next(iter(store.entries()))["source"]["id"]
    assert json.loads((tree / "out/steps-patched.json").read_text()) == {"steps": 5, "objects": 3}
    build(sets=["none"], progress=(told := Told()))
    assert [(done, total) for done, total, _ in told.advances] == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_ccache_takes_the_place_of_gcc_in_path_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "which", lambda tool: None)
    assert make.masquerade(tmp_path / "m") is None
    monkeypatch.setattr(tools, "which", lambda tool: f"/opt/{tool}")
    where = make.masquerade(tmp_path / "m")
    assert where is not None
    assert (where / "gcc").readlink() == Path("/opt/ccache")
    monkeypatch.setenv("PATH", "/usr/bin")
    assert make.environment(where)["PATH"] == f"{where}:/usr/bin"
    monkeypatch.setattr(tools, "which", lambda tool: f"/new/{tool}")
    make.masquerade(where)
    assert (where / "gcc").readlink() == Path("/new/ccache")
    assert "CC" not in make.environment(where)
