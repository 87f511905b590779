"""The terminal that tables are printed to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

#: Columns where there is no terminal to ask (a pipe, a log): tables stay whole.
_WIDTH_OF_A_PIPE = 160


def table_console() -> Console:
    """A rich console on standard output, as wide as the terminal, or wide enough for a table in a file."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE)
