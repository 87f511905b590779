"""`python -m vmitosis.survival`: what a guest with replicated second-level tables survives."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from numalab.cli.main import execute
from numalab.errors import NumalabError
from numalab.page import write_section
from numalab.paths import write_json


def read_runs(path: Path) -> list[dict[str, Any]]:
    """What was found before; nothing where there is no such file."""
    try:
        value = json.loads(path.read_text())
    except OSError:
        return []
    return list(value["runs"])


def to_markdown(runs: Sequence[Mapping[str, Any]]) -> str:
    """A table for a page, with the build-id of the kernel that each scenario was run on."""
    lines = ["Counted in emulation, or measured where there is KVM: guests either survive or do not.", ""]
    lines += ["| scenario | mode | outcome | facts | seconds | kernel (build-id) |", "|---|---|---|---|---|---|"]
    for each in runs:
        said = each["facts"] if each["survived"] else {"error": each["error"].splitlines()[0]}
        facts = ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in said.items()).replace("|", "/")
        outcome = "survived" if each["survived"] else "**lost**"
        lines.append(
            f"| `{each['scenario']}` | {each['mode']} | {outcome} | {facts} | {each['seconds']:g} | {each['kernel']} |"
        )
    return "\n".join(lines) + "\n"


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
@click.option("--resume", is_flag=True, help="Leave out what has survived before, on this kernel and in this mode.")
@click.option("--table", "page", type=click.Path(path_type=Path), metavar="FILE.md", help="Write the table there, too.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/survival"), show_default=True)
def command(
    names: tuple[str, ...], kernel: str, modes: tuple[str, ...], accel: str, resume: bool, page: Path | None, out: Path
) -> int:
    """Run each SCENARIO (all of them without names) and print what came of it.

    Writes survival.json into the directory OUT after each, and with --table a section of that page.

    Exit status: 0 the guests survived all of them, 1 not.
    """
    from numalab.errors import UserError, nearest
    from numalab.kernel.images import resolve
    from vmitosis.survival.rig import Rig, machine_for
    from vmitosis.survival.scenarios import SCENARIOS

    for name in names:
        if name not in SCENARIOS:
            raise UserError(f"no scenario {name!r}{nearest(name, SCENARIOS)} (there are {', '.join(SCENARIOS)})")
    image = resolve(kernel)
    build = image.build_id or image.release
    known = read_runs(out / "survival.json")
    good = [each for each in known if resume and each["survived"] and each["kernel"] == build]
    done = {(each["scenario"], each["mode"]): each for each in good}
    found: list[dict[str, Any]] = []
    for mode in modes:
        for name in names or SCENARIOS:
            if (name, mode) in done:
                found.append(done[name, mode])
                continue
            begun = time.monotonic()
            entry: dict[str, Any] = {"scenario": name, "mode": mode, "kernel": build}
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
            # What another call has found is kept, but for what was just run again.
            here = {(each["scenario"], each["mode"], each["kernel"]) for each in found}
            kept = [each for each in known if (each["scenario"], each["mode"], each["kernel"]) not in here]
            write_json(out / "survival.json", {"runs": [*kept, *found]})
    if page:
        write_section(page, "vmitosis.survival", to_markdown(found))
    return 0 if all(entry["survived"] for entry in found) else 1


if __name__ == "__main__":
    execute(command, None, name="python -m vmitosis.survival")
