"""`numalab features`: what a kernel offers to experiments."""

from __future__ import annotations

import click

from numalab.cli.console import table_console
from numalab.cli.options import kernel_option


@click.command("features")
@kernel_option
@click.option("--accel", default="auto", show_default=True, metavar="auto|kvm|tcg")
@click.option("--nested", is_flag=True, help="Boot with SVM or VMX, as `numalab boot --nested` does.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(kernel: str, accel: str, nested: bool, as_json: bool) -> None:
    """Boot a kernel and list what it has, and which version or patch set brings what it lacks."""
    from numalab.features import KNOWN, survey
    from numalab.kernel.images import resolve
    from numalab.machine.session import Machine
    from numalab.machine.topology import uniform
    from numalab.run.system import systems

    known = [*KNOWN, *(feature for system in systems().values() for feature in system.features)]
    image = resolve(kernel, build=True)
    with Machine(image, uniform(2, 1, "512M"), accel=accel, nested=nested) as machine:
        found = survey(machine, known)
    if as_json:
        import json

        rows = [
            {"feature": f.name, "present": has, "brought_by": f.brought_by, "path": f.path} for f, has in found.items()
        ]
        click.echo(json.dumps({"kernel": image.name, "release": image.release, "features": rows}, indent=1))
        return
    from rich.table import Table

    table = Table("feature", "", "brought by", "seen at", title=f"{image.name}: Linux {image.release}")
    for feature, has in found.items():
        table.add_row(feature.name, "[green]yes[/]" if has else "[yellow]no[/]", feature.brought_by, feature.path)
    table_console().print(table)
