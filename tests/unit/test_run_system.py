"""Systems register policies and experiments; their names are what users type."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from numalab.errors import ExperimentError, UserError
from numalab.run import system
from numalab.run.policy import Policy
from numalab.run.system import System

ONE = System("one", "first", (Policy("a", ""), Policy("b", "")))
TWO = System("two", "second", (Policy("b", ""),))
NO_SYSTEM = "a string"


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of attributes of this module that are registered as systems."""
    names: list[str] = []

    def entry_points(group: str) -> list[EntryPoint]:
        return [EntryPoint(name.lower(), f"{__name__}:{name}", group) for name in names]

    monkeypatch.setattr(system, "entry_points", entry_points)
    system.systems.cache_clear()
    yield names
    system.systems.cache_clear()


def test_policies_of_a_system_and_the_built_in_one(entries: list[str]) -> None:
    entries.append("ONE")
    assert list(system.policies()) == ["none", "a", "b"]
    assert (system.owner("a"), system.owner("none")) == ("one", "numalab")


def test_two_policies_of_one_name(entries: list[str]) -> None:
    entries += ["ONE", "TWO"]
    with pytest.raises(ExperimentError, match="system 'two': there is a policy 'b' already"):
        system.policies()


def test_an_entry_that_is_no_system(entries: list[str]) -> None:
    entries.append("NO_SYSTEM")
    with pytest.raises(ExperimentError, match=r"'no_system': .*NO_SYSTEM is no numalab"):
        system.systems()


def test_an_entry_that_cannot_be_loaded(entries: list[str]) -> None:
    entries.append("MISSING")
    with pytest.raises(ExperimentError, match=r"the system 'missing' .* cannot be loaded"):
        system.systems()


def test_experiments_by_file_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quick.toml").write_text("")
    monkeypatch.setattr(system, "systems", lambda: {"one": System("one", "", (), tmp_path)})
    assert system.find_experiment("one/quick") == tmp_path / "quick.toml"
    assert system.find_experiment(str(tmp_path / "quick.toml")) == tmp_path / "quick.toml"
    with pytest.raises(UserError, match=r"one/quik: no such file and no registered experiment \(did you mean 'one/qu"):
        system.find_experiment("one/quik")
