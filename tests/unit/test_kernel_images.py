"""Kernels by name: stock from (a fake) Debian, built ones from the cache, files; and wrong names."""

from __future__ import annotations

import lzma
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from numalab.errors import ExperimentError, MissingError, UserError
from numalab.kernel import bzimage, images, plan, source, stock, store, tools
from numalab.kernel.build import build
from numalab.kernel.images import available, resolve
from numalab.kernel.series import changes
from numalab.paths import PATCHES, ROOT
from tests.unit.kernel_fakes import CODE_PATCH, FAKE_LINUX, Lab, Told, make_lab

RELEASE = "6.12.117+deb13-amd64"
IMAGE = f"linux-image-{RELEASE}"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    lab = make_lab(tmp_path, monkeypatch)
    lab.serve_source()
    lab.patch("common/0001-code.patch", CODE_PATCH)
    lab.series("common/0001-code.patch")
    return lab


def a_bzimage(where: Path, release: str = RELEASE) -> tuple[Path, str]:
    """Make a bzImage around a real little ELF file; returns it and its build-id."""
    where.mkdir(parents=True, exist_ok=True)
    elf = where / "elf"
    (where / "x.c").write_text("void _start(void) {}\n")
    subprocess.run(["gcc", "-nostdlib", "-static", "-Wl,--build-id=sha1", "-o", elf, where / "x.c"], check=True)
    image = where / "bzImage"
    text = f"{release} (debian-kernel@lists.debian.org) #1 SMP"
    subprocess.run([sys.executable, FAKE_LINUX / "scripts/mkimage.py", elf, image, text], check=True)
    return image, bzimage.build_id(elf)


def serve_stock(lab: Lab, *, meta: str = "linux-image-amd64", usr: bool = True) -> str:
    image, build_id = a_bzimage(lab.top / "stock")
    module = lab.top / "stock/virtio.ko"
    shutil.copy2(lab.top / "stock/elf", module)
    top = "usr/lib" if usr else "lib"
    files = {
        f"boot/vmlinuz-{RELEASE}": image,
        f"boot/config-{RELEASE}": FAKE_LINUX / "Kconfig",
        f"{top}/modules/{RELEASE}/kernel/virtio.ko": module,
        f"{top}/modules/{RELEASE}/modules.order": FAKE_LINUX / "Kconfig",
        f"usr/share/doc/{IMAGE}/copyright": FAKE_LINUX / "Kconfig",
    }
    lab.serve(IMAGE, "6.12.117-1", files)
    lab.serve(meta, "6.12.117-1", {}, depends=f"{IMAGE} (= 6.12.117-1), kmod")
    return build_id


# --- stock


@pytest.mark.skipif(tools.which("depmod") is None, reason="no depmod (package kmod) here")
@pytest.mark.parametrize(("meta", "usr"), [("linux-image-amd64", True), ("linux-image-6.12-amd64", False)])
def test_stock_is_downloaded_once_and_whole(lab: Lab, meta: str, usr: bool) -> None:
    build_id = serve_stock(lab, meta=meta, usr=usr)
    told = Told()
    image = resolve("stock", progress=told)
    assert told.steps[0] == f"downloading {IMAGE} 6.12.117-1, Debian's prebuilt kernel"
    assert (image.name, image.release, image.build_id) == ("stock", RELEASE, build_id)
    assert image.modules is not None
    assert (image.modules / "kernel/virtio.ko").is_file()
    assert (image.modules / "modules.dep").is_file(), "modules can be found by name"
    assert image.config is not None
    assert image.config.is_file()
    assert image.provenance["package_version"] == "6.12.117-1"
    assert len(image.provenance["package_sha256"]) == 64
    (lab.archive / "offline").touch()
    told = Told()
    assert resolve("stock", progress=told) == image
    assert told.steps == []
    assert not (image.path.parent / "usr").exists()


