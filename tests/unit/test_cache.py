"""The cache: listing and pruning, never what is in use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from numalab.cli.cache import command
from numalab.kernel import locks
from numalab.kernel.cache import entries, prune
from numalab.paths import ROOT, cache_dir

DAY = 86400


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    locks.release_all()
    return cache_dir()


def entry(name: str, size: int = 1000, *, days: float = 0, used: float | None = None) -> Path:
    path = cache_dir() / name
    path.mkdir(parents=True)
    (path / "data").write_bytes(os.urandom(size))
    then = time.time() - days * DAY
    os.utime(path / "data", (then, then))
    if used is not None:
        (path / ".used").touch()
        os.utime(path / ".used", (time.time() - used * DAY,) * 2)
    os.utime(path, (then, then))
    return path


def names() -> set[str]:
    return {f"{one.kind} {one.id}" for one in entries()}


def test_everything_is_listed_the_biggest_first() -> None:
    entry("kernels/abc", 100_000)
    entry("trees/src1", 300_000)
    entry("trees/src1/out/debug", 500_000)
    entry("workloads/gups", 10_000)
    entry("kernels/.tmp-1", 6000)
    entry("trees/src1/out/.tmp-doomed", 900)
    (cache_dir("initramfs") / "x.cpio").write_bytes(b"x" * 50_000)
    (cache_dir("kernels") / "selected.json").write_text("{}")
    found = entries()
    assert [(one.kind, one.id) for one in found] == [
        ("builds", "src1/debug"),
        ("trees", "src1"),
        ("kernels", "abc"),
        ("initramfs", "x.cpio"),
        ("workloads", "gups"),
        ("leftover", "kernels/.tmp-1"),
        ("leftover", "src1/.tmp-doomed"),
    ]
    assert 500_000 <= found[0].bytes < 600_000
    assert 300_000 <= found[1].bytes < 400_000, "builds are not counted twice"
    assert not any(one.in_use for one in found)
    assert not (cache_dir() / "locks").exists() or not list((cache_dir() / "locks").iterdir()), "looking takes no lock"


def test_files_with_two_names_count_once() -> None:
    path = entry("kernels/abc", 100_000)
    (path / "again").hardlink_to(path / "data")
    assert entries()[0].bytes < 150_000


def test_pruning_by_age() -> None:
    entry("kernels/old", days=40)
    entry("kernels/new", days=2)
    entry("kernels/old-but-used", days=40, used=1)
    entry("kernels/used-long-ago", days=0, used=50)
    entry("kernels/.tmp-left", days=0)
    done = prune(older_than_days=30, dry_run=True)
    assert {one.id for one in done.removed} == {"old", "used-long-ago", "kernels/.tmp-left"}
    assert done.bytes == sum(one.bytes for one in done.removed) > 0
    assert len(names()) == 5, "a dry run removes nothing"
    prune(older_than_days=30)
    assert names() == {"kernels new", "kernels old-but-used"}


def test_nothing_in_use_is_removed() -> None:
    kept = entry("kernels/abc", days=90)
    entry("kernels/def", days=90)
    entry("trees/src1/out/debug", days=90)
    locks.hold("kernels-abc")
    with locks.exclusive("trees-src1"):
        done = prune(older_than_days=None)
    assert {one.id for one in done.in_use} == {"abc", "src1", "src1/debug"}
    assert [one.id for one in done.removed] == ["def"]
    assert kept.is_dir()
    assert {one.id for one in entries() if one.in_use} == {"abc"}
    locks.release_all()
    assert {one.id for one in prune(older_than_days=None).removed} == {"abc", "src1", "src1/debug"}
    assert entries() == []


def test_another_process_uses_it() -> None:
    entry("kernels/abc", days=90)
    script = "from numalab.kernel import locks; locks.hold('kernels-abc'); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "held\n"
        assert prune(older_than_days=None).removed == ()
        user.kill()
    assert len(prune(older_than_days=None).removed) == 1, "a killed process holds no lock"


def test_the_commands() -> None:
    entry("kernels/old", 5000, days=40)
    entry("kernels/held", 5000, days=40)
    run = CliRunner().invoke
    shown = json.loads(run(command, ["list", "--json"], catch_exceptions=False).stdout)
    assert {one["id"] for one in shown["entries"]} == {"old", "held"}
    assert shown["bytes"] == sum(one["bytes"] for one in shown["entries"])
    listed = run(command, ["list"], catch_exceptions=False).stdout
    assert "old" in listed
    assert f"in 2 entries in {cache_dir()}" in listed
    locks.hold("kernels-held")
    dry = json.loads(run(command, ["prune", "--dry-run", "--json"], catch_exceptions=False).stdout)
    assert (dry["dry_run"], [one["id"] for one in dry["removed"]]) == (True, ["old"])
    assert "would free" in run(command, ["prune", "--dry-run"], catch_exceptions=False).stdout
    assert run(command, ["prune", "--older-than", "50"], catch_exceptions=False).stdout.startswith("freed 0 B")
    freed = run(command, ["prune", "--all"], catch_exceptions=False).stdout
    assert "kept, in use: kernels held" in freed
    assert names() == {"kernels held"}
    assert run(command, ["prune", "--older-than", "-1"]).exit_code == 2
