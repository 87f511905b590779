"""Where a kernel image asks a static key, and what it has there."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from numalab.errors import ExperimentError, UserError
from numalab.kernel import tools

KEY = "pgrepl_key"
#: What a place holds as long as its key is off: the kernel's own choice of NOP (arch/x86/include/asm/nops.h).
NOPS = (bytes.fromhex("6690"), bytes.fromhex("0f1f440000"))
#: Asking the key, on the way from a hook's own name to the NOP.
_ASKING = {"arch_static_branch", "pgrepl_on", "pgrepl_changed", "pgrepl_populated", "pgrepl_enabled"}
#: struct jump_entry with CONFIG_HAVE_ARCH_JUMP_LABEL_RELATIVE: each relative to its own place; the key's low two bits
#: are flags (include/linux/jump_label.h).
_ENTRY = np.dtype([("code", "<i4"), ("target", "<i4"), ("key", "<i8")])
_KEY_AT, _KEY_FLAGS = 8, 3
_LONGEST = max(map(len, NOPS))


@dataclass(frozen=True)
class Frame:
    """A function that stands at a place, itself or as a part of the next one: `file` and `line` of what it does."""

    function: str
    file: str
    line: str


@dataclass(frozen=True)
class Site:
    """A place where the key is asked.

    Attributes:
        address: of the NOP, as linked.
        symbol: the function of the image it is in, "" where a function was replaced by another of its name (weak).
        code: the bytes that are there.
        frames: the functions of the source at that place, the innermost first.
    """

    address: int
    symbol: str
    code: bytes
    frames: tuple[Frame, ...] = ()

    @property
    def is_nop(self) -> bool:
        """Whether one NOP begins there."""
        return self.code.startswith(NOPS)

    @property
    def hook(self) -> str:
        """The function of the source that asks, which names the change it is told of."""
        return next((frame.function for frame in self.frames if frame.function not in _ASKING), self.symbol)

    def is_in(self, function: str) -> bool:
        """Whether it is in `function`, or in a piece of it: the compiler appends .isra.0, .constprop.0, .part.0."""
        return self.symbol.partition(".")[0] == function or any(frame.function == function for frame in self.frames)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        frames = [f"{frame.function} {frame.file}:{frame.line}" for frame in self.frames]
        values = {"address": hex(self.address), "symbol": self.symbol, "hook": self.hook, "code": self.code.hex()}
        return {**values, "is_nop": self.is_nop, "frames": frames}


@dataclass(frozen=True)
class Image:
    """What of a vmlinux is needed here; all addresses are as linked.

    Attributes:
        path: the file.
        symbols: the value of those that were asked for, by name; without those it lacks.
        functions: (address, size, name), ascending.
        elf: the open file.
    """

    path: Path
    symbols: Mapping[str, int]
    functions: Sequence[tuple[int, int, str]]
    elf: ELFFile

    def read(self, address: int, size: int) -> bytes:
        """Return what the image has at an address.

        Raises:
            ExperimentError: nothing, or less.
        """
        for offset in self.elf.address_offsets(address, size):
            self.elf.stream.seek(offset)
            return bytes(self.elf.stream.read(size))
        raise ExperimentError(f"{self.path} has nothing at {address:#x}")

    def function_at(self, address: int) -> str:
        """Return the name of the function there, "" when there is none."""
        index = bisect_right(self.functions, address, key=lambda function: function[0]) - 1
        start, size, name = self.functions[index] if index >= 0 else (0, 0, "")
        return name if address < start + size else ""


@contextmanager
def opened(vmlinux: Path, wanted: Iterable[str]) -> Iterator[Image]:
    """Open a kernel image and look up the symbols `wanted`, within the block.

    Raises:
        UserError: the file is no ELF file.
    """
    wanted = set(wanted)
    with _stream(vmlinux) as stream:
        try:
            elf = ELFFile(stream)
            table = elf.get_section_by_name(".symtab")
            symbols: dict[str, int] = {}
            functions = []
            for symbol in table.iter_symbols() if isinstance(table, SymbolTableSection) else ():
                value = symbol["st_value"]
                if symbol["st_info"]["type"] == "STT_FUNC":
                    functions.append((value, symbol["st_size"], symbol.name))
                elif symbol.name in wanted:
                    symbols[symbol.name] = value
        except ELFError as error:
            raise UserError(f"{vmlinux} is no kernel image in ELF: {error}") from None
        yield Image(vmlinux, symbols, sorted(functions), elf)


def _stream(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def sites(vmlinux: Path, key: str = KEY) -> list[Site]:
    """Return all places of a kernel image where a static key is asked, in the order of their addresses.

    Raises:
        UserError: no kernel image, or one that lacks the key.
        MissingError: addr2line is not here.
    """
    bounds = ("__start___jump_table", "__stop___jump_table")
    with opened(vmlinux, (key, *bounds)) as image:
        if not {key, *bounds} <= image.symbols.keys():
            raise UserError(f"{vmlinux} has no static key {key}", remedy="a kernel with the patch set mitosis has it")
        start, stop = (image.symbols[name] for name in bounds)
        table = np.frombuffer(image.read(start, stop - start), _ENTRY)
        # All relative to the table's beginning: addresses of the kernel do not fit into a signed number.
        at = np.arange(len(table)) * _ENTRY.itemsize
        keys = at + _KEY_AT + (table["key"] & ~_KEY_FLAGS)
        chosen = keys == image.symbols[key] - start
        codes = sorted(start + int(each) for each in (at + table["code"])[chosen])
        frames = _frames(vmlinux, codes)
        return [Site(code, image.function_at(code), image.read(code, _LONGEST), frames[code]) for code in codes]


def _frames(vmlinux: Path, addresses: Sequence[int]) -> dict[int, tuple[Frame, ...]]:
    """Return which functions of the source stand at each of `addresses`; none where there is no debug information."""
    words = ["addr2line", "-a", "-i", "-f", "-e", str(vmlinux)]
    asked = "\n".join(f"{address:#x}" for address in addresses)
    lines = iter(tools.run(words, stdin=asked, purpose="finding the functions of the hooks").stdout.splitlines())
    found: dict[int, list[Frame]] = {}
    for line in lines:
        if line.startswith("0x"):
            here = found.setdefault(int(line, 16), [])
            continue
        file, _, number = next(lines).partition(" ")[0].rpartition(":")
        if line != "??":
            here.append(Frame(line, file, number))
    top = os.path.commonpath([str(Path(frame.file).parent) for each in found.values() for frame in each] or [""])
    return {
        address: tuple(Frame(each.function, os.path.relpath(each.file, top), each.line) for each in frames)
        for address, frames in found.items()
    }
