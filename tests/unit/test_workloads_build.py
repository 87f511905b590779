"""Building the workloads: cached by content, whole or not at all, with the first error of the compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from click.testing import CliRunner

from numalab.cli.workloads import command
from numalab.errors import ExperimentError, MissingError
from workloads import build, catalogue


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, and a cache, that a test may spoil."""
    copy = tmp_path / "sources"
    shutil.copytree(build.SOURCES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(build, "SOURCES", copy)
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return copy


def test_built_once_and_again_when_a_source_changes(sources: Path) -> None:
    first = build.binaries()
    assert list(first) == catalogue.names()
    stamps = {path: path.stat().st_mtime_ns for path in first.values()}
    assert build.binaries() == first
    assert {path: path.stat().st_mtime_ns for path in first.values()} == stamps
    with (sources / "common/rng.h").open("a") as file:
        file.write("/* another line */\n")
    changed = build.binaries()
    assert set(changed.values()).isdisjoint(first.values())
    done = subprocess.run([changed["gups"], "--size", "64K", "--updates", "10"], capture_output=True, check=True)
    assert catalogue.get("gups").parse(done.stdout)


def test_programs_are_static(sources: Path) -> None:
    for path in build.binaries().values():
        assert b"ld-linux" not in path.read_bytes()[:4096]
        assert os.access(path, os.X_OK)


def test_a_source_that_does_not_compile(sources: Path, tmp_path: Path) -> None:
    with (sources / "btree/tree.c").open("a") as file:
        file.write("int broken(void) { return nothing; }\n")
    with pytest.raises(ExperimentError) as caught:
        build.binaries()
    words = str(caught.value)
    assert "the workload btree does not compile" in words
    assert "btree/tree.c:" in words
    assert "'nothing' undeclared" in words.replace("‘", "'").replace("’", "'")
    assert str(sources) not in words
    assert list((tmp_path / "cache/numalab/workloads").iterdir()) == []  # nothing half made stays


def test_no_compiler(sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="gcc is not installed") as caught:
        build.binaries()
    assert "apt-get install gcc" in caught.value.remedy


def test_no_static_library(sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "gcc"
    fake.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo fake gcc 1 && exit\n'
        "echo '/usr/bin/ld: cannot find -lc: No such file or directory' >&2\nexit 1\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(MissingError, match="C library"):
        build.binaries()


def test_two_at_once(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both_compiled = Barrier(2)
    real = build._compile

    def compile_together(name: str, output: Path) -> None:
        if name == catalogue.names()[0]:
            real(name, output)
            both_compiled.wait(60)
        else:
            output.write_bytes(b"")

    monkeypatch.setattr(build, "_compile", compile_together)
    with ThreadPoolExecutor() as pool:
        first, second = pool.submit(build.binaries), pool.submit(build.binaries)
        assert first.result() == second.result()
    directory = first.result()["gups"].parent
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


def test_cli_lists_and_describes() -> None:
    runner = CliRunner()
    listed = runner.invoke(command, ["list"])
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.output.splitlines()] == catalogue.names()
    described = runner.invoke(command, ["describe", "memops"])
    for key in (*catalogue.get("memops").params, *catalogue.get("memops").metrics):
        assert f"  {key} " in described.output


def test_cli_json() -> None:
    import json

    runner = CliRunner()
    entries = json.loads(runner.invoke(command, ["list", "--json"]).output)
    assert entries == [catalogue.get(name).to_json() for name in catalogue.names()]
    assert json.loads(runner.invoke(command, ["describe", "gups", "--json"]).output) == entries[0]
