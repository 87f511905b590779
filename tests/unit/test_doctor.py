"""What doctor says about rights and tools that this machine may have or lack."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

from numalab import doctor


def test_the_memory_of_a_stranger_can_be_read_or_the_way_to_it_is_said() -> None:
    before = readers()
    found = doctor.ptrace()
    assert found.state in ("ok", "missing")
    assert found.state == "ok" or "ptrace_scope" in found.fix
    deadline = time.monotonic() + 20
    while readers() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not readers() - before, "the process that was looked at is gone"


def readers() -> set[Path]:
    """Processes that are nothing but `cat`."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (path / "cmdline").read_bytes() == b"cat\0":
                found.add(path)
    return found


@pytest.mark.parametrize(
    ("scope", "words"), [("1\n", "kernel.yama.ptrace_scope is 1"), (None, "no CAP_SYS_PTRACE here")]
)
def test_a_refusal_says_which_rule_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: str | None, words: str
) -> None:
    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    if scope:
        (tmp_path / "scope").write_text(scope)
    found = doctor.ptrace(tmp_path / "scope")
    assert (found.state, found.found) == ("missing", f"cannot be read: {words}")
    assert "sysctl kernel.yama.ptrace_scope=0" in found.fix
