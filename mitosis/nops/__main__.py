"""`python -m mitosis.nops`: the table of NOPs by function, and whether it keeps what is promised."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import click

from mitosis.nops.sites import sites
from mitosis.nops.table import HOT, Row, hot_rows, problems, to_markdown
from numalab.cli.main import execute
from numalab.errors import MissingError
from numalab.kernel.images import resolve
from numalab.page import write_section


@click.command("nops", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--kernel", default="patched", show_default=True, help="The kernel that is looked at.")
@click.option("--vmlinux", type=click.Path(path_type=Path), help="An unpacked image with symbols instead.")
@click.option("--all", "everything", is_flag=True, help="All functions that have hooks.")
@click.option("--table", type=click.Path(path_type=Path), metavar="FILE.md", help="Write the table into that page.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(kernel: str, vmlinux: Path | None, everything: bool, table: Path | None, as_json: bool) -> int:
    """Count the NOPs of page-table replication in a kernel image, by function.

    Exit status: 1 when a place of a hook is no NOP, or a function that is hot has more of them than it may.
    """
    if vmlinux is not None:
        file, name = vmlinux, str(vmlinux)
    else:
        image = resolve(kernel)
        if image.vmlinux is None:
            raise MissingError(f"the kernel {kernel!r} has no vmlinux beside it", remedy="numalab kernel build")
        file, name = image.vmlinux, f"Linux {image.release}, build-id `{image.build_id[:16]}`"
    found = sites(file)
    rows = hot_rows(found, HOT)
    bad = problems(found, rows)
    if everything:
        rest = Counter(site.symbol for site in found if not any(site.is_in(name) for name in HOT))
        rows += [Row(each or "(replaced)", tuple(s for s in found if s.symbol == each), None) for each in sorted(rest)]
    text = to_markdown(found, rows, name)
    if table:
        write_section(table, "mitosis.nops", text)
    if as_json:
        click.echo(json.dumps({"problems": bad, "sites": [site.to_json() for site in found]}, indent=1))
    else:
        click.echo(text)
    for line in bad:
        click.echo(f"not as promised: {line}", err=True)
    return int(bool(bad))


if __name__ == "__main__":
    execute(command, None, name="python -m mitosis.nops")
