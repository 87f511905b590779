"""What a bzImage says about itself: its release (in the boot header) and the build-id of its vmlinux.

Source: Documentation/arch/x86/boot.rst of the kernel, "The Real-Mode Kernel Header".
"""

from __future__ import annotations

import gzip
import io
import lzma
import subprocess
import zlib
from pathlib import Path

from numalab.errors import UserError
from numalab.kernel import tools

_SETUP_SECTS, _MAGIC, _VERSION, _RELEASE, _PAYLOAD = 0x1F1, 0x202, 0x206, 0x20E, 0x248
_SECTOR = 512


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def release(path: Path) -> str:
    """Return what `uname -r` will print in the kernel image `path`.

    Raises:
        UserError: it is no bzImage.
    """
    with path.open("rb") as stream:
        head = stream.read(64 * 1024)
    at = _number(head, _RELEASE, 2) + _SECTOR
    words = head[at : head.find(b"\0", at)].split()
    if head[_MAGIC : _MAGIC + 4] != b"HdrS" or not words:
        raise UserError(f"{path} is not a bzImage (an x86 kernel image, as in /boot/vmlinuz-*)")
    return words[0].decode(errors="replace")


def vmlinux(path: Path) -> bytes | None:
    """Return the ELF file packed in a bzImage, None when it cannot be unpacked here."""
    data = path.read_bytes()
    if _number(data, _VERSION, 2) < 0x0208:
        return None
    start = ((data[_SETUP_SECTS] or 4) + 1) * _SECTOR + _number(data, _PAYLOAD, 4)
    packed = data[start : start + _number(data, _PAYLOAD + 4, 4)]
    try:
        elf = _unpack(packed)
    except (OSError, EOFError, lzma.LZMAError, zlib.error):
        return None
    return elf if elf.startswith(b"\x7fELF") else None


def _unpack(packed: bytes) -> bytes:
    if packed.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=io.BytesIO(packed[:-4])).read()
    if packed.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(packed)
    # Formats Python does not read; each is followed by four bytes (the size), which the tool
    # complains about after it has written everything.
    for magic, tool in ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\x02\x21\x4c\x18", "lz4"), (b"BZh", "bzip2")):
        if packed.startswith(magic) and tools.which(tool):
            return subprocess.run([tool, "-dc"], input=packed, capture_output=True, check=False).stdout
    return b""


def build_id(elf: bytes | Path) -> str:
    """Return the GNU build-id (hex) of an ELF file, "" when it has none."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import NoteSection

    with io.BytesIO(elf) if isinstance(elf, bytes) else elf.open("rb") as stream:
        try:
            for section in ELFFile(stream).iter_sections():
                if isinstance(section, NoteSection):
                    for note in section.iter_notes():
                        # Other owners (Xen) number their notes alike.
                        if note["n_name"] == "GNU" and note["n_type"] == "NT_GNU_BUILD_ID":
                            return str(note["n_desc"])
        except ELFError:
            return ""
    return ""
