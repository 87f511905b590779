"""The protocol's models hold, all states of them; every seeded bug is found; every place of interest is reached."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

from mitosis.protocol import check as checker
from mitosis.protocol.__main__ import main
from mitosis.protocol.check import MODELS, Result, Verdict, check, counterexample
from mitosis.protocol.configurations import ALL, BUGS, COVERAGE, GOOD, Configuration, Expect
from numalab.errors import ExperimentError, MissingError

# A machine that builds a kernel beside the tests is slow.
pytestmark = pytest.mark.timeout(1800)

_BY_NAME = {configuration.name: configuration for configuration in ALL}


@cache
def _checked(configuration: Configuration) -> Result:
    return check(configuration)


def _parameters(configurations: tuple[Configuration, ...]) -> list[object]:
    return [
        pytest.param(configuration, id=configuration.name, marks=[pytest.mark.slow] if configuration.slow else [])
        for configuration in configurations
    ]


@pytest.mark.parametrize("configuration", _parameters(GOOD))
def test_holds_in_all_states(configuration: Configuration) -> None:
    result = _checked(configuration)
    assert result.verdict is Verdict.HOLDS, result.violated
    assert result.as_expected
    assert result.states > 50
    assert result.depth < checker.DEPTH


@pytest.mark.parametrize("configuration", _parameters(BUGS))
def test_finds_seeded_bug(configuration: Configuration) -> None:
    result = check(configuration)
    assert result.verdict is Verdict.VIOLATED
    assert result.violated == configuration.property_
    assert result.as_expected


@pytest.mark.parametrize("configuration", _parameters(COVERAGE))
def test_reaches(configuration: Configuration) -> None:
    result = check(configuration)
    assert result.violated == configuration.property_
    assert result.as_expected


@pytest.mark.parametrize("model", sorted({configuration.model for configuration in GOOD}))
def test_no_statement_is_dead(model: str) -> None:
    """A statement that no good configuration comes by says nothing: there are none but those that report failures."""
    unreached = [_checked(one).unreached for one in GOOD if one.model == model and not one.slow]
    dead = {
        (process, statement)
        for process, _where, statement in frozenset.intersection(*unreached)
        if statement not in {"-end-", "assert(0)"} and not statement.startswith("printf(")
    }
    assert not dead


def test_every_switch_is_used() -> None:
    models = "".join(path.read_text() for path in sorted(MODELS.glob("*.pml")))
    bugs = set(re.findall(r"\bBUG_\w+", models))
    places = set(re.findall(r"#define (COVER_\w+)\s+\d", models))
    defines = {define for configuration in ALL for define in configuration.defines}
    assert bugs == {define for define in defines if define.startswith("BUG_")}
    assert {f"COVERAGE={place}" for place in places} == {one for one in defines if one.startswith("COVERAGE=")}
    for define in defines:
        name = define.partition("=")[0]
        assert re.search(rf"\b{name}\b", models), f"no model knows the switch {name}"
    assert len(_BY_NAME) == len(ALL)


def test_readme_names_every_seeded_bug() -> None:
    readme = (MODELS / "README.md").read_text()
    for configuration in (*BUGS, *COVERAGE):
        assert f"`{configuration.name}`" in readme


@pytest.mark.parametrize("limit", [{"depth": 40}, {"memory_mb": 2}], ids=["depth", "memory"])
def test_truncated_search_proves_nothing(limit: dict[str, int]) -> None:
    result = check(_BY_NAME["munmap"], **limit)
    assert result.verdict is Verdict.TRUNCATED
    assert not result.as_expected


def test_deadlock_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stuck.pml").write_text("bool open;\ninit { open }\n")
    monkeypatch.setattr(checker, "MODELS", tmp_path)
    result = check(Configuration("stuck", "stuck", (), Expect.HOLDS, "waits for ever"))
    assert result.verdict is Verdict.VIOLATED
    assert result.violated.startswith("deadlock")
    assert not result.as_expected


def test_a_model_with_a_mistake_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong.pml").write_text("init { unknown = 1 }\n")
    monkeypatch.setattr(checker, "MODELS", tmp_path)
    with pytest.raises(ExperimentError, match="undeclared variable"):
        check(Configuration("wrong", "wrong", (), Expect.HOLDS, "does not parse"))


def test_counterexample() -> None:
    steps = counterexample(_BY_NAME["bug-no-rmap-lock"])
    assert any("Migrate" in step for step in steps)
    assert any("Truncate" in step for step in steps)
    assert not counterexample(_BY_NAME["migrate"])


@pytest.mark.parametrize("tool", ["spin", "gcc"])
def test_missing_tool_is_named(tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"spin": "gcc", "gcc": "spin"}[tool]
    (tmp_path / other).write_text("#!/bin/sh\n")
    (tmp_path / other).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match=r"is missing|no C compiler") as caught:
        check(GOOD[0])
    assert tool in caught.value.remedy
    outcome = CliRunner().invoke(main, ["ring"])
    assert outcome.exit_code == MissingError.exit_status
    assert "apt-get install" in outcome.output


def test_command() -> None:
    outcome = CliRunner().invoke(main, ["ring*", "bug-no-recheck"])
    assert outcome.exit_code == 0, outcome.output
    assert "ring-bulk" in outcome.output
    assert "violated: nothing in memory leads to a page that is freed" in outcome.output
    trace = CliRunner().invoke(main, ["--trace", "bug-no-recheck"])
    assert "Build" in trace.output
    unknown = CliRunner().invoke(main, ["rings"])
    assert unknown.exit_code == 2
    assert "did you mean 'ring'?" in unknown.output
