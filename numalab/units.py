"""Sizes as people write them ("512M", "1G") and as they read them ("512 MiB")."""

from __future__ import annotations

import re

from numalab.errors import UserError

_FACTORS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str | int, *, what: str = "size") -> int:
    """Return the number of bytes `text` names; suffixes K, M, G, T are powers of 1024.

    Raises:
        UserError: when `text` is not a size; names `what`.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    found = re.fullmatch(r"\s*(\d+)\s*([kmgt]?)(i?b)?\s*", str(text), re.IGNORECASE)
    if not found:
        raise UserError(f"{what}: {text!r} is not a size (write 4096, 64K, 512M or 2G)")
    return int(found[1]) * _FACTORS[found[2].lower()]


def format_size(number: float) -> str:
    """Return bytes in the largest binary unit that keeps at least one unit, e.g. "512 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{number:.0f} {unit}" if number == int(number) else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
