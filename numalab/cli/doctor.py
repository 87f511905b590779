"""`numalab doctor`: what is here, what is missing, how to get it."""

from __future__ import annotations

import click

from numalab.cli.console import table_console


@click.command("doctor")
@click.option("--no-probe", is_flag=True, help="Do not boot anything.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(no_probe: bool, as_json: bool) -> int:
    """Check this machine, a probe boot included; status 3 when something needed is missing."""
    from numalab.doctor import examine

    findings = examine(probe=not no_probe)
    if as_json:
        import json

        click.echo(json.dumps([finding.to_json() for finding in findings], indent=1))
    else:
        from rich.table import Table

        table = Table("check", "", "found", "needed", "how to get it", box=None)
        marks = {"ok": "[green]ok[/]", "missing": "[red]missing[/]", "note": "[yellow]note[/]"}
        for finding in findings:
            fix = "" if finding.state == "ok" else finding.fix
            table.add_row(finding.check, marks[finding.state], finding.found, finding.needed, fix)
        table_console().print(table)
    return 3 if any(finding.state == "missing" for finding in findings) else 0
