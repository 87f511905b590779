"""Symbols and types of a loadable module of a guest's kernel, from its memory.

A module's BTF goes on where the kernel's own ends: type ids and offsets of strings are counted through ("split BTF",
Documentation/bpf/btf.rst). Put together the two are one blob, which `btf` reads as any other.
"""

from __future__ import annotations

import struct

import drgn
from drgn import Object, Program
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.module import find_module

from numalab.errors import MissingError
from numalab.measure import btf_types, symbols
from numalab.measure.btf import Btf, BtfError
from numalab.measure.guestmem import Guest

_HEADER = struct.Struct("<HBBIIIII")
_MAGIC = 0xEB9F


def joined(base: bytes, split: bytes) -> bytes:
    """One BTF blob out of the kernel's and a module's.

    Raises:
        BtfError: one of them is no BTF.
    """
    sections = []
    for blob in (base, split):
        if len(blob) < _HEADER.size:
            raise BtfError(f"BTF: {len(blob)} bytes are too few for a header")
        magic, _version, _flags, header, type_off, type_len, str_off, str_len = _HEADER.unpack_from(blob)
        if magic != _MAGIC:
            raise BtfError(f"BTF: magic {magic:#x} instead of {_MAGIC:#x}")
        sections.append(
            (blob[header + type_off :][:type_len], blob[header + str_off :][:str_len]),
        )
    types = sections[0][0] + sections[1][0]
    strings = sections[0][1] + sections[1][1]
    return _HEADER.pack(_MAGIC, 1, 0, _HEADER.size, 0, len(types), len(types), len(strings)) + types + strings


def ensure(guest: Guest, module: str, symbol: str) -> None:
    """Make the symbols and types of `module` known, unless `symbol` is known already (it is built in, or was ensured).

    Raises:
        MissingError: no such symbol in the kernel, and no such module with type information.
    """
    prog = guest.prog
    if known(prog, symbol):
        return
    found = find_module(prog, module)
    if not found:
        raise MissingError(
            f"the guest's kernel has no {symbol}, and no module {module} is loaded in it",
            remedy=f"boot it with the module {module} (numalab boot --nested for kvm)",
        )
    from drgn.helpers.linux.kallsyms import module_kallsyms

    table = symbols.SymbolTable.of((each.address, each.name) for each in module_kallsyms(found) if each.name)
    start, stop = (prog.symbol(name).address for name in ("__start_BTF", "__stop_BTF"))
    blob = joined(prog.read(start, stop - start), _btf_of(prog, found))
    prog.register_symbol_finder(f"{symbols.FINDER}-{module}", table, enable_index=-1)
    # In front: a kernel's own BTF may know but the names of a module's types.
    guest.keep(btf_types.register(prog, Btf(blob), f"{btf_types.FINDER}-{module}", first=True))
    if not known(prog, symbol):
        raise MissingError(f"the module {module} has no symbol {symbol}")


def known(prog: Program, symbol: str) -> bool:
    """Whether a symbol of this name is known."""
    try:
        prog.symbol(symbol)
    except LookupError:
        return False
    return True


def _btf_of(prog: Program, module: Object) -> bytes:
    """The type information of a module, as the kernel keeps it."""
    try:
        listed = prog["btf_modules"].address_of_()
    except LookupError as error:
        raise MissingError(
            "the kernel keeps no type information of its modules", remedy="build it with CONFIG_DEBUG_INFO_BTF_MODULES"
        ) from error
    for each in list_for_each_entry("struct btf_module", listed, "list"):
        if each.module.value_() == module.value_():
            size = each.btf.data_size.value_()
            raw: bytes = prog.read(each.btf.data.value_(), size)
            return raw
    name = drgn.cast("char *", module.name.address_of_()).string_().decode()
    raise MissingError(f"the kernel has no type information of the module {name}")
