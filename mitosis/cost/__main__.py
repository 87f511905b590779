"""`python -m mitosis.cost`: the table of costs, and whether it keeps what is promised."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import click

from mitosis.cost.measure import counts_on, find_policy
from mitosis.cost.scenarios import PLAIN_POLICY, SCENARIOS, SIZES, Counts, Scenario, by_key, rows
from mitosis.cost.table import Table
from numalab.cli.main import execute
from numalab.errors import MissingError
from numalab.kernel.image import KernelImage
from numalab.kernel.images import resolve
from numalab.page import publish
from numalab.run.counting import FACTS, UNPATCHED, differences
from numalab.run.kept import Kept
from numalab.run.policy import Policy

DEBIAN = "stock"


@click.command("cost", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--kernel", default="patched", show_default=True, help="The kernel under test.")
@click.option(
    "--base", default=UNPATCHED, show_default=True, help="What it is compared with: patched:none, patched:common."
)
@click.option("--debian/--no-debian", default=True, show_default=True, help="Report Debian's own kernel as well.")
@click.option("--scenario", "names", multiple=True, type=click.Choice(list(SCENARIOS)), help="Default: all of them.")
@click.option("--size", "sizes", multiple=True, type=click.Choice(list(SIZES)), help="Default: all of them.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/cost"), show_default=True)
@click.option(
    "--table", "page", type=click.Path(path_type=Path), metavar="FILE.md", help="Write the ratios there, too."
)
def command(
    kernel: str,
    base: str,
    debian: bool,
    names: tuple[str, ...],
    sizes: tuple[str, ...],
    out: Path,
    page: Path | None,
) -> int:
    """Count instructions of mmap, mprotect, munmap, page faults and fork on two kernels; print the ratios.

    What was counted before an interruption, or by an earlier run, is not counted again (OUT/counted).

    Writes cost.json and cost.md into the directory OUT, and with --table the ratios into a section of that page
    (docs/instructions.md has one). Exit status: 0 all bounds are kept, 1 one is
    exceeded, 3 a scenario cannot be counted, because the kernel or the policy is not there.
    """
    begun = time.monotonic()
    table = Table(resolve(kernel), resolve(base), resolve(DEBIAN) if debian else None)
    table.differences = differences(table.kernel.provenance, table.base.provenance)
    _count(table, [SCENARIOS[name] for name in names or SCENARIOS], sizes or tuple(SIZES), out)
    table.seconds = time.monotonic() - begun
    publish(table, "mitosis.cost", out, page)
    click.echo(f"results in {out}; {table.seconds:.0f} s", err=True)
    for scenario, row in table.exceeded:
        click.echo(
            f"exceeded: {scenario.name}: {row.count.op} of {row.count.size} {row.count.mapping}: "
            f"{row.ratio:.4f} > {row.bound:g}",
            err=True,
        )
    if table.exceeded:
        return 1
    return MissingError.exit_status if table.missing else 0


def _count(table: Table, scenarios: list[Scenario], sizes: tuple[str, ...], out: Path) -> None:
    """Fill in the table's scenarios; the base is counted once for each set of touching CPUs."""
    bases: dict[str, Counts] = {}
    plain = find_policy(PLAIN_POLICY)
    kept = Kept(out / "counted")

    def counts(role: str, kernel: KernelImage, policy: Policy, touchers: str) -> Counts:
        place = out / "logs" / f"{role}-{policy.name}-{touchers}"
        repeats = {size: SIZES[size] for size in sizes}
        found, facts = counts_on(kernel, policy, touchers, repeats, log_dir=place, kept=kept, say=_say)
        table.machine = {key: facts[key] for key in FACTS}
        table.complaints += [f"{kernel.name}, {policy.name}: {line}" for line in facts["complaints"]]
        return by_key(found)

    for scenario in scenarios:
        try:
            policy = find_policy(scenario.policy)
        except MissingError as error:
            table.missing[scenario.name] = str(error)
            _say(f"{scenario.name}: not counted: {error}")
            continue
        if scenario.touchers not in bases:
            bases[scenario.touchers] = counts("base", table.base, plain, scenario.touchers)
        mine = counts("kernel", table.kernel, policy, scenario.touchers)
        theirs = counts("debian", table.debian, plain, "none") if table.debian and scenario.name == "off" else None
        bounded = scenario if not table.differences else replace(scenario, bounds={})
        table.scenarios.append((scenario, rows(bounded, mine, bases[scenario.touchers], theirs)))


def _say(text: str) -> None:
    click.echo(f"cost: {text}", err=True)


if __name__ == "__main__":
    execute(command, None, name="python -m mitosis.cost")
