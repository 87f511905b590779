"""BTF, the kernel's own type information, read from a blob of bytes.

BTF travels inside the kernel image (between the symbols `__start_BTF` and `__stop_BTF`), so a guest
can be understood with no file from outside. This module knows the format only; `btf_types` turns it
into drgn types. Source of the format: `include/uapi/linux/btf.h` and `Documentation/bpf/btf.rst`.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numalab.errors import ExperimentError

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")


class BtfError(ExperimentError):
    """The bytes are not BTF that can be read; says what is wrong with them."""


class BtfKind(IntEnum):
    """The kinds of BTF records, numbered as in the format."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


#: Words (u32) that follow the three of `struct btf_type`: a fixed number, and a number per `vlen`.
_FIXED_WORDS = {BtfKind.INT: 1, BtfKind.ARRAY: 3, BtfKind.VAR: 1, BtfKind.DECL_TAG: 1}
_WORDS_PER_ITEM = {
    BtfKind.STRUCT: 3,
    BtfKind.UNION: 3,
    BtfKind.ENUM: 2,
    BtfKind.FUNC_PROTO: 2,
    BtfKind.DATASEC: 3,
    BtfKind.ENUM64: 3,
}


class Member(NamedTuple):
    """A member of a struct or union; offsets in bits, `bit_size` 0 for what is no bit field."""

    name: str
    type_id: int
    bit_offset: int
    bit_size: int


class IntEncoding(NamedTuple):
    """What an INT record says beside its size: signedness, truth value, and the bits it occupies."""

    is_signed: bool
    is_bool: bool
    bit_offset: int
    bits: int


