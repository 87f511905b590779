"""`numalab kernel …`, on the kernel tree in miniature."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from numalab.cli.kernel import command
from numalab.errors import ExperimentError, MissingError
from numalab.paths import ROOT
from tests.unit.kernel_fakes import CODE_PATCH, Lab, make_lab


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    lab = make_lab(tmp_path, monkeypatch)
    lab.serve_source()
    lab.patch("common/0001-code.patch", CODE_PATCH)
    lab.series("common/0001-code.patch")
    return lab


def run(*words: str) -> Result:
    return CliRunner().invoke(command, words, catch_exceptions=False)


def test_build_path_and_list(lab: Lab) -> None:
    with pytest.raises(MissingError):
        run("path")
    built = run("build", "--jobs", "2")
    assert built.stdout.startswith("patched  6.12.117-numalab  id ")
    assert "numalab: building patched with 2 jobs" in built.stderr
    path = run("path").stdout.strip()
    assert path in built.stdout
    assert Path(path).name == "bzImage"
    facts = json.loads(run("build", "--json").stdout)
    assert facts["path"] == path
    assert json.loads(run("path", "--kernel", facts["id"], "--json").stdout)["release"] == "6.12.117-numalab"
    rows = json.loads(run("list", "--json").stdout)
    assert {row["name"]: row["state"] for row in rows} == {
        "stock": "not downloaded",
        "patched": "ready",
        "debug": "not built",
        "races": "not built",
    }
    table = run("list").stdout.splitlines()
    assert table[0].split() == ["name", "state", "release", "sets", "size", "built", "id"]
    assert len(table) == 5


def test_build_with_options(lab: Lab) -> None:
    mine = lab.tree()
    facts = json.loads(run("build", "--debug", "--sets", "none", "--source", str(mine), "--json").stdout)
    assert (facts["name"], facts["source"]["origin"]) == ("debug:none", str(mine))
    assert run("build", "--jobs", "0").exit_code == 2


def test_check(lab: Lab) -> None:
    assert run("check").stdout == (
        "1 patch applies to Linux 6.12.117 (Debian linux-source-6.12 6.12.117-1), every hunk where it says\n"
    )
    mine = lab.tree()
    memory = mine / "mm/memory.c"
    memory.write_text("/* one more line */\n" + memory.read_text())
    assert (
        "common/0001-code.patch: mm/memory.c: hunk #1 applied +1 lines away\n"
        in run("check", "--source", str(mine)).stdout
    )
    shown = json.loads(run("check", "--source", str(mine), "--json").stdout)
    assert (shown["applies"], shown["offsets"][0]["lines"]) == (True, 1)
    memory.write_text("/* nothing left */\n")
    with pytest.raises(ExperimentError) as caught:
        run("check", "--source", str(mine))
    assert caught.value.exit_status == 1
    failed = CliRunner().invoke(command, ["check", "--source", str(mine), "--json"])
    assert json.loads(failed.stdout)["applies"] is False


def test_config(lab: Lab) -> None:
    shown = run("config", "--debug").stdout
    assert shown.startswith("# from base.config\nCONFIG_SMP=y\n")
    assert shown.endswith("# from debug.config\nCONFIG_KASAN=y\n")
    facts = json.loads(run("config", "--json").stdout)
    assert facts["CONFIG_NODES_SHIFT"] == {"value": "6", "where": "base.config:5"}
    assert "CONFIG_ACPI_TABLES=y\n" in run("config", "--full").stdout
    assert json.loads(run("config", "--full", "--json").stdout)["CONFIG_ACPI_TABLES"] == "y"


def test_help_imports_only_what_help_needs() -> None:
    script = (
        "import sys, numalab.cli.kernel, numalab.cli.cache; "
        "print([name for name in sys.modules if name.startswith(('numalab.kernel', 'rich', 'numpy'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
