"""The guest's user land: an initramfs of busybox, our first process and static programs.

Written as cpio "newc" (Documentation/driver-api/early-userspace/buffer-format.rst) with fixed
owner and time stamps: the same inputs give the same bytes everywhere.
"""

from __future__ import annotations

import hashlib
import lzma
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numalab.guest
from numalab.errors import ExperimentError, MissingError, UserError
from numalab.kernel.image import KernelImage
from numalab.paths import cache_dir, write_atomic

_GUEST_SOURCES = Path(numalab.guest.__file__).parent
_CFLAGS = ("-O2", "-static", "-Wall", "-Wextra", "-Werror")
_DIRECTORIES = (
    "bin",
    "dev",
    "etc",
    "modules",
    "proc",
    "root",
    "run",
    "sbin",
    "share",
    "sys",
    "tmp",
    "usr",
    "var",
)
_FILES = {
    "etc/passwd": "root:x:0:0:root:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
#: Host's /usr, mounted when programs of the host are asked for, is merged: these lead into it.
_LINKS = {"lib": "usr/lib", "lib64": "usr/lib64"}
#: What the first process and the outside observer need, when the kernel has them as modules.
_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "qemu_fw_cfg")
_NESTED_MODULES = ("kvm_amd", "kvm_intel")


class CpioWriter:
    """Collects files and returns them as one cpio archive."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(self, name: str, mode: int, data: bytes = b"", *, major: int = 0, minor: int = 0) -> None:
        """Add one entry; `mode` holds type and permissions, `major`/`minor` the device of a node."""
        self._inode += 1
        path = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._parts.append(_pad(header + path) + _pad(data))

    def directory(self, name: str) -> None:
        """Add a directory."""
        self.add(name, 0o040755)

    def file(self, name: str, data: bytes, *, executable: bool = False) -> None:
        """Add a regular file."""
        self.add(name, 0o100755 if executable else 0o100644, data)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self.add(name, 0o120777, target.encode())

    def finish(self) -> bytes:
        """Return the archive, trailer included."""
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def _pad(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def build(kernel: KernelImage, extra_files: Mapping[str, Path], *, nested: bool = False) -> Path:
    """Return the initramfs for `kernel` with `extra_files` (guest path → host file) added.

    Cached by content. Programs are made executable when the host's file is.

    Raises:
        MissingError: no busybox or no compiler on this machine.
        UserError: an extra file that is not there.
    """
    busybox = _busybox()
    first = first_process()
    modules = _module_files(kernel, _MODULES + (_NESTED_MODULES if nested else ()))
    for where, source in extra_files.items():
        if not source.is_file():
            raise UserError(f"{source}: no such file (wanted in the guest as {where})")
    inputs = [first, busybox, *modules, *extra_files.values()]
    digest = hashlib.sha256()
    for path in inputs:
        stat = path.stat()
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    digest.update("\0".join(extra_files).encode())
    digest.update(Path(__file__).read_bytes())
    target = cache_dir("initramfs") / f"{digest.hexdigest()[:16]}.cpio"
    if not target.exists():
        write_atomic(target, _archive(first, busybox, modules, extra_files))
    return target


def _archive(first: Path, busybox: Path, modules: list[Path], extra: Mapping[str, Path]) -> bytes:
    cpio = CpioWriter()
    parents = {str(parent) for where in extra for parent in Path(where.lstrip("/")).parents}
    for name in sorted({*_DIRECTORIES, *parents} - {"."}):
        cpio.directory(name)
    # The kernel opens /dev/console for the first process before devtmpfs is mounted.
    cpio.add("dev/console", 0o020600, major=5, minor=1)
    for name, text in _FILES.items():
        cpio.file(name, text.encode())
    for name, target in _LINKS.items():
        if name not in parents:
            cpio.link(name, target)
    cpio.file("init", first.read_bytes(), executable=True)
    cpio.file("bin/busybox", busybox.read_bytes(), executable=True)
    taken = {where.lstrip("/") for where in extra}
    for applet in _applets(busybox):
        if f"bin/{applet}" not in taken and applet != "busybox":
            cpio.link(f"bin/{applet}", "busybox")
    for number, module in enumerate(modules):
        data = module.read_bytes()
        name = module.name
        if name.endswith(".xz"):
            data, name = lzma.decompress(data), name[:-3]
        cpio.file(f"modules/{number:03}-{name}", data)
    for where, source in sorted(extra.items()):
        cpio.file(where.lstrip("/"), source.read_bytes(), executable=bool(source.stat().st_mode & 0o111))
    return cpio.finish()


def first_process() -> Path:
    """Return the compiled first process, built when its sources changed."""
    return static_program("init", sorted(_GUEST_SOURCES.glob("*.[ch]")), "the guest's first process")


def static_program(name: str, sources: Sequence[Path], what: str, *flags: str) -> Path:
    """Return a static program of a guest, compiled from C files (and headers), built when its sources changed.

    Args:
        name: of the file.
        sources: all it is made of.
        what: it is, in words, for an error.
        flags: more for the compiler.

    Raises:
        MissingError: no compiler on this machine.
        ExperimentError: it does not compile; with what the compiler said.
    """
    digest = hashlib.sha256(repr((*_CFLAGS, *flags)).encode())
    for source in sources:
        digest.update(source.read_bytes())
    target = cache_dir("guest", digest.hexdigest()[:16]) / name
    if target.exists():
        return target
    if not shutil.which("gcc"):
        raise MissingError("gcc is not installed", remedy="apt-get install gcc libc6-dev")
    building = target.with_name(f"{name}.new")
    units = [str(source) for source in sources if source.suffix == ".c"]
    command = ["gcc", *_CFLAGS, *flags, "-o", str(building), *units]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExperimentError(f"{what} did not compile:\n{done.stderr.strip()}")
    building.replace(target)
    return target


def _busybox() -> Path:
    for candidate in ("/bin/busybox", "/usr/bin/busybox"):
        path = Path(candidate)
        # A dynamic busybox would not run in a guest without libraries.
        if path.exists() and b"ld-linux" not in path.read_bytes()[:4096]:
            return path
    raise MissingError("no static busybox on this machine", remedy="apt-get install busybox-static")


def _applets(busybox: Path) -> list[str]:
    listed = subprocess.run([str(busybox), "--list"], capture_output=True, text=True, check=True)
    return sorted(set(listed.stdout.split()))


def _module_files(kernel: KernelImage, wanted: Iterable[str]) -> list[Path]:
    """Module files for `wanted`, each after those it depends on; those that are built in are left out."""
    if kernel.modules is None:
        return []
    dependencies = _read_dependencies(kernel.modules)
    ordered: list[Path] = []

    def visit(path: str) -> None:
        for needed in dependencies[path]:
            visit(needed)
        file = kernel.modules / path if kernel.modules else Path(path)
        if file not in ordered:
            ordered.append(file)

    by_name = {_module_name(path): path for path in dependencies}
    for name in wanted:
        if name in by_name:
            visit(by_name[name])
    return ordered


def _module_name(path: str) -> str:
    return Path(path).name.split(".ko")[0].replace("-", "_")


def _read_dependencies(modules: Path) -> dict[str, list[str]]:
    """modules.dep as {module: [direct and indirect needs, nearest first]}, made by depmod if absent."""
    table = modules / "modules.dep"
    if not table.exists():
        depmod = shutil.which("depmod") or "/sbin/depmod"
        if not Path(depmod).exists():
            raise MissingError("depmod is not installed", remedy="apt-get install kmod")
        base = modules.parent.parent.parent
        subprocess.run([depmod, "-b", str(base), modules.name], check=True, capture_output=True)
    lines = (line.partition(":") for line in table.read_text().splitlines())
    return {path: needs.split() for path, _, needs in lines}
