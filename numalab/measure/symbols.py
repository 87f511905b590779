"""The kernel's symbols, read once from guest memory and cached on the host by build-id.

A running kernel holds its own symbol table (kallsyms); reading it takes most of a second, so it is
stored with link-time addresses and moved by the KASLR offset of each later boot.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from drgn import Program, Symbol, SymbolBinding, SymbolKind
from numpy.typing import NDArray

from numalab.errors import MissingError
from numalab.paths import cache_dir, write_atomic

FINDER = "numalab-kallsyms"
#: The kernel image is linked above this; per-CPU symbols and constants lie below and do not move.
_IMAGE_BASE = np.uint64(0xFFFF_FFFF_8000_0000)


class SymbolTable:
    """Names and addresses, sorted by address; found by name or by address without building a dict.

    Attributes:
        addresses: uint64, ascending.
        names: the names in the same order, each between newlines.
    """

    def __init__(self, addresses: NDArray[np.uint64], names: bytes) -> None:
        self.addresses = addresses
        self.names = names
        # Position of the newline before each name.
        self._starts = np.flatnonzero(np.frombuffer(names, np.uint8) == ord("\n"))[:-1]
        if len(self._starts) != len(addresses):
            raise ValueError(f"{len(addresses)} addresses for {len(self._starts)} names")

    @classmethod
    def of(cls, symbols: Iterable[tuple[int, str]]) -> SymbolTable:
        """Make a table of (address, name) pairs."""
        ordered = sorted(symbols)
        names = "".join(f"\n{name}" for _, name in ordered) + "\n"
        return cls(np.array([address for address, _ in ordered], np.uint64), names.encode())

    def address(self, name: str) -> int | None:
        """Address of the first symbol called `name`; None when there is none."""
        at = self.names.find(f"\n{name}\n".encode())
        return None if at < 0 else int(self.addresses[np.searchsorted(self._starts, at)])

    def _name(self, index: int) -> str:
        start = int(self._starts[index]) + 1
        return self.names[start : self.names.index(b"\n", start)].decode("utf-8", "replace")

    def moved(self, offset: int) -> SymbolTable:
        """The same table with everything in the kernel image moved by `offset` bytes."""
        where = self.addresses.copy()
        where[where >= _IMAGE_BASE] += np.uint64(offset % (1 << 64))
        return SymbolTable(where, self.names)

    def __call__(self, prog: Program, name: str | None, address: int | None, one: bool) -> list[Symbol]:
        """drgn's symbol finder (see `drgn.Program.register_symbol_finder`)."""
        if name is not None:
            found = [] if (where := self.address(name)) is None else [self._symbol(where, name, 1)]
            return found if address is None else [each for each in found if each.address == address]
        if address is not None:
            index = int(np.searchsorted(self.addresses, np.uint64(address), side="right")) - 1
            if index < 0 or address < _IMAGE_BASE:
                return []
            start = int(self.addresses[index])
            # kallsyms has no sizes: a symbol reaches to the next one.
            after = self.addresses[index + 1 : index + 2]
            return [self._symbol(start, self._name(index), (int(after[0]) if after.size else start + 1) - start)]
        return [self._symbol(int(start), self._name(i), 1) for i, start in enumerate(self.addresses)]

    @staticmethod
    def _symbol(address: int, name: str, size: int) -> Symbol:
        return Symbol(name, address, size, SymbolBinding.GLOBAL, SymbolKind.UNKNOWN)

    def save(self, path: Path) -> None:
        """Write the table to `path`, atomically."""
        out = io.BytesIO()
        np.savez(out, addresses=self.addresses, names=np.frombuffer(self.names, np.uint8))
        write_atomic(path, out.getvalue())

    @classmethod
    def load(cls, path: Path) -> SymbolTable | None:
        """Read what `save` wrote; None when it is not there or not whole."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                return cls(stored["addresses"], stored["names"].tobytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None


def parse_vmcoreinfo(text: str) -> dict[str, str]:
    """`KEY=value` lines of a vmcoreinfo note, e.g. {"BUILD-ID": ..., "SYMBOL(_stext)": ...}."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _fits(table: SymbolTable, vmcoreinfo: dict[str, str]) -> bool:
    """Whether the table agrees with the addresses the kernel itself publishes."""
    return all(
        table.address(name) == int(vmcoreinfo[f"SYMBOL({name})"], 16)
        for name in ("_stext", "init_uts_ns", "init_top_pgt")
        if f"SYMBOL({name})" in vmcoreinfo
    )


def kernel_symbols(prog: Program, vmcoreinfo: dict[str, str]) -> SymbolTable:
    """The symbols of the kernel `prog` is attached to, from the cache or from its memory.

    Raises:
        MissingError: when the kernel was built without CONFIG_KALLSYMS.
    """
    build_id = re.sub(r"[^0-9a-f]", "", vmcoreinfo.get("BUILD-ID", ""))
    offset = int(vmcoreinfo.get("KERNELOFFSET", "0"), 16)
    path = cache_dir("symbols") / f"{build_id}.npz"
    if build_id and (stored := SymbolTable.load(path)) is not None:
        table = stored.moved(offset)
        if _fits(table, vmcoreinfo):
            return table
    from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

    try:
        found = load_vmlinux_kallsyms(prog)(prog, None, None, False)
    except (LookupError, ValueError) as error:
        raise MissingError(
            f"the kernel {vmcoreinfo.get('OSRELEASE', '')} tells no symbols: {error}",
            remedy="build it with CONFIG_KALLSYMS=y and CONFIG_KALLSYMS_ALL=y",
        ) from error
    table = SymbolTable.of((symbol.address, symbol.name) for symbol in found)
    if build_id:
        table.moved(-offset).save(path)
    return table