def test_no_stock_to_be_had(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match=r"no prebuilt Linux 6\.12") as caught:
        resolve("stock")
    assert "apt-get update" in caught.value.remedy
    lab.serve("linux-image-amd64", "6.1.170-1", {}, depends="linux-image-6.1.0-40-amd64 (= 6.1.170-1)")
    with pytest.raises(MissingError, match=r"no prebuilt Linux 6\.12"):
        resolve("stock")
    serve_stock(lab, meta="linux-image-6.12-amd64")
    real = tools.which
    monkeypatch.setattr(tools, "which", lambda tool: None if tool == "depmod" else real(tool))
    with pytest.raises(MissingError, match="depmod") as caught:
        resolve("stock")
    assert caught.value.remedy.startswith("apt-get install kmod")


def test_a_package_without_a_kernel(lab: Lab) -> None:
    lab.serve(IMAGE, "6.12.117-1", {"boot/readme": FAKE_LINUX / "Kconfig"})
    lab.serve("linux-image-amd64", "6.12.117-1", {}, depends=IMAGE)
    with pytest.raises(ExperimentError, match="holds no kernel image"):
        stock.fetch(Told())


# --- built ones


def test_not_built_says_the_command(lab: Lab) -> None:
    for name, words in (
        ("patched", "numalab kernel build"),
        ("debug", "numalab kernel build --debug"),
        ("debug:common", "numalab kernel build --debug"),
        ("races", "numalab kernel build --races"),
        ("patched:none", "numalab kernel build --sets none"),
    ):
        with pytest.raises(MissingError, match="is not built") as caught:
            resolve(name)
        assert caught.value.remedy == words


def test_built_it_is_found_quickly_by_name_and_by_id(lab: Lab) -> None:
    built = build()
    began = time.perf_counter()
    image = resolve("patched")
    seconds = time.perf_counter() - began
    assert image == built
    assert seconds < 0.2
    assert resolve(built.provenance["id"]).path == built.path
    assert resolve(built.provenance["id"][:8]).name == built.provenance["id"][:8]


def test_build_on_demand(lab: Lab) -> None:
    image = resolve("debug:none", build=True)
    assert (image.name, image.provenance["series"]["patches"]) == ("debug:none", [])
    assert resolve("patched", build=True).name == "patched"
    mine = lab.tree()
    build(request=str(mine))
    assert resolve("debug", build=True).provenance["source"]["origin"] == str(mine), "the source chosen last"


