"""Results in a page of the documentation: a section between two marks, which the command that made it replaces."""

from __future__ import annotations

from pathlib import Path

from numalab.errors import UserError
from numalab.paths import write_atomic


def write_section(page: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->` in a page of Markdown.

    Raises:
        UserError: the page cannot be read, or has no such section, or more than one.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    try:
        before = page.read_text()
    except OSError as error:
        raise UserError(f"{page}: {error.strerror}") from None
    if before.count(begin) != 1 or before.count(end) != 1 or before.index(begin) > before.index(end):
        raise UserError(f"{page} has no section between {begin.strip()} and {end.strip()}")
    head, tail = before.partition(begin)[0], before.partition(end)[2]
    write_atomic(page, f"{head}{begin}\n{text.strip()}\n\n{end}{tail}")
