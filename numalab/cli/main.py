"""The command `numalab`: finds the verb's module, runs it, turns errors into exit statuses."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from numalab import __version__
from numalab.errors import NumalabError, nearest

#: verb → (module, what it does); modules are imported only when their verb runs, which keeps `--help` fast.
VERBS = {
    "doctor": "what is here, what is missing, how to get it",
    "kernel": "build the patched kernel, list kernels, check the patches",
    "boot": "boot a machine and run a command in it",
    "run": "run an experiment",
    "init": "write a first experiment file",
    "snapshot": "see where the page tables of processes live",
    "report": "write one self-contained HTML file about a run",
    "compare": "compare two runs, or two policies of one",
    "export": "write results as CSV or Parquet",
    "policies": "list policies and the knobs they set",
    "workloads": "list, describe and build the workloads",
    "selftest": "run the kernel's own tests in a machine",
    "features": "what a kernel offers to experiments",
    "cache": "list and prune what is kept",
    "completion": "print the completion script for a shell",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of a working day."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb's module and return its `command`."""
        if cmd_name not in VERBS:
            raise click.UsageError(f"no such command {cmd_name!r}{nearest(cmd_name, VERBS)}", ctx)
        module = importlib.import_module(f"numalab.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
@click.option("--color/--no-color", default=None, help="Colours in the terminal (NO_COLOR is respected).")
def cli(color: bool | None) -> None:
    """A laboratory for the NUMA placement of page tables."""
    if color is False:
        os.environ["NO_COLOR"] = "1"
    elif color:
        os.environ["FORCE_COLOR"] = "1"


def main(argv: list[str] | None = None) -> Any:
    """Run the command line and exit: 0 ok, 1 failed, 2 usage, 3 missing, 4 machine lost, 130 interrupted."""
    execute(cli, argv, name="numalab")


def execute(command: click.Command, argv: list[str] | None, *, name: str) -> Any:
    """Run a command called `name` and exit as `main` does; also for the commands of the systems under study."""
    try:
        status = command.main(args=argv, prog_name=name, standalone_mode=False)
    except click.exceptions.Abort:
        _say("interrupted")
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except NumalabError as error:
        _say(str(error))
        if error.remedy:
            click.echo(f"  → {error.remedy}", err=True)
        sys.exit(error.exit_status)
    except BrokenPipeError:
        # The reader of our output is gone; say nothing more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    sys.exit(status if isinstance(status, int) else 0)


def _say(message: str) -> None:
    click.echo(click.style("numalab: ", fg="red", bold=True) + message, err=True)
