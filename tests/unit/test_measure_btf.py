"""BTF: the format's reader and the drgn types made from it, against DWARF of the same object file."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import drgn
import pytest
from drgn import Architecture, FindObjectFlags, Platform, Program, Type, TypeKind
from elftools.elf.elffile import ELFFile

from numalab.measure import btf_types
from numalab.measure.btf import Btf, BtfError, BtfKind

SAMPLE = Path(__file__).parent.parent / "fixtures" / "btf" / "sample.so"
NAMED = [
    "struct bits",
    "struct node",
    "enum colour",
    "enum signed_colour",
    "enum wide",
    "enum wide_signed",
    "u64",
    "flag_t",
]


@pytest.fixture(scope="module")
def blob() -> bytes:
    section = ELFFile(io.BytesIO(SAMPLE.read_bytes())).get_section_by_name(".BTF")
    assert section is not None
    return bytes(section.data())


@pytest.fixture(scope="module")
def btf(blob: bytes) -> Btf:
    return Btf(blob)


def program() -> Program:
    return Program(Platform(Architecture.X86_64))


@pytest.fixture(scope="module")
def from_btf(btf: Btf) -> Program:
    prog = program()
    symbols = [
        drgn.Symbol(name, address, 8, drgn.SymbolBinding.GLOBAL, drgn.SymbolKind.OBJECT)
        for name, address in (("compare", 0x1000), ("jiffies_64", 0x2000))
    ]
    prog.register_symbol_finder("test", drgn.SymbolIndex(symbols), enable_index=0)
    btf_types.register(prog, btf)
    return prog


@pytest.fixture(scope="module")
def from_dwarf() -> Program:
    prog = program()
    prog.extra_module("sample", create=True).try_file(SAMPLE, force=True)
    return prog


def describe(kind: Type, depth: int = 4) -> object:
    """A type as nested plain values: everything the two sources must agree on."""
    names = (TypeKind.INT, TypeKind.BOOL, TypeKind.FLOAT, TypeKind.STRUCT, TypeKind.UNION, TypeKind.ENUM)
    said: list[object] = [kind.kind, kind.qualifiers]
    if kind.kind == TypeKind.TYPEDEF:
        return [*said, kind.name, describe(kind.type, depth)]
    if kind.kind == TypeKind.POINTER:
        return [*said, kind.size, describe(kind.type, depth - 1) if depth else "..."]
    if kind.kind == TypeKind.ARRAY:
        return [*said, kind.length, describe(kind.type, depth)]
    if kind.kind == TypeKind.FUNCTION:
        params = [describe(parameter.type, depth - 1) if depth else "..." for parameter in kind.parameters]
        return [*said, kind.is_variadic, params, describe(kind.type, depth)]
    if kind.kind in names:
        said += [getattr(kind, "name", None), getattr(kind, "tag", None), kind.is_complete() and drgn.sizeof(kind)]
    if kind.kind in (TypeKind.STRUCT, TypeKind.UNION) and kind.is_complete() and depth:
        said += [(m.name, m.bit_offset, m.bit_field_size, describe(m.type, depth - 1)) for m in kind.members or ()]
    if kind.kind == TypeKind.ENUM and kind.is_complete():
        said += [kind.type.is_signed, [(each.name, each.value) for each in kind.enumerators or ()]]
    return said


@pytest.mark.parametrize("name", NAMED)
def test_types_equal_those_of_dwarf(name: str, from_btf: Program, from_dwarf: Program) -> None:
    assert describe(from_btf.type(name)) == describe(from_dwarf.type(name))


def test_function_types_equal_those_of_dwarf(from_btf: Program, from_dwarf: Program) -> None:
    made = from_btf.object("compare", FindObjectFlags.FUNCTION)
    assert made.address_ == 0x1000
    assert describe(made.type_) == describe(from_dwarf.object("compare", FindObjectFlags.FUNCTION).type_)


@pytest.mark.parametrize("name", ["GREEN", "MINUS", "LARGE", "VERY_LOW", "PLUS"])
def test_enumerators_are_constants(name: str, from_btf: Program, from_dwarf: Program) -> None:
    assert from_btf.constant(name).value_() == from_dwarf.constant(name).value_()


def test_a_known_variable_has_the_type_of_the_table(from_btf: Program) -> None:
    assert from_btf.variable("jiffies_64").address_ == 0x2000
    assert from_btf.variable("jiffies_64").type_.type_name() == "unsigned long long"


def test_what_is_not_there_is_not_found(from_btf: Program) -> None:
    for name in ("struct absent", "enum node", "union node", "absent_t"):
        with pytest.raises(LookupError):
            from_btf.type(name)
    for find in (from_btf.constant, from_btf.variable, from_btf.function):
        with pytest.raises(LookupError):
            find("absent")
    with pytest.raises(LookupError):
        from_btf.variable("max_pfn")  # known to the table, but the program has no such symbol


def test_values_are_read_through_bit_fields(from_btf: Program) -> None:
    raw = struct.pack("<Q", 0b101 | (0b1111101 << 3) | (0xABCDEF0123 << 10) | (1 << 50) | (0x7F << 56))
    bits = drgn.Object.from_bytes_(from_btf, "struct bits", raw)
    assert [bits.low, bits.middle, bits.high, bits.flag, bits.plain] == [5, -3, 0xABCDEF0123, True, 0x7F]


def test_index(btf: Btf) -> None:
    (node,) = btf.find("node", [BtfKind.STRUCT])
    assert btf.kind(node) == BtfKind.STRUCT
    assert btf.name(node) == "node"
    assert btf.size(node) == 176
    assert btf.find("node", [BtfKind.UNION]) == []
    assert btf.find("", [BtfKind.STRUCT]) == []
    assert btf.find("ode", [BtfKind.STRUCT]) == []
    assert btf.kind(0) == BtfKind.VOID


def header(types: bytes, strings: bytes, *, magic: int = 0xEB9F, version: int = 1) -> bytes:
    return struct.pack("<HBBIIIII", magic, version, 0, 24, 0, len(types), len(types), len(strings)) + types + strings


def test_bit_fields_of_old_producers() -> None:
    """Before the kind flag, the integer's own encoding told offset and width."""
    strings = b"\0int\0s\0m\0"
    whole = struct.pack("<IIII", 1, 1 << 24, 4, 1 << 24 | 32)
    narrow = struct.pack("<IIII", 0, 1 << 24, 4, 1 << 24 | 2 << 16 | 5)
    members = struct.pack("<III", 7, 2, 8) + struct.pack("<III", 7, 1, 32)
    record = struct.pack("<III", 5, 4 << 24 | 2, 8) + members
    found = Btf(header(whole + narrow + record, strings)).members(3)
    assert [(m.bit_offset, m.bit_size) for m in found] == [(10, 5), (32, 0)]


def test_strings_may_share_their_tails() -> None:
    strings = b"\0task_struct\0"
    record = struct.pack("<III", 6, 4 << 24, 8)
    assert Btf(header(record, strings)).find("struct", [BtfKind.STRUCT]) == [1]


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (b"", "too few"),
        (header(b"", b"\0", magic=0x9FEB), "magic 0x9feb"),
        (header(b"", b"\0", version=2), "version 2"),
        (header(struct.pack("<III", 0, 31 << 24, 0), b"\0"), "unknown kind 31"),
        (header(struct.pack("<III", 0, 0, 0), b"\0"), "unknown kind 0"),
        (header(struct.pack("<III", 0, 4 << 24 | 9, 8), b"\0"), "last type ends"),
    ],
)
def test_broken_btf_is_refused(broken: bytes, complaint: str) -> None:
    with pytest.raises(BtfError, match=complaint):
        Btf(broken)


def test_a_cut_blob_is_refused_wherever_it_is_cut(blob: bytes) -> None:
    for end in range(0, len(blob), 97):
        with pytest.raises(BtfError):
            Btf(blob[:end])
