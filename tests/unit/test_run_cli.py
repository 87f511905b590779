"""The verbs run, init and policies, on a laboratory without machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from numalab.cli import init, policies, run
from numalab.errors import NumalabError
from numalab.run import lab
from tests.unit.fake_lab import QUICK, World, make_lab


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(lab, "default_lab", lambda **_: make_lab(made, tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp.toml").write_text(QUICK)
    return made


def invoke(*words: str, command: Any = run.command) -> Result:
    return CliRunner().invoke(command, words, standalone_mode=False)


def test_a_run_and_its_cached_repetition(world: World) -> None:
    first = invoke("exp.toml")
    assert first.return_value == 0, first.output
    directory = Path("results/_latest").resolve()
    assert f"16 of 16 cells succeeded; results in results/{directory.name}" in first.output
    again = invoke("exp.toml", "--resume")
    assert again.return_value == 0
    assert again.output == f"16 of 16 cells succeeded (16 were done before); results in results/{directory.name}\n"
    assert world.boots == 2


def test_a_new_run_gets_a_directory_of_its_own(world: World) -> None:
    invoke("exp.toml", "--repeat", "1")
    invoke("exp.toml", "--repeat", "1")
    found = sorted(path.name for path in Path("results").iterdir())
    assert found[0] == "_latest"
    assert found[2] == f"{found[1]}-2"
    assert Path("results/_latest").readlink() == Path(found[2])


def test_dry_run_prints_cells_and_commands_and_runs_nothing(world: World) -> None:
    done = invoke("exp.toml", "--dry-run", "--only", "policy=mitosis", "--only", "kernel=patched", "--repeat", "1")
    assert done.return_value == 0
    lines = done.output.splitlines()
    assert lines[1:4] == [
        "    # echo 1 > /proc/sys/vm/zone_reclaim_mode",
        "    # echo always > /sys/kernel/mm/transparent_hugepage/enabled",
        f"    # {lines[0].split()[1]}",
    ]
    assert lines[-1] == "2 cells, seed 7"
    assert (world.boots, Path("results").exists()) == (0, False)


def test_dry_run_ids_are_those_of_the_run(world: World) -> None:
    plan = json.loads(invoke("exp.toml", "--dry-run", "--json").output)
    invoke("exp.toml", "--out", "out")
    assert [cell["id"] for cell in plan["cells"]] == json.loads(Path("out/experiment.json").read_text())["order"]


def test_dry_run_without_the_kernel(world: World) -> None:
    world.missing_kernels = ("patched",)
    done = invoke("exp.toml", "--dry-run")
    assert done.return_value == 0
    assert done.output.count("(not built yet)") == 8
    assert "not yet possible: kernel 'patched' is not built\n  → numalab kernel build" in done.output


def test_json_summary(world: World) -> None:
    done = CliRunner().invoke(run.command, ["exp.toml", "--json", "--repeat", "1"], standalone_mode=False)
    value = json.loads(done.stdout)
    assert (value["planned"], value["failed"], value["left"], len(value["cells"])) == (8, 0, 0, 8)
    assert value["cells"][0]["outcome"]["type"] == "exit"


@pytest.mark.parametrize(("act", "status"), [("ok", 0), ("fail", 1), ("silent", 1), ("panic", 4), ("timeout", 1)])
def test_exit_status(world: World, act: str, status: int) -> None:
    Path("exp.toml").write_text(f'repeats = 1\n[matrix]\nworkload = "gups"\n[workloads.gups]\nact = "{act}"\n')
    assert invoke("exp.toml").return_value == status


def test_interruption_is_130_and_says_how_to_go_on(world: World) -> None:
    def interrupt(_: list[str]) -> None:
        if len([line for line in world.log if "=" not in line]) == 3:
            raise KeyboardInterrupt

    world.on_run = interrupt
    done = invoke("exp.toml", "--out", "out", "--accel", "tcg", "--repeat", "2", "--only", "kernel=stock")
    assert done.return_value == 130
    again = "numalab run exp.toml --out out --resume --accel tcg --repeat 2 --only kernel=stock"
    assert f"interrupted; 2 of 8 cells are done and kept\n  → {again}\n" in done.output
    world.on_run = None
    assert invoke(*again.split()[2:]).return_value == 0


def test_a_bad_file_is_refused_with_status_2(world: World) -> None:
    Path("exp.toml").write_text('[matrix]\nworkload = ["gups"]\npolicy = ["none", "mitoss"]\n')
    done = invoke("exp.toml")
    assert isinstance(done.exception, NumalabError)
    assert done.exception.exit_status == 2
    assert str(done.exception) == "exp.toml: matrix.policy[1]: unknown policy 'mitoss' (did you mean 'mitosis'?)"


def test_an_unknown_experiment(world: World) -> None:
    done = invoke("mitosis/quikstart")
    assert "mitosis/quikstart: no such file and no registered experiment" in str(done.exception)


def test_init_writes_a_file_once(world: World) -> None:
    assert invoke("new.toml", command=init.command).return_value == 0
    again = invoke("new.toml", command=init.command)
    assert "new.toml: exists already" in str(again.exception)
    Path("new.toml").write_text("")
    assert invoke("new.toml", "--force", command=init.command).return_value == 0
    assert Path("new.toml").read_text()


def test_policies_are_listed_and_described() -> None:
    listed = invoke("list", command=policies.command).output
    assert "none " in listed
    assert "remote-tables " in listed
    text = invoke("describe", "remote-tables", command=policies.command).output
    assert "parameter node = 1: the node of the page tables" in text
    assert "writes {node} to /proc/sys/vm/pgtable_alloc_node" in text
    assert "needs the patch set common" in text
    names = [each["name"] for each in json.loads(invoke("list", "--json", command=policies.command).output)]
    assert names[0] == "none"
    wrong = invoke("describe", "remote-table", command=policies.command)
    assert "did you mean 'remote-tables'?" in str(wrong.exception)


HEAVY = ("numpy", "pandas", "matplotlib", "scipy", "drgn", "libvirt", "rich")


def test_a_finished_run_imports_nothing_heavy(world: World, tmp_path: Path) -> None:
    """A run with everything done answers from the files alone."""
    invoke("exp.toml", "--out", "out")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from numalab.run import lab\n"
        "from numalab.cli import run\n"
        "from tests.unit.fake_lab import World, make_lab\n"
        "lab.default_lab = lambda **_: make_lab(World(), Path(sys.argv[1]))\n"
        "assert run.command(['exp.toml', '--out', 'out', '--resume'], standalone_mode=False) == 0\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
