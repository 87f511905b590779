"""Configuration fragments: pieces of a `.config` with comments that say why.

A value may be set once. A later fragment (debug after base) changes it only under a comment that
is "override" or starts with "override:", on the line before or behind the value; an override of nothing is an error
too, so that the comment stays true:

    # override: lockdep needs more of it
    CONFIG_LOG_BUF_SHIFT=20
    CONFIG_SLUB_TINY=n  # override: KASAN needs the full allocator
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from numalab.errors import UserError

_NAME = r"CONFIG_[A-Za-z0-9_]+"
_SET = re.compile(rf'({_NAME})=("(?:[^"\\]|\\.)*"|[^"\s#]+)\s*(?:#\s*(.*))?')
_UNSET = re.compile(rf"#\s*({_NAME}) is not set\s*(?:#\s*(.*))?")
_VALUE = re.compile(r'[ymn]|"(?:[^"\\]|\\.)*"|-?[0-9]+|0[xX][0-9a-fA-F]+')


@dataclass(frozen=True)
class Setting:
    """One asked-for value: "y", "m", "n", a number or a string in its quotes; and where it is asked for."""

    symbol: str
    value: str
    file: str
    line: int
    override: bool = False

    @property
    def where(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line}"

    @property
    def text(self) -> str:
        """The line as a `.config` has it."""
        return f"# {self.symbol} is not set" if self.value == "n" else f"{self.symbol}={self.value}"


def parse(text: str, file: str) -> list[Setting]:
    """Return the settings of one fragment in order.

    Raises:
        UserError: a line that is neither setting nor comment, a bad value, a symbol set twice.
    """
    settings: dict[str, Setting] = {}
    marked = False
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        found = _SET.fullmatch(line) or _UNSET.fullmatch(line)
        if not found:
            if line and not line.startswith("#"):
                raise UserError(f"{file}:{number}: {line!r} is neither CONFIG_X=value nor a comment")
            if line:
                marked = _is_override(line.lstrip("# "))
            continue
        symbol, value, comment = found[1], "n", found[2]
        if found.re is _SET:
            value, comment = found[2], found[3]
        if not _VALUE.fullmatch(value):
            raise UserError(f"{file}:{number}: {value!r} is no value for {symbol} (y, m, n, a number, a string)")
        setting = Setting(symbol, value, file, number, marked or _is_override(comment or ""))
        if symbol in settings:
            raise UserError(f"{symbol} is set twice: {settings[symbol].where} and {setting.where}")
        settings[symbol] = setting
        marked = False
    return list(settings.values())


def _is_override(comment: str) -> bool:
    return re.match(r"override\s*(:|$)", comment) is not None


def read(files: Iterable[Path]) -> list[list[Setting]]:
    """Parse each of `files`.

    Raises:
        UserError: as `parse`, or a file that is not there.
    """
    parsed = []
    for file in files:
        if not file.is_file():
            raise UserError(f"there is no configuration fragment {file}")
        parsed.append(parse(file.read_text(), file.name))
    return parsed


def merge(fragments: Iterable[Iterable[Setting]]) -> dict[str, Setting]:
    """Merge fragments in order; returns symbol → the setting that counts.

    Raises:
        UserError: two fragments want different values and the later does not say "override", or one
            says "override" where nothing is overridden; shows both places.
    """
    merged: dict[str, Setting] = {}
    for fragment in fragments:
        for setting in fragment:
            before = merged.get(setting.symbol)
            if before is None or before.value == setting.value:
                if setting.override:
                    raise UserError(
                        f"{setting.where}: {setting.symbol} overrides nothing"
                        + (f": {before.where} has the same value" if before else ""),
                        remedy="remove the comment 'override'",
                    )
            elif not setting.override:
                raise UserError(
                    f"fragments disagree: {before.where} has {before.text!r}, {setting.where} has {setting.text!r}",
                    remedy=f"if {setting.file} is meant to win, say '# override: why' before that line",
                )
            merged[setting.symbol] = setting
    return merged


def digest(settings: Mapping[str, Setting]) -> str:
    """sha256 over symbols and values: comments and order do not matter."""
    lines = sorted(f"{setting.symbol}={setting.value}" for setting in settings.values())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def render(settings: Mapping[str, Setting]) -> str:
    """Return the merged fragment as text; each block says which file it comes from."""
    lines: list[str] = []
    last = ""
    for setting in settings.values():
        if setting.file != last:
            lines.append(f"# from {setting.file}")
            last = setting.file
        lines.append(setting.text)
    return "\n".join(lines) + "\n"
