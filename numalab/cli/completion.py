"""`numalab completion SHELL`: the script that a shell sources."""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script for SHELL, e.g. `eval "$(numalab completion bash)"`."""
    from click.shell_completion import get_completion_class

    from numalab.cli.main import cli

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "numalab", "_NUMALAB_COMPLETE").source())
