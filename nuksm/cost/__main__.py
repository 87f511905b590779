"""`python -m nuksm.cost`: the table of what scanning costs, and whether it keeps what is promised."""

from __future__ import annotations

import time
from pathlib import Path

import click

from nuksm.cost.passes import Pass
from nuksm.cost.scan import CONTENTS, NO_POLICY, passes_on
from nuksm.cost.table import Case, Table
from numalab.cli.main import execute
from numalab.errors import MissingError
from numalab.kernel.image import KernelImage
from numalab.kernel.images import resolve
from numalab.page import publish
from numalab.run.counting import FACTS, UNPATCHED, differences
from numalab.run.kept import Kept

SIZES = ("32M", "128M")
THREADS = (1, 2, 4)
PASSES = 5
#: What else can place pages while they are counted.
PLACING = ("fair", "priority", "strict")


@click.command("cost", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--kernel", default="patched", show_default=True, help="The kernel under test.")
@click.option("--base", default=UNPATCHED, show_default=True, help="What it is compared with.")
@click.option("--size", "sizes", multiple=True, help=f"Of each of the two processes. Default: {', '.join(SIZES)}.")
@click.option("--content", "contents", multiple=True, type=click.Choice(list(CONTENTS)), help="Default: both.")
@click.option("--threads", "threads", multiple=True, type=click.IntRange(1, 64), help="Default: 1, 2 and 4.")
@click.option(
    "--policy", "policies", multiple=True, type=click.Choice(PLACING), help="One row more, of one thread, under it."
)
@click.option("--passes", default=PASSES, show_default=True, type=click.IntRange(3))
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/scan-cost"), show_default=True)
@click.option("--table", "page", type=click.Path(path_type=Path), metavar="FILE.md", help="Write the table there, too.")
def command(
    kernel: str,
    base: str,
    sizes: tuple[str, ...],
    contents: tuple[str, ...],
    threads: tuple[int, ...],
    policies: tuple[str, ...],
    passes: int,
    out: Path,
    page: Path | None,
) -> int:
    """Count instructions of KSM for each scanned page, with one thread and several, on two kernels.

    What was counted before an interruption, or by an earlier run, is not counted again (OUT/counted).

    Writes cost.json and cost.md into the directory OUT, and with --table the table into a section of that page
    (docs/scan-cost.md has one). Exit status: 0 what is promised is kept, 1 it is not, 3
    something could not be counted, because the kernel does not have it or the memory was too small.
    """
    begun = time.monotonic()
    table = Table(resolve(kernel), resolve(base))
    table.differences = differences(table.kernel.provenance, table.base.provenance)

    kept = Kept(out / "counted")

    def counted(
        role: str, image: KernelImage, size: str, content: str, number: int, policy: str = NO_POLICY
    ) -> list[Pass]:
        place = out / "logs" / f"{role}-{size}-{content}-{number}-{policy}"
        found, facts = passes_on(
            image, size, content, number, passes, policy=policy, log_dir=place, kept=kept, say=_say
        )
        table.machine = {key: facts[key] for key in FACTS}
        table.complaints += [f"{image.name}, {size} {content}: {line}" for line in facts["complaints"]]
        return found

    for size in sizes or SIZES:
        for content in contents or tuple(CONTENTS):
            rows = [(number, NO_POLICY) for number in threads or THREADS] + [(1, policy) for policy in policies]
            for number, policy in rows:
                try:
                    mine = counted("kernel", table.kernel, size, content, number, policy)
                except MissingError as error:
                    what = f"{number} threads" if policy == NO_POLICY else policy
                    table.missing[f"{size} {content}, {what}"] = str(error)
                    _say(f"not counted: {error}")
                    continue
                its = counted("base", table.base, size, content, 1) if number == 1 else []
                table.cases.append(Case(size, content, number, mine, its, policy))
    table.seconds = time.monotonic() - begun
    publish(table, "nuksm.cost", out, page)
    click.echo(f"results in {out}; {table.seconds:.0f} s", err=True)
    if table.broken:
        return 1
    return MissingError.exit_status if table.missing or table.unknown else 0


def _say(text: str) -> None:
    click.echo(f"scan cost: {text}", err=True)


if __name__ == "__main__":
    execute(command, None, name="python -m nuksm.cost")