def test_other_inputs_are_another_kernel(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build()
    lab.patch("common/0001-code.patch", ("mm/memory.c", "tables[node]--", "tables[node] -= 3"))
    with pytest.raises(MissingError) as caught:
        resolve("patched")
    assert first.provenance["id"] in str(caught.value)
    lab.patch("common/0001-code.patch", CODE_PATCH)
    assert resolve("patched").path == first.path
    monkeypatch.setattr(images, "compiler", lambda: "gcc (Debian 15.1.0) 15.1.0")
    with pytest.raises(MissingError):
        resolve("patched")
    monkeypatch.setattr(images, "compiler", lambda: "")
    assert resolve("patched").path == first.path, "no compiler here: the one it was built with is as good"


def test_comments_in_a_fragment_do_not_rebuild(lab: Lab) -> None:
    built = build()
    base = lab.patches / "configs/base.config"
    base.write_text("# A better reason.\n" + base.read_text())
    assert resolve("patched").path == built.path
    base.write_text(base.read_text().replace("NODES_SHIFT=6", "NODES_SHIFT=4"))
    with pytest.raises(MissingError):
        resolve("patched")


def test_what_is_available(lab: Lab) -> None:
    assert [(row["name"], row["state"]) for row in available()] == [
        ("stock", "not downloaded"),
        ("patched", "not built"),
        ("debug", "not built"),
        ("races", "not built"),
    ]
    first = build()
    none = build(sets=["none"])
    lab.patch("common/0001-code.patch", ("mm/memory.c", "tables[node]--", "tables[node] -= 3"))
    second = build()
    rows = {row["id"]: (row["name"], row["state"]) for row in available() if row["id"]}
    assert rows == {
        second.provenance["id"]: ("patched", "ready"),
        none.provenance["id"]: ("patched:none", "ready"),
        first.provenance["id"]: ("patched", "other inputs"),
    }
    lab.series()
    assert available(), "an entry of a set that is gone is still listed"


def test_a_damaged_or_newer_entry(lab: Lab) -> None:
    image = build()
    metadata = image.path.parent / "metadata.json"
    text = metadata.read_text()
    metadata.write_text(text[:40])
    with pytest.raises(ExperimentError, match="damaged") as caught:
        resolve("patched")
    assert "rm -r" in caught.value.remedy
    metadata.write_text(text.replace('"schema": 1', '"schema": 2'))
    with pytest.raises(ExperimentError, match="schema 2"):
        resolve("patched")


# --- files and wrong names


def test_a_path_to_a_bzimage(lab: Lab) -> None:
    image, build_id = a_bzimage(lab.top / "own/boot")
    found = resolve(str(image))
    assert (found.release, found.modules, found.build_id) == (RELEASE, None, "")
    modules = lab.top / "own/lib/modules" / RELEASE
    modules.mkdir(parents=True)
    shutil.copy2(image.parent / "elf", image.parent / "vmlinux")
    found = resolve(str(image))
    assert (found.modules, found.build_id, found.vmlinux) == (modules, build_id, image.parent / "vmlinux")


def test_what_is_no_kernel(lab: Lab) -> None:
    text = lab.top / "notes.txt"
    text.write_text("x")
    with pytest.raises(UserError, match="not a bzImage"):
        resolve(str(text))
    with pytest.raises(UserError, match="there is no kernel image"):
        resolve(str(lab.top / "bzImage"))
    with pytest.raises(UserError, match=r"no kernel is called 'pached' \(did you mean 'patched'\?\)"):
        resolve("pached")
    with pytest.raises(UserError, match=r"no patch set 'comon'.*'common'"):
        resolve("patched:comon")
    with pytest.raises(UserError, match="no kernel is called"):
        resolve("0123456789abcdef")


def test_a_packed_vmlinux_in_other_formats(tmp_path: Path) -> None:
    image, build_id = a_bzimage(tmp_path)
    elf = (tmp_path / "elf").read_bytes()
    head = bytearray(image.read_bytes()[:1024])
    size = len(elf).to_bytes(4, "little")
    packed = {"xz": lzma.compress(elf, check=lzma.CHECK_CRC32) + size}
    if tools.which("zstd"):
        done = subprocess.run(["zstd", "-qc", tmp_path / "elf"], capture_output=True, check=True)
        packed["zstd"] = done.stdout + size
    packed["unknown"] = b"\0" * 64
    for name, payload in packed.items():
        head[0x24C:0x250] = len(payload).to_bytes(4, "little")
        image.write_bytes(bytes(head) + payload)
        found = bzimage.vmlinux(image)
        assert (found is None) == (name == "unknown")
        if found is not None:
            assert bzimage.build_id(found) == build_id
    assert bzimage.build_id(b"no ELF") == ""


def test_resolving_imports_nothing_heavy() -> None:
    script = (
        "import sys; import numalab.kernel.images; "
        "heavy = {'numpy', 'pandas', 'matplotlib', 'scipy', 'drgn', 'libvirt', 'rich', 'elftools'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_projects_own_plan_is_well_formed() -> None:
    """The real linux-patches/: every entry there, sets known, fragments in harmony, patches readable."""
    if not (PATCHES / "series").is_file():
        pytest.fail("linux-patches/series is missing")
    for flavour in plan.FLAVOURS:
        assert "CONFIG_NUMA" in plan.make_plan(flavour).settings
    for patch in plan.make_plan(plan.PATCHED).series.patches:
        assert changes(patch.path.read_text()), patch.name
    assert source.read_base().version.startswith("6.12.")
    assert store.SCHEMA == 1
