"""Tools, preflight, progress and locks."""

from __future__ import annotations

import io
import shutil
import threading
from pathlib import Path

import pytest

from numalab.errors import ExperimentError, MissingError
from numalab.kernel import locks, preflight, tools
from numalab.kernel.fragments import merge, parse
from numalab.kernel.progress import Lines, clock, for_stream


def test_what_is_lacking_is_named_with_one_line_that_installs_it() -> None:
    lacks = tools.lacking(["sh", "no-such-tool", "pahole-of-old"])
    assert [lack.what for lack in lacks] == ["no-such-tool", "pahole-of-old"]
    with pytest.raises(MissingError) as caught:
        tools.require([*lacks, tools.Lack("<gelf.h>", "libelf-dev")], purpose="building")
    assert str(caught.value) == "building needs what this machine lacks: no-such-tool, pahole-of-old, <gelf.h>"
    assert caught.value.remedy.startswith("apt-get install libelf-dev no-such-tool pahole-of-old ")
    with pytest.raises(MissingError, match=r"asking needs .*: no-such-tool"):
        tools.run(["no-such-tool"], purpose="asking")


def test_a_failing_tool_is_quoted() -> None:
    with pytest.raises(ExperimentError, match=r"asking: sh -c 'echo why >&2; exit 3' failed \(exit status 3\)\nwhy"):
        tools.run(["sh", "-c", "echo why >&2; exit 3"], purpose="asking")
    with pytest.raises(ExperimentError, match="killed by signal 9"):
        tools.run(["sh", "-c", "kill -9 $$"], purpose="asking")
    assert tools.run(["cat"], purpose="x", stdin="a").stdout == "a"


def test_the_needs_follow_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"gcc", "ld", "make", "flex", "bison", "bc", "git", "perl", "tar"}
    monkeypatch.setattr(tools, "which", lambda tool: f"/usr/bin/{tool}" if tool in there else None)
    monkeypatch.setattr(preflight, "_has_header", lambda header: header == "stdio.h")

    def packages(text: str) -> set[str]:
        return {lack.package for lack in preflight.lacking(merge([parse(text, "f")]))}

    assert packages("CONFIG_A=y\n") == {"libelf-dev", "libssl-dev"}
    assert packages("CONFIG_DEBUG_INFO_BTF=y\nCONFIG_KERNEL_ZSTD=y\n") >= {"pahole", "zstd"}
    assert packages("CONFIG_DEBUG_INFO_BTF=n\nCONFIG_MODULES=y\n") == {"libelf-dev", "libssl-dev", "kmod"}
    there.discard("flex")
    assert "flex" in packages("CONFIG_A=y\n")
    monkeypatch.setattr(preflight, "_has_header", lambda header: False)
    assert "libc6-dev" in packages("CONFIG_A=y\n")


def test_another_architecture_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numalab.kernel.preflight.platform.machine", lambda: "aarch64")
    with pytest.raises(MissingError, match="aarch64"):
        preflight.require_tools({})


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_headers_are_asked_of_the_compiler() -> None:
    assert preflight._has_header("stddef.h")
    assert not preflight._has_header("no/such/header.h")


def test_space(tmp_path: Path) -> None:
    preflight.require_space(tmp_path, 1, purpose="this")
    with pytest.raises(MissingError, match=r"this needs 1024\.0 TiB on the disk of"):
        preflight.require_space(tmp_path, 1 << 50, purpose="this")


def test_the_environment_of_make_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAKEFLAGS", "ARCH", "CROSS_COMPILE", "KCFLAGS", "LOCALVERSION", "GIT_DIR", "C"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("CCACHE_DIR", "/ccache")
    env = tools.clean_environment()
    assert env["CCACHE_DIR"] == "/ccache"
    assert env["LC_ALL"] == "C"
    assert not {"MAKEFLAGS", "ARCH", "CROSS_COMPILE", "KCFLAGS", "LOCALVERSION", "GIT_DIR", "C"} & env.keys()


# --- progress


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (425, "7 min 05 s"), (4320, "1 h 12 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_plain_lines_say_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("numalab.kernel.progress.time.monotonic", lambda: now)
    out = io.StringIO()
    progress = for_stream(out)
    assert isinstance(progress, Lines)
    progress.step("building")
    progress.advance(100, 1000, "CC a.o")
    now = 110.0
    progress.advance(150, 1000, "CC b.o")  # too early for a line
    now = 130.0
    progress.advance(250, 1000, "CC c.o")
    progress.note("look")
    now = 190.0
    progress.advance(30, None, "CC d.o")
    assert out.getvalue().splitlines() == [
        "numalab: building",
        "numalab:   250/1000 (25 %), 2 min 30 s left, 30 s so far CC c.o",
        "numalab: note: look",
        "numalab:   30, 1 min 30 s so far CC d.o",
    ]


def test_a_terminal_gets_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with for_stream(out) as progress:
        assert not isinstance(progress, Lines)
        progress.step("building [x]")
        progress.advance(1, 10, "CC a.o")
        progress.advance(2, None, "CC b.o")
        progress.step("next")
        progress.note("look")
    assert "building [x]" in out.getvalue()
    assert "note: look" in out.getvalue()


# --- locks


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    locks.release_all()


def test_an_exclusive_lock_waits_and_says_for_whom(cache: None) -> None:
    said: list[str] = []
    order: list[str] = []

    def second() -> None:
        with locks.exclusive("x", on_wait=said.append):
            order.append("second")

    with locks.exclusive("x"):
        thread = threading.Thread(target=second)
        thread.start()
        while not said:
            pass
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert said[0].startswith("waiting for another numalab (process ")


def test_shared_locks_keep_pruners_out(cache: None) -> None:
    assert not locks.held("x")
    locks.hold("x")
    locks.hold("x")
    assert locks.held("x")
    with locks.try_exclusive("x") as free:
        assert not free
    locks.release_all()
    assert not locks.held("x")
    with locks.try_exclusive("x") as free:
        assert free
        assert locks.held("x")
