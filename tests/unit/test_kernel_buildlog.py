"""The first error in recorded logs of real failures (gcc 12, binutils 2.40, kbuild of 6.12)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numalab.kernel.buildlog import BuildFailure, failure, first_error

LOGS = Path(__file__).resolve().parents[1] / "fixtures/build-logs"

RECORDED = [
    ("syntax-error", "compile", "/src/linux/lib/hweight.c", 16, "error: expected expression before '=' token"),
    ("undeclared", "compile", "/src/linux/lib/hweight.c", 72, "'undeclared_counter' undeclared"),
    ("missing-header", "compile", "/src/linux/lib/hweight.c", 2, "linux/numa_tables.h: No such file"),
    ("assembler", "compile", "/src/linux/arch/x86/lib/hweight.S", 17, "no such instruction"),
    ("link", "link", "", 0, "multiple definition of `walk'"),
    ("no-rule", "rule", "", 0, "No rule to make target 'lib/no_such_file.o'"),
    ("kconfig", "config", "lib/Kconfig", 20, "syntax error"),
    ("killed", "killed", "", 0, "Killed signal terminated program cc1"),
    ("disk-full", "disk", "", 0, "No space left on device"),
    ("truncated", "compile", "/src/linux/lib/hweight.c", 72, "undeclared_z�hler"),
]


def log(name: str) -> str:
    return (LOGS / f"{name}.log").read_bytes().decode(errors="replace")


@pytest.mark.parametrize(("name", "kind", "file", "line", "words"), RECORDED, ids=[row[0] for row in RECORDED])
def test_recorded(name: str, kind: str, file: str, line: int, words: str) -> None:
    found = first_error(log(name))
    assert (found.kind, found.file, found.line) == (kind, file, line)
    assert words in found.text


def test_every_recorded_log_is_tested() -> None:
    assert {path.stem for path in LOGS.glob("*.log")} == {row[0] for row in RECORDED}


def test_warnings_are_no_errors() -> None:
    text = log("undeclared")
    calm = "\n".join(line for line in text.splitlines() if "error" not in line and "***" not in line)
    assert "warning:" in calm
    assert first_error(calm).kind == "unknown"


def test_lines_whose_form_the_kernels_scripts_fix() -> None:
    modpost = 'ERROR: modpost: "numa_tables" [kernel/sample.ko] undefined!'
    assert first_error(f"  MODPOST Module.symvers\n{modpost}\nmake[2]: *** [x] Error 1") == BuildFailure(
        "modpost", modpost
    )
    last = "make[2]: *** [/src/linux/scripts/Makefile.vmlinux:34: vmlinux] Error 139"
    assert first_error(f"  LD vmlinux\n{last}") == BuildFailure("make", last, "/src/linux/scripts/Makefile.vmlinux", 34)


def test_a_full_disk_is_the_cause_of_the_errors_before_it() -> None:
    assert first_error(log("undeclared") + log("disk-full")).kind == "disk"


def test_the_message_ends_with_error_and_log_and_knows_a_way_out() -> None:
    error = failure("building", log("syntax-error"), "/cache/build.log", strip="/src/linux")
    assert str(error).splitlines() == [
        "building failed:",
        "  lib/hweight.c:16:13: error: expected expression before '=' token",
        "full log: /cache/build.log",
    ]
    assert "--jobs" in failure("building", log("killed"), "x").remedy
    assert "cache prune" in failure("building", log("disk-full"), "x").remedy
    assert "wrote nothing" in str(failure("building", "", "x"))


@given(st.text(max_size=300))
def test_any_log_gives_something_to_read(text: str) -> None:
    assert first_error(text).text
