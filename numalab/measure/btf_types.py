"""drgn types and objects made from BTF, so that drgn needs no DWARF.

`register` gives a drgn program a type finder (structs, unions, enums, typedefs, base types; built
lazily, member by member) and an object finder (enum constants, functions, per-CPU variables, and the
few global variables in `VARIABLES`: BTF of 6.12 describes no others). Addresses come from the
program's own symbols.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from drgn import FindObjectFlags, Object, Program, Qualifiers, Type, TypeEnumerator, TypeKind, TypeMember, TypeParameter

from numalab.measure.btf import Btf, BtfKind, Member

FINDER = "btf"

#: C types of the global variables that drgn's helpers for tasks, nodes, CPUs and memory, and we, ask for.
VARIABLES = {
    "__cpu_online_mask": "struct cpumask",
    "__cpu_possible_mask": "struct cpumask",
    "__cpu_present_mask": "struct cpumask",
    "__per_cpu_offset": "unsigned long []",
    "__pgtable_l5_enabled": "unsigned int",
    "boot_cpu_data": "struct cpuinfo_x86",
    "btf_modules": "struct list_head",
    "contig_page_data": "struct pglist_data",
    "empty_zero_page": "unsigned long []",
    "huge_zero_pfn": "unsigned long",
    "init_mm": "struct mm_struct",
    "init_pid_ns": "struct pid_namespace",
    "init_task": "struct task_struct",
    "init_uts_ns": "struct uts_namespace",
    "jiffies_64": "unsigned long long",
    "max_pfn": "unsigned long",
    "modules": "struct list_head",
    "mem_section": "struct mem_section **",
    "nr_cpu_ids": "unsigned int",
    "node_data": "struct pglist_data *[]",
    "node_states": "nodemask_t []",
    "nr_node_ids": "unsigned int",
    "page_offset_base": "unsigned long",
    "pgdir_shift": "unsigned int",
    "pgrepl_domain_node": "int []",
    "pgrepl_nr_domains": "unsigned int",
    "phys_base": "unsigned long",
    "ptrs_per_p4d": "unsigned int",
    "saved_command_line": "char *",
    "vm_list": "struct list_head",
    "vmalloc_base": "unsigned long",
    "vmemmap_base": "unsigned long",
    "zero_pfn": "unsigned long",
}

#: BTF kinds in which a drgn type kind is looked up by name.
_KINDS = {
    TypeKind.INT: BtfKind.INT,
    TypeKind.BOOL: BtfKind.INT,
    TypeKind.FLOAT: BtfKind.FLOAT,
    TypeKind.STRUCT: BtfKind.STRUCT,
    TypeKind.UNION: BtfKind.UNION,
    TypeKind.TYPEDEF: BtfKind.TYPEDEF,
}

_QUALIFIERS = {
    BtfKind.CONST: Qualifiers.CONST,
    BtfKind.VOLATILE: Qualifiers.VOLATILE,
    BtfKind.RESTRICT: Qualifiers.RESTRICT,
}


class BtfTypes:
    """Finders over one BTF index for one drgn program; remembers every type it made."""

    def __init__(self, btf: Btf) -> None:
        self.btf = btf
        self._made: dict[int, Type] = {}

    def forget(self) -> None:
        """Drop all types made so far; they hold the program, and the program holds this finder."""
        self._made.clear()

    def find_type(self, prog: Program, kinds: AbstractSet[TypeKind], name: str, filename: str | None) -> Type | None:
        """Type finder (see `drgn.Program.register_type_finder`); `filename` is not known to BTF."""
        if filename:
            return None
        wanted = {_KINDS[kind] for kind in kinds if kind in _KINDS}
        if TypeKind.ENUM in kinds:
            wanted |= {BtfKind.ENUM, BtfKind.ENUM64}
        for type_id in self.btf.find(name, wanted):
            made = self.type(prog, type_id)
            if made.kind in kinds:
                return made
        return None

    def find_object(self, prog: Program, name: str, flags: FindObjectFlags, filename: str | None) -> Object | None:
        """Object finder (see `drgn.Program.register_object_finder`)."""
        if filename:
            return None
        if flags & FindObjectFlags.VARIABLE:
            if name in VARIABLES:
                kind: str | Type = VARIABLES[name]
            elif variables := self.btf.find(name, [BtfKind.VAR]):
                kind = self.type(prog, self.btf.size(variables[0]))
            else:
                kind = ""
            if kind and (address := _address(prog, name)) is not None:
                return Object(prog, kind, address=address)
        if flags & FindObjectFlags.FUNCTION:
            for type_id in self.btf.find(name, [BtfKind.FUNC]):
                if (address := _address(prog, name)) is not None:
                    return Object(prog, self.type(prog, type_id), address=address)
        if flags & FindObjectFlags.CONSTANT and (constant := self.btf.find_enumerator(name)):
            return Object(prog, self.type(prog, constant[0]), constant[1])
        return None

    def type(self, prog: Program, type_id: int) -> Type:
        """The drgn type of a BTF type id, made once."""
        made = self._made.get(type_id)
        if made is None:
            made = self._made[type_id] = self._make(prog, type_id)
        return made

    def _make(self, prog: Program, type_id: int) -> Type:
        btf = self.btf
        kind, name = btf.kind(type_id), btf.name(type_id)
        if kind == BtfKind.VOID:
            return prog.void_type()
        if kind == BtfKind.INT:
            encoding = btf.int_encoding(type_id)
            if encoding.is_bool:
                return prog.bool_type(name, btf.size(type_id))
            return prog.int_type(name, btf.size(type_id), encoding.is_signed)
        if kind == BtfKind.FLOAT:
            return prog.float_type(name, btf.size(type_id))
        if kind in (BtfKind.STRUCT, BtfKind.UNION):
            members = [self._member(prog, member) for member in btf.members(type_id)]
            make = prog.struct_type if kind == BtfKind.STRUCT else prog.union_type
            return make(name or None, btf.size(type_id), members)
        if kind == BtfKind.FWD:
            return self._complete(prog, type_id, name)
        if kind in (BtfKind.ENUM, BtfKind.ENUM64):
            return self._enum(prog, type_id, name)
        if kind == BtfKind.ARRAY:
            element, count = btf.array(type_id)
            # BTF writes `x[]` and `x[0]` alike; a struct's last member is nearly always the former.
            return prog.array_type(self.type(prog, element), count or None)
        if kind == BtfKind.FUNC_PROTO:
            params = btf.params(type_id)
            variadic = bool(params) and params[-1] == ("", 0)
            return prog.function_type(
                self.type(prog, btf.size(type_id)),
                [self._parameter(prog, *param) for param in params[: len(params) - variadic]],
                variadic,
            )
        target = self.type(prog, btf.size(type_id))
        if kind == BtfKind.PTR:
            return prog.pointer_type(target)
        if kind == BtfKind.TYPEDEF:
            return prog.typedef_type(name, target)
        if kind in _QUALIFIERS:
            return target.qualified(target.qualifiers | _QUALIFIERS[kind])
        return target  # FUNC names its prototype; TYPE_TAG, DECL_TAG and VAR only annotate

    def _complete(self, prog: Program, type_id: int, name: str) -> Type:
        """The full struct or union a forward declaration stands for; an incomplete one if there is none."""
        kind = BtfKind.UNION if self.btf.flag(type_id) else BtfKind.STRUCT
        for full in self.btf.find(name, [kind]):
            return self.type(prog, full)
        return (prog.union_type if kind == BtfKind.UNION else prog.struct_type)(name)

    def _enum(self, prog: Program, type_id: int, name: str) -> Type:
        size, signed = self.btf.size(type_id), self.btf.flag(type_id)
        word = {1: "char", 2: "short", 4: "int", 8: "long"}[size]
        compatible = prog.int_type(word if signed else f"unsigned {word}", size, signed)
        values = [TypeEnumerator(*each) for each in self.btf.enumerators(type_id)]
        return prog.enum_type(name or None, compatible, values)

    def _member(self, prog: Program, member: Member) -> TypeMember:
        """A member whose type is made when somebody looks at it."""

        def make() -> Type | Object:
            made = self.type(prog, member.type_id)
            return Object(prog, made, bit_field_size=member.bit_size) if member.bit_size else made

        return TypeMember(make, member.name or None, member.bit_offset)

    def _parameter(self, prog: Program, name: str, type_id: int) -> TypeParameter:
        return TypeParameter(lambda: self.type(prog, type_id), name or None)


def _address(prog: Program, name: str) -> int | None:
    try:
        return int(prog.symbol(name).address)
    except LookupError:
        return None


def register(prog: Program, btf: Btf, name: str = FINDER, *, first: bool = False) -> BtfTypes:
    """Give `prog` the finders for `btf`, after any it has (DWARF, when loaded, answers first), or before them."""
    types = BtfTypes(btf)
    place = 0 if first else -1
    prog.register_type_finder(name, types.find_type, enable_index=place)
    prog.register_object_finder(name, types.find_object, enable_index=place)
    return types
