"""`python -m vmitosis.cost`: the table of costs, and whether it keeps what is promised."""

from __future__ import annotations

from pathlib import Path

import click

from numalab.cli.main import execute
from numalab.errors import ExperimentError
from numalab.kernel.image import KernelImage
from numalab.kernel.images import resolve
from numalab.page import publish
from numalab.run.counting import UNPATCHED, differences
from vmitosis.cost import follow
from vmitosis.cost.measure import MODES, count, machine_for
from vmitosis.cost.table import Table


@click.command("cost", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--kernel", default="patched", show_default=True, help="The kernel under test.")
@click.option("--base", default=UNPATCHED, show_default=True, help="What it is compared with; none: with nothing.")
@click.option(
    "--instructions/--no-instructions", default=True, show_default=True, help="Count faults and instructions."
)
@click.option("--follow/--no-follow", "follows", default=True, show_default=True, help="Move a guest.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/vmitosis-cost"), show_default=True)
@click.option("--table", "page", type=click.Path(path_type=Path), metavar="FILE.md", help="Write the table there, too.")
def command(kernel: str, base: str, instructions: bool, follows: bool, out: Path, page: Path | None) -> int:
    """Count second-level faults, their instructions and table bytes, off, local and replicated; move a guest.

    Writes cost.json and cost.md into the directory OUT, and with --table a section of that page (docs/vmitosis.md has
    one). Exit status: 0 all bounds are kept, 1 one is exceeded.
    """
    table = Table()
    image = resolve(kernel)
    table.builds[image.name] = image.build_id
    if instructions:
        plan: list[tuple[KernelImage, tuple[str, ...]]] = []
        if base != "none":
            against = resolve(base)
            table.builds[against.name] = against.build_id
            table.differences = differences(image.provenance, against.provenance)
            plan.append((against, ("kernel",)))
        plan.append((image, tuple(mode for mode in MODES if mode != "kernel")))
        for each, modes in plan:
            _say(f"{each.name}: {', '.join(modes)}")
            with machine_for(each, out / "logs" / each.name.replace(":", "-")) as machine:
                for mode in modes:
                    try:
                        table.counted.append(count(machine, mode))
                    except ExperimentError as error:
                        table.missing[f"{each.name}, {mode}"] = str(error)
    if follows:
        _say("a guest that moves")
        table.followed = follow.measure(image)
    publish(table, "vmitosis.cost", out, page)
    for text in table.exceeded:
        click.echo(f"exceeded: {text}", err=True)
    return 1 if table.exceeded or table.missing else 0


def _say(text: str) -> None:
    click.echo(f"cost: {text}", err=True)


if __name__ == "__main__":
    execute(command, None, name="python -m vmitosis.cost")
