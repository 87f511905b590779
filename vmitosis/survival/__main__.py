"""`python -m vmitosis.survival`: what a guest with replicated second-level tables survives."""

from __future__ import annotations

import time
from pathlib import Path

import click

from numalab.cli.main import execute
from numalab.errors import NumalabError
from numalab.paths import write_json


@click.command("survival", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[SCENARIO]...")
@click.option("--kernel", default="patched", show_default=True, help="Of the machine and of its guests.")
@click.option(
    "--mode",
    "modes",
    multiple=True,
    type=click.Choice(["off", "local", "replicate"]),
    default=("replicate",),
    show_default=True,
    help="Of the second level; each of them.",
)
@click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/survival"), show_default=True)
def command(names: tuple[str, ...], kernel: str, modes: tuple[str, ...], accel: str, out: Path) -> int:
    """Run each SCENARIO (all of them without names) and print what came of it.

    Writes survival.json into the directory OUT. Exit status: 0 the guests survived all of them, 1 not.
    """
    from numalab.errors import UserError, nearest
    from numalab.kernel.images import resolve
    from vmitosis.survival.rig import Rig, machine_for
    from vmitosis.survival.scenarios import SCENARIOS

    for name in names:
        if name not in SCENARIOS:
            raise UserError(f"no scenario {name!r}{nearest(name, SCENARIOS)} (there are {', '.join(SCENARIOS)})")
    image = resolve(kernel)
    found = []
    for mode in modes:
        for name in names or SCENARIOS:
            begun = time.monotonic()
            entry: dict[str, object] = {"scenario": name, "mode": mode, "kernel": image.build_id or image.release}
            try:
                # A machine of its own: what one guest leaves behind is nothing to the next.
                with machine_for(image, accel=accel) as machine:
                    rig = Rig(machine, image, mode)
                    rig.prepare()
                    entry |= {"survived": True, "facts": SCENARIOS[name](rig)}
            except NumalabError as error:
                entry |= {"survived": False, "error": str(error)}
            entry["seconds"] = round(time.monotonic() - begun, 1)
            found.append(entry)
            said = entry.get("facts") if entry["survived"] else entry["error"]
            click.echo(f"{mode:<9} {name:<17} {'ok' if entry['survived'] else 'LOST':<4} {said}")
            write_json(out / "survival.json", {"runs": found})
    return 0 if all(entry["survived"] for entry in found) else 1


if __name__ == "__main__":
    execute(command, None, name="python -m vmitosis.survival")