class Btf:
    """An index over a BTF blob; records are decoded when they are asked for.

    Attributes (arrays indexed by type id; id 0 is void):
        kinds: uint8, values of BtfKind.
        name_offsets: uint32, into the string section.
        sizes: uint32, bytes for int, float, struct, union, enum and datasec; the id of the type
            referred to for the others (the format has one field for both).
    """

    def __init__(self, blob: bytes) -> None:
        """Index `blob`.

        Raises:
            BtfError: for anything but little-endian BTF version 1 whose records are complete.
        """
        if len(blob) < _HEADER.size:
            raise BtfError(f"BTF: {len(blob)} bytes are too few for a header")
        magic, version, _flags, header, type_off, type_len, str_off, str_len = _HEADER.unpack_from(blob)
        if magic != _MAGIC or version != 1:
            raise BtfError(f"BTF: magic {magic:#x} version {version} instead of {_MAGIC:#x} version 1")
        types_end, strings_end = header + type_off + type_len, header + str_off + str_len
        if type_len % 4 or (header + type_off) % 4 or max(types_end, strings_end) > len(blob):
            raise BtfError(f"BTF: sections end at byte {max(types_end, strings_end)} of {len(blob)}")
        self._strings = blob[header + str_off : strings_end]
        self._words = memoryview(blob)[header + type_off : types_end].cast("I")
        starts = self._record_starts()
        table = np.frombuffer(self._words, np.uint32)
        # Id 0, void, has no record: its row stays zero.
        self._starts: NDArray[np.int64] = np.concatenate(([0], starts))
        info = np.concatenate(([np.uint32(0)], table[starts + 1]))
        self.kinds: NDArray[np.uint8] = ((info >> 24) & 0x1F).astype(np.uint8)
        self.name_offsets: NDArray[np.uint32] = np.concatenate(([np.uint32(0)], table[starts]))
        self.sizes: NDArray[np.uint32] = np.concatenate(([np.uint32(0)], table[starts + 2]))
        self._info = info
        self._named: dict[str, list[int]] = {}
        self._constants: dict[str, tuple[int, int] | None] = {}

    def _record_starts(self) -> NDArray[np.int64]:
        """Word index of every record. Each record's length is in itself, so this is one pass in order."""
        fixed = [3 + _FIXED_WORDS.get(BtfKind(kind), 0) if kind in list(BtfKind) else 0 for kind in range(32)]
        per_item = [_WORDS_PER_ITEM.get(BtfKind(kind), 0) if kind in list(BtfKind) else 0 for kind in range(32)]
        words, end, at = self._words, len(self._words), 0
        starts: list[int] = []
        append = starts.append
        while at + 3 <= end:
            append(at)
            info = words[at + 1]
            kind = (info >> 24) & 0x1F
            step = fixed[kind]
            if not step or not kind:
                raise BtfError(f"BTF: type {len(starts)} has unknown kind {kind}")
            at += step + per_item[kind] * (info & 0xFFFF)
        if at != end:
            raise BtfError(f"BTF: the last type ends at word {at} of {end}")
        return np.array(starts, np.int64)

    def __len__(self) -> int:
        """Number of type ids, void included."""
        return len(self._starts)

    def kind(self, type_id: int) -> BtfKind:
        """Kind of a type id."""
        return BtfKind(int(self.kinds[type_id]))

    def string(self, offset: int) -> str:
        """The string at `offset` of the string section; "" for the anonymous."""
        return self._strings[offset : self._strings.index(b"\0", offset)].decode("utf-8", "replace")

    def name(self, type_id: int) -> str:
        """Name of a type id, "" for the anonymous."""
        return self.string(int(self.name_offsets[type_id]))

    def size(self, type_id: int) -> int:
        """Bytes (int, float, struct, union, enum), or the id of the type referred to (all others)."""
        return int(self.sizes[type_id])

    def flag(self, type_id: int) -> bool:
        """The record's `kind_flag`: bit fields in a struct, a signed enum, a forward union."""
        return bool(self._info[type_id] >> 31)

    def _items(self, type_id: int, width: int) -> Iterator[tuple[int, ...]]:
        """The `vlen` items after a record, each of `width` words."""
        at = int(self._starts[type_id]) + 3
        for _ in range(int(self._info[type_id]) & 0xFFFF):
            yield tuple(self._words[at : at + width])
            at += width

    def find(self, name: str, kinds: Collection[BtfKind]) -> list[int]:
        """Ids of the types of one of `kinds` called `name`, in order."""
        named = self._named.get(name)
        if named is None:
            hits = [np.flatnonzero(self.name_offsets == offset) for offset in self._string_offsets(name)]
            named = self._named[name] = sorted(int(type_id) for hit in hits for type_id in hit)
        return [type_id for type_id in named if self.kinds[type_id] in kinds]

    def _string_offsets(self, name: str) -> list[int]:
        """Offset at which the string section has `name`; where it has only its tail, all such offsets.

        Producers store each string once; one that lets strings share tails stores no second whole one.
        """
        wanted, found = name.encode() + b"\0", []
        if name and (at := self._strings.find(b"\0" + wanted)) >= 0:
            return [at + 1]
        at = -1
        while name and (at := self._strings.find(wanted, at + 1)) >= 0:
            found.append(at)
        return found

    def members(self, type_id: int) -> list[Member]:
        """Members of a struct or union, in order."""
        has_bit_fields = self.flag(type_id)
        found = []
        for name_off, member_type, offset in self._items(type_id, 3):
            if has_bit_fields:
                bit_offset, bit_size = offset & 0xFFFFFF, offset >> 24
            else:
                bit_offset, bit_size = self._old_bit_field(member_type, offset)
            found.append(Member(self.string(name_off), member_type, bit_offset, bit_size))
        return found

    def _old_bit_field(self, member_type: int, offset: int) -> tuple[int, int]:
        """Bit fields of producers older than `kind_flag` hide in the encoding of their integer type."""
        if self.kinds[member_type] == BtfKind.INT:
            encoding = self.int_encoding(member_type)
            if encoding.bit_offset or encoding.bits != 8 * self.size(member_type):
                return offset + encoding.bit_offset, encoding.bits
        return offset, 0

    def enumerators(self, type_id: int) -> list[tuple[str, int]]:
        """(name, value) of an enum's constants."""
        signed = self.flag(type_id)
        found = []
        if self.kinds[type_id] == BtfKind.ENUM64:
            for name_off, low, high in self._items(type_id, 3):
                value = high << 32 | low
                found.append((self.string(name_off), value - (1 << 64) * (signed and value >> 63)))
        else:
            for name_off, value in self._items(type_id, 2):
                found.append((self.string(name_off), value - (1 << 32) * (signed and value >> 31)))
        return found

    def find_enumerator(self, name: str) -> tuple[int, int] | None:
        """(id of its enum, value) of the constant called `name`; None when no enum has it."""
        if name not in self._constants:
            self._constants[name] = self._search_enumerator(name)
        return self._constants[name]

    def _search_enumerator(self, name: str) -> tuple[int, int] | None:
        table = np.frombuffer(self._words, np.uint32)
        for offset in self._string_offsets(name):
            # Candidate words anywhere in the type section; the record they fall into decides.
            for at in np.flatnonzero(table == offset):
                type_id = int(np.searchsorted(self._starts[1:], at, side="right"))
                width = {BtfKind.ENUM: 2, BtfKind.ENUM64: 3}.get(self.kind(type_id))
                place = int(at) - int(self._starts[type_id]) - 3
                if width and place >= 0 and place % width == 0:
                    return type_id, self.enumerators(type_id)[place // width][1]
        return None

    def int_encoding(self, type_id: int) -> IntEncoding:
        """Encoding of an INT."""
        word = self._words[int(self._starts[type_id]) + 3]
        flags = word >> 24 & 0xF
        return IntEncoding(bool(flags & 1), bool(flags & 4), word >> 16 & 0xFF, word & 0xFF)

    def array(self, type_id: int) -> tuple[int, int]:
        """(id of the element type, number of elements) of an ARRAY."""
        element, _index, count = self._words[int(self._starts[type_id]) + 3 :][:3]
        return element, count

    def params(self, type_id: int) -> list[tuple[str, int]]:
        """(name, type id) of a FUNC_PROTO's parameters; a last ("", 0) means variadic."""
        return [(self.string(name_off), param) for name_off, param in self._items(type_id, 2)]
