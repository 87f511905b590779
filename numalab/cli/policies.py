"""`numalab policies`: what can be set, and what each policy writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from numalab.results import Json
    from numalab.run.policy import Policy


@click.group("policies", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List and describe the policies that experiments can name."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_all, as_json=False)


@command.command("list")
@click.option("--json", "as_json", is_flag=True)
def list_all(as_json: bool) -> None:
    """One line per policy."""
    from numalab.run.system import policies

    known = policies()
    if as_json:
        import json

        click.echo(json.dumps([_to_json(policy) for policy in known.values()], indent=1))
        return
    width = max(map(len, known))
    for policy in known.values():
        click.echo(f"{policy.name:{width}}  {policy.summary}")


@command.command("describe")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True)
def describe(name: str, as_json: bool) -> None:
    """Say what policy NAME sets, which parameters it has, and what it needs."""
    from numalab.errors import UserError, nearest
    from numalab.run.system import owner, policies

    known = policies()
    if name not in known:
        raise UserError(f"unknown policy {name!r}{nearest(name, known)}", remedy="numalab policies list")
    policy = known[name]
    if as_json:
        import json

        click.echo(json.dumps(_to_json(policy), indent=1))
        return
    click.echo(f"{policy.name} (of {owner(name)}): {policy.summary}")
    for key, param in policy.params.items():
        click.echo(f"  parameter {key} = {param.default!r}: {param.help}")
    for knob in policy.knobs:
        when = f" when the program announces its mark {knob.mark}" if knob.mark else ""
        click.echo(f"  writes {knob.value} to {knob.path}{', where that exists' if knob.optional else ''}{when}")
    for option, value in policy.options.items():
        click.echo(f"  gives the workload {option} = {value!r}")
    for node in policy.interference:
        click.echo(f"  loads the memory of node {node} meanwhile")
    if policy.wrap:
        click.echo(f"  runs the workload under: {' '.join(policy.wrap)}")
    if policy.requires:
        click.echo(f"  needs the patch set{'s' * (len(policy.requires) > 1)} {', '.join(policy.requires)}")


def _to_json(policy: Policy) -> Json:
    from numalab.run.system import owner

    return {
        **policy.to_json(),
        "system": owner(policy.name),
        "summary": policy.summary,
        "requires": list(policy.requires),
        "params": {key: {"default": param.default, "help": param.help} for key, param in policy.params.items()},
    }
