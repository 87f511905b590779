"""Reading the console log of a guest: panics, oopses, and kernel complaints.

The console is a log only; commands and their status go through the channel. Patterns are the
kernel's own (kernel/panic.c, arch/x86/kernel/dumpstack.c, lib/bug.c, mm/kasan/report.c, kernel/locking/lockdep.c).
"""

from __future__ import annotations

import re
from pathlib import Path

_STAMP = re.compile(r"^(?:<\d+>)?\[\s*\d+\.\d+\](?:\[[^\]]*\])? ?")
_PANIC = re.compile(r"Kernel panic - not syncing")
_OOPS = re.compile(
    r"Kernel panic - not syncing|BUG: |Oops: |general protection fault|kernel BUG at|"
    r"Unable to handle|double fault|stack segment"
)
_COMPLAINT = re.compile(
    r"WARNING: |BUG: |Oops: |general protection fault|kernel BUG at|"
    r"possible recursive locking|possible circular locking|inconsistent lock state|"
    r"INFO: rcu.*stall|INFO: task .* blocked|BUG: KASAN|BUG: KCSAN|BUG: sleeping function|UBSAN:|"
    r"unreferenced object"
)
#: Lines kept around the first sign of a panic: a whole x86 oops with its stack fits.
_BEFORE, _AFTER = 5, 80


def read(path: Path) -> list[str]:
    """Lines of a console log; bytes that are not text are shown as escapes, never an error."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    text = raw.decode("utf-8", errors="backslashreplace")
    return [line.rstrip("\r") for line in text.split("\n")]


def find_oops(lines: list[str]) -> str:
    """The first oops or panic with its surroundings, or "" when the kernel did not panic."""
    if not any(_PANIC.search(line) for line in lines):
        return ""
    first = next(n for n, line in enumerate(lines) if _OOPS.search(line))
    return "\n".join(lines[max(0, first - _BEFORE) : first + _AFTER]).strip()


def panic_reason(oops: str) -> str:
    """The words behind "Kernel panic - not syncing:", or ""."""
    found = re.search(r"Kernel panic - not syncing:? ?(.*)", oops)
    return found[1].strip() if found else ""


def complaints(lines: list[str]) -> list[str]:
    """Lines in which the kernel warned about itself (WARN, BUG, lockdep, KASAN, stalls), stamps removed."""
    return [_STAMP.sub("", line) for line in lines if _COMPLAINT.search(line)]


def tail(lines: list[str], count: int = 20) -> str:
    """The last `count` lines that hold something."""
    return "\n".join([line for line in lines if line.strip()][-count:])
