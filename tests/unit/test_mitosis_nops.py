"""The NOPs of hooks: read from an image that is built here as the kernel builds its own, counted and held to limits."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mitosis.nops import __main__ as nops
from mitosis.nops.sites import Frame, Site, sites
from mitosis.nops.table import HOT, Row, hot_rows, problems, to_markdown
from numalab.cli.main import execute
from numalab.errors import UserError
from numalab.page import write_section

SOURCE = Path(__file__).parent.parent / "fixtures" / "jumplabels.c"
NOP2, NOP5 = bytes.fromhex("6690"), bytes.fromhex("0f1f440000")


def built(directory: Path, *flags: str) -> Path:
    image = directory / "vmlinux"
    # Linked high, as the kernel is: its addresses do not fit into signed numbers.
    where = ("-nostdlib", "-static", "-mcmodel=kernel", "-fno-pie", "-no-pie", "-Wl,-Ttext-segment=0xffffffff81000000")
    subprocess.run(["gcc", "-O2", "-g", *where, *flags, "-o", image, SOURCE], check=True)
    return image


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("nops"))


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("nops"), "-DBROKEN")


def test_the_places_of_one_key(image: Path) -> None:
    found = sites(image)
    assert [(site.symbol, site.hook) for site in found] == [("change", "set_ptes")] * 2 + [("quick", "quick")]
    assert [site.code[:2] == NOP2 or site.code == NOP5 for site in found] == [True] * 3
    assert found[2].code.startswith(NOP2)
    assert all(site.is_nop for site in found)
    assert all(site.address > 0xFFFF_FFFF_8000_0000 for site in found)
    first = [(frame.function, frame.file) for frame in found[0].frames]
    assert first == [("pgrepl_on", "jumplabels.c"), ("set_ptes", "jumplabels.c"), ("change", "jumplabels.c")]
    lines = SOURCE.read_text().splitlines()
    assert "set_ptes()" in lines[int(found[0].frames[-1].line) - 1]


def test_a_place_without_a_nop(broken: Path) -> None:
    bad = [site for site in sites(broken) if not site.is_nop]
    assert [site.symbol for site in bad] == ["broken"]
    assert bad[0].code[0] in (0xE9, 0xEB), "a jump"
    said = problems(sites(broken), [])
    assert said == [f"broken has no NOP at {bad[0].address:#x} but {bad[0].code.hex(' ')}"]


def test_another_key_is_another_key(image: Path) -> None:
    found = sites(image, "other_key")
    assert [(site.symbol, site.is_nop) for site in found] == [("change", False)]


def test_images_that_are_none(image: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no static key no_key"):
        sites(image, "no_key")
    with pytest.raises(UserError, match="No such file"):
        sites(tmp_path / "absent")
    text = tmp_path / "text"
    text.write_text("words")
    with pytest.raises(UserError, match="is no kernel image in ELF"):
        sites(text)
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "-o", stripped, image], check=True)
    with pytest.raises(UserError, match="has no static key pgrepl_key"):
        sites(stripped)


def test_without_debug_information_symbols_have_to_do(image: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run(["strip", "-g", "-o", bare, image], check=True)
    found = sites(bare)
    assert [(site.symbol, site.hook) for site in found] == [("change", "change")] * 2 + [("quick", "quick")]


# Limits.


def site(symbol: str, *functions: str, code: bytes = NOP5) -> Site:
    return Site(0x1000, symbol, code, tuple(Frame(name, "mm/memory.c", "1") for name in functions))


#: Recorded from a kernel: zap_pte_range() is a piece of another function there, and an instruction after each NOP.
RECORDED = [
    site("unmap_page_range", "arch_static_branch", "pgrepl_enter_lazy_mmu_mode", "zap_pte_range", code=NOP5),
    site("unmap_page_range", "arch_static_branch", "pgrepl_on", "set_ptes", "zap_pte_range", "unmap_page_range"),
    site("unmap_page_range", "pgrepl_on", "set_ptes", "zap_pte_range", code=NOP2 + b"\x48\x89\xd8"),
    site("ptep_get_and_clear_full.isra.0", "arch_static_branch", "ptep_get_and_clear_full"),
]


def test_pieces_of_functions_count_as_those_functions() -> None:
    zap, clear = hot_rows(RECORDED, {"zap_pte_range": 2, "ptep_get_and_clear_full": 1})
    assert (len(zap.sites), zap.exceeded) == (3, True)
    assert zap.hooks == "pgrepl_enter_lazy_mmu_mode, set_ptes ×2"
    assert (len(clear.sites), clear.exceeded) == (1, False)
    assert problems(RECORDED, [zap, clear]) == ["zap_pte_range has 3 NOPs, at most 2"]


def test_a_limit_for_what_has_no_hook_is_no_success() -> None:
    rows = hot_rows(RECORDED, {"renamed": 3})
    assert problems(RECORDED, rows) == ["renamed has no hook"]


@pytest.mark.parametrize("code", [b"\xe9" + bytes(4), b"\xeb\x10\x48\x89\xd8", b"\x66\x0f\x1f\x44\x00", b"\x90" * 5])
def test_what_is_not_one_nop_of_the_kernels_own(code: bytes) -> None:
    assert not replace(RECORDED[0], code=code).is_nop
    assert len(problems([replace(RECORDED[0], code=code)], [])) == 1


def test_limits_are_for_functions_all_programs_go_through() -> None:
    assert {"change_pte_range", "zap_pte_range", "copy_pte_range", "do_user_addr_fault"} <= set(HOT)
    assert all(limit > 0 for limit in HOT.values())


# The command.


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        execute(nops.command, list(argv), name="nops")
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, int]], None]:
    def use(hot: dict[str, int]) -> None:
        monkeypatch.setattr(nops, "HOT", hot)

    return use


def test_the_command(
    image: Path, limits: Callable[[dict[str, int]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits({"change": 2})
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- mitosis.nops: begin -->\nold\n<!-- mitosis.nops: end -->\nafter\n")
    assert run("--vmlinux", str(image), "--all", "--table", str(page)) == 0
    said = capsys.readouterr().out
    assert "3 places ask `pgrepl_key`, in 2 functions; 3 of them hold a NOP (1 of 2 bytes, 2 of 5 bytes)" in said
    assert "| change | 2 | 2 | set_ptes ×2 |" in said
    assert "| quick | 1 |  | quick |" in said
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("-->\nafter\n")
    assert "\nold\n" not in text and "| change | 2 | 2 |" in text
    limits({"change": 1})
    assert run("--vmlinux", str(image)) == 1
    assert "not as promised: change has 2 NOPs, at most 1" in capsys.readouterr().err


def test_the_command_fails_for_a_jump(
    broken: Path, limits: Callable[[dict[str, int]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    limits({"change": 2})
    assert run("--vmlinux", str(broken), "--json") == 1
    value = json.loads(capsys.readouterr().out)
    assert [each["symbol"] for each in value["sites"] if not each["is_nop"]] == ["broken"]
    assert len(value["problems"]) == 1


def test_the_table_of_no_limits() -> None:
    text = to_markdown(RECORDED, [Row("set_ptes", (RECORDED[1],), None)], "x")
    assert "| set_ptes | 1 |  | set_ptes |" in text


@pytest.mark.parametrize("text", ["", "<!-- a: begin -->\n", "<!-- a: end -->\n<!-- a: begin -->\n"])
def test_a_page_without_the_section_is_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(UserError, match="has no section between"):
        write_section(page, "a", "new")
    assert page.read_text() == text
    with pytest.raises(UserError, match="No such file"):
        write_section(tmp_path / "absent.md", "a", "new")
