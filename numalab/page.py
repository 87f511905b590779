"""What a command has counted: in files, and in a section of a page of the documentation that it replaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import click

from numalab.errors import UserError
from numalab.paths import write_atomic, write_json


class CostTable(Protocol):
    """What a command has counted."""

    def to_json(self) -> dict[str, Any]:
        """All of it."""

    def to_markdown(self) -> str:
        """The tables as people read them."""

    def summary(self) -> str:
        """What a page of the documentation shows."""


def publish(table: CostTable, name: str, out: Path, page: Path | None) -> None:
    """Write cost.json and cost.md into the directory `out`, the section `name` into `page`, and print the tables.

    Raises:
        UserError: see `write_section`.
    """
    write_json(out / "cost.json", table.to_json())
    write_atomic(out / "cost.md", table.to_markdown())
    if page:
        write_section(page, name, table.summary())
    click.echo(table.to_markdown())


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
