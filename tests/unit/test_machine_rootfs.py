"""The initramfs: readable by the kernel's own rules, the same bytes each time, modules in order."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numalab.errors import UserError
from numalab.kernel.image import KernelImage
from numalab.machine import rootfs


def parse(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Read a newc archive as the kernel does (init/initramfs.c)."""
    entries: dict[str, tuple[int, bytes]] = {}
    offset = 0
    while True:
        assert archive[offset : offset + 6] == b"070701"
        fields = [int(archive[offset + 6 + 8 * n : offset + 14 + 8 * n], 16) for n in range(13)]
        name_size, size = fields[11], fields[6]
        name = archive[offset + 110 : offset + 110 + name_size - 1].decode()
        start = (offset + 110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            return entries
        entries[name] = (fields[1], archive[start : start + size])
        offset = (start + size + 3) & ~3


@given(st.dictionaries(st.from_regex(r"[a-z]{1,9}(/[a-z]{1,9}){0,2}", fullmatch=True), st.binary(max_size=99)))
def test_files_come_back(files: dict[str, bytes]) -> None:
    cpio = rootfs.CpioWriter()
    for name, data in files.items():
        cpio.file(name, data)
    assert {name: data for name, (_, data) in parse(cpio.finish()).items()} == files


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelImage:
    """A kernel with modules that need one another, one of them compressed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    modules = tmp_path / "lib/modules/6.12.0"
    (modules / "kernel").mkdir(parents=True)
    for name in ("netfs", "9pnet", "9pnet_virtio", "virtio_ring"):
        (modules / f"kernel/{name}.ko").write_bytes(name.encode())
    (modules / "kernel/9p.ko.xz").write_bytes(lzma.compress(b"9p"))
    (modules / "modules.dep").write_text(
        "kernel/9p.ko.xz: kernel/netfs.ko kernel/9pnet.ko\n"
        "kernel/9pnet_virtio.ko: kernel/9pnet.ko kernel/virtio_ring.ko\n"
        "kernel/9pnet.ko:\nkernel/netfs.ko:\nkernel/virtio_ring.ko:\n"
    )
    return KernelImage("k", tmp_path / "bzImage", "6.12.0", modules)


def test_modules_come_after_those_they_need(kernel: KernelImage) -> None:
    entries = parse(rootfs.build(kernel, {}).read_bytes())
    order = [name[12:] for name in sorted(entries) if name.startswith("modules/")]
    assert set(order) == {"9pnet.ko", "virtio_ring.ko", "9pnet_virtio.ko", "netfs.ko", "9p.ko"}
    for needs in (("9pnet.ko", "9pnet_virtio.ko"), ("virtio_ring.ko", "9pnet_virtio.ko"), ("netfs.ko", "9p.ko")):
        assert order.index(needs[0]) < order.index(needs[1])
    assert next(data for name, (_, data) in entries.items() if name.endswith("-9p.ko")) == b"9p"


def test_the_user_land(kernel: KernelImage, tmp_path: Path) -> None:
    program = tmp_path / "prog"
    program.write_bytes(b"\x7fELF")
    program.chmod(0o755)
    path = rootfs.build(kernel, {"/bin/ls": program, "/data/deep/file": program})
    entries = parse(path.read_bytes())
    assert entries["init"][0] == 0o100755
    assert entries["bin/sh"] == (0o120777, b"busybox")
    assert entries["bin/ls"] == (0o100755, b"\x7fELF")
    assert entries["data/deep"][0] == 0o040755
    assert entries["dev/console"][0] == 0o020600
    again = path.read_bytes()
    path.unlink()
    assert rootfs.build(kernel, {"/data/deep/file": program, "/bin/ls": program}).read_bytes() == again


def test_an_extra_file_that_is_not_there(kernel: KernelImage, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file .wanted in the guest as /bin/x"):
        rootfs.build(kernel, {"/bin/x": tmp_path / "nothing"})
