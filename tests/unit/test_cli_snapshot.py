"""`numalab snapshot --load`: archives in the terminal, as JSON and as SVG; mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from numalab.cli.snapshot import command
from numalab.errors import UserError
from numalab.measure import archive
from tests.unit.snapshots import snapshot, unreplicated


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = tmp_path / "kept.npz"
    archive.save(snapshot(unreplicated()), path)
    return path


def run(*words: str) -> str:
    result = CliRunner().invoke(command, list(words), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_shown_again(kept: Path) -> None:
    text = run("--load", str(kept))
    assert "gups  pid 42" in text
    assert "counted in emulation" in text


def test_as_json(kept: Path) -> None:
    found = json.loads(run("--load", str(kept), "--json"))
    assert found["kind"] == "numalab-placement"
    assert found["number_kind"] == "counted"
    assert found["processes"][0]["table_pages"] == [[0, 1, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]]


def test_as_svg(kept: Path, tmp_path: Path) -> None:
    run("--load", str(kept), "--svg", str(tmp_path / "picture.svg"))
    assert (tmp_path / "picture.svg").read_text().startswith("<svg")


@pytest.mark.parametrize("words", [["true"], ["--save", "x.npz"]])
def test_load_goes_with_nothing_that_boots(kept: Path, words: list[str]) -> None:
    with pytest.raises(UserError, match="--load"):
        run("--load", str(kept), *words)


def test_all_means_all() -> None:
    with pytest.raises(UserError, match="--all"):
        run("--all", "--name", "gups")


def test_damaged_archive(kept: Path) -> None:
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(UserError, match=r"kept\.npz"):
        run("--load", str(kept))
