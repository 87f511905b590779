"""The symbol table: lookups, KASLR, the cache by build-id."""

from __future__ import annotations

from pathlib import Path

import drgn
import pytest
from drgn import Architecture, Platform, Program

from numalab.measure import symbols
from numalab.measure.symbols import SymbolTable, parse_vmcoreinfo

BASE = 0xFFFF_FFFF_8100_0000
TABLE = SymbolTable.of(
    [
        (BASE + 0x200, "second"),
        (0x1_F000, "this_cpu_off"),
        (BASE, "_stext"),
        (BASE + 0x100, "first"),
        (BASE + 0x100, "alias_of_first"),
    ]
)


def test_by_name() -> None:
    assert TABLE.address("_stext") == BASE
    assert TABLE.address("first") == BASE + 0x100
    assert TABLE.address("second") == BASE + 0x200
    for absent in ("stext", "irst", "fir", ""):
        assert TABLE.address(absent) is None


def test_only_the_image_moves_with_kaslr() -> None:
    moved = TABLE.moved(0x1320_0000)
    assert moved.address("_stext") == BASE + 0x1320_0000
    assert moved.address("this_cpu_off") == 0x1_F000
    assert moved.moved(-0x1320_0000).addresses.tolist() == TABLE.addresses.tolist()


def test_as_drgns_finder() -> None:
    prog = Program(Platform(Architecture.X86_64))
    prog.register_symbol_finder("test", TABLE, enable_index=0)
    assert prog.symbol("second").address == BASE + 0x200
    assert prog.symbol(BASE + 0x10).name == "_stext"
    assert prog.symbol(BASE + 0x1FF).name in ("first", "alias_of_first")
    assert {symbol.name for symbol in prog.symbols()} == {"_stext", "first", "alias_of_first", "second", "this_cpu_off"}
    with pytest.raises(LookupError):
        prog.symbol("third")
    with pytest.raises(LookupError):
        prog.symbol(0x1_F000)  # an offset into per-CPU areas is no address


def test_kept_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "symbols.npz"
    assert SymbolTable.load(path) is None
    TABLE.save(path)
    again = SymbolTable.load(path)
    assert again is not None
    assert again.address("second") == BASE + 0x200
    path.write_bytes(path.read_bytes()[:-200])
    assert SymbolTable.load(path) is None


@pytest.fixture
def kallsyms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Stands for the guest's kallsyms, after KASLR; says how often it was read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reads: list[str] = []
    table = TABLE.moved(0x100_0000)

    def load(prog: Program) -> drgn.SymbolIndex:
        reads.append("read")
        return drgn.SymbolIndex(table(prog, None, None, False))

    monkeypatch.setattr("drgn.helpers.linux.kallsyms.load_vmlinux_kallsyms", load)
    return reads


def info(offset: int, *, stext: int | None = None, build_id: str = "ab12") -> dict[str, str]:
    where = BASE + offset if stext is None else stext
    return {"BUILD-ID": build_id, "KERNELOFFSET": f"{offset:x}", "SYMBOL(_stext)": f"{where:x}"}


def test_second_boot_takes_symbols_from_the_cache(kallsyms: list[str]) -> None:
    prog = Program(Platform(Architecture.X86_64))
    assert symbols.kernel_symbols(prog, info(0x100_0000)).address("first") == BASE + 0x100_0100
    assert symbols.kernel_symbols(prog, info(0x300_0000)).address("first") == BASE + 0x300_0100
    assert len(kallsyms) == 1


def test_a_cache_that_disagrees_with_the_kernel_is_not_used(kallsyms: list[str]) -> None:
    prog = Program(Platform(Architecture.X86_64))
    symbols.kernel_symbols(prog, info(0x100_0000))
    symbols.kernel_symbols(prog, info(0x100_0000, stext=BASE + 0x40))
    assert len(kallsyms) == 2


def test_without_build_id_nothing_is_kept(kallsyms: list[str], tmp_path: Path) -> None:
    prog = Program(Platform(Architecture.X86_64))
    for _ in range(2):
        symbols.kernel_symbols(prog, info(0x100_0000, build_id=""))
    assert len(kallsyms) == 2
    assert not list(tmp_path.rglob("*.npz"))


def test_vmcoreinfo() -> None:
    found = parse_vmcoreinfo("OSRELEASE=6.12.117\nSYMBOL(vmemmap)=fff1777f40000000\nNUMBER(sme_mask)=0\n\nodd\n")
    assert found == {"OSRELEASE": "6.12.117", "SYMBOL(vmemmap)": "fff1777f40000000", "NUMBER(sme_mask)": "0"}
