"""Reading consoles, on logs recorded from real boots."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numalab.machine import console

LOGS = Path(__file__).parent.parent / "fixtures" / "console"


@pytest.mark.parametrize(
    ("name", "reason", "symbol"),
    [
        ("panic-sysrq.log", "sysrq triggered crash", "sysrq_handle_crash"),
        ("panic-init.log", "Attempted to kill init! exitcode=0x00000100", "do_group_exit"),
    ],
)
def test_panics(name: str, reason: str, symbol: str) -> None:
    oops = console.find_oops(console.read(LOGS / name))
    assert console.panic_reason(oops) == reason
    assert symbol in oops


@pytest.mark.parametrize("name", ["quiet.log", "noise.log", "no-such.log"])
def test_no_panic(name: str) -> None:
    assert console.find_oops(console.read(LOGS / name)) == ""


def test_complaints_among_binary_junk() -> None:
    lines = console.read(LOGS / "noise.log")
    assert any("\\xff\\xfebinary" in line for line in lines)
    assert console.complaints(lines) == [
        "WARNING: something at mm/x.c:1 y+0x1/0x2",
        "INFO: task foo:1 blocked for more than 120 seconds.",
        "BUG: KASAN: use-after-free in f+0x1/0x2",
    ]


def test_tail_leaves_out_empty_lines() -> None:
    assert console.tail(["a", "", "b", " ", "c"], 2) == "b\nc"


@given(st.binary())
def test_any_bytes_can_be_read(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.mktemp("console") / "log"
    path.write_bytes(junk)
    lines = console.read(path)
    assert len(lines) == junk.count(b"\n") + 1
    console.complaints(lines)
    console.find_oops(lines)
