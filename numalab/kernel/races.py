"""Data races that a kernel of flavour "races" has reported (KCSAN), and whose they are.

A race is between two places, each in a function: the report's title names both, or one and says that the other is
unknown (kernel/kcsan/report.c). A kernel has some of its own, which its maintainers know and leave: what counts are
those with a foot in the files one has written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from drgn import Program

_TITLE = re.compile(r"BUG: KCSAN: (?P<kind>[\w: -]+?) in (?P<first>[\w.]+)(?:\+\S+)?(?: / (?P<second>[\w.]+))?")
#: What the compiler adds to the name of a function that it has changed, e.g. "scan_one.constprop.0".
_CHANGED = re.compile(r"\.(?:constprop|isra|part|cold)\b.*")


@dataclass(frozen=True)
class Race:
    """One report: "data-race" or "assert: race", and its functions; `second` is "" where the kernel does not know."""

    kind: str
    first: str
    second: str = ""

    def __str__(self) -> str:
        """As "data-race in f / g"."""
        return f"{self.kind} in {self.first}" + (f" / {self.second}" if self.second else "")


def reported(lines: Iterable[str]) -> list[Race]:
    """Return the races that lines of a console tell of, each once."""
    found = (_TITLE.search(line) for line in lines)
    races = (Race(each["kind"], _plain(each["first"]), _plain(each["second"] or "")) for each in found if each)
    return list(dict.fromkeys(races))


def of_files(races: Sequence[Race], vmlinux: Path, files: Iterable[str]) -> list[Race]:
    """Return the races with a function of one of `files` ("mm/ksm.c" ...), by the DWARF of `vmlinux`."""
    program = Program()
    program.extra_module(str(vmlinux), create=True).try_file(str(vmlinux), force=True)
    names = {name for race in races for name in (race.first, race.second) if name}
    ours = {name for name in names if any(_defined(program, name, file) for file in files)}
    return [race for race in races if race.first in ours or race.second in ours]


def _plain(name: str) -> str:
    return _CHANGED.sub("", name)


def _defined(program: Program, name: str, file: str) -> bool:
    try:
        program.function(name, file)
    except LookupError:
        return False
    return True
