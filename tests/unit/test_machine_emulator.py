"""How QEMU is asked to emulate vCPUs, by its version; the script that starts it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from numalab.errors import UserError
from numalab.machine import domain, emulator

START = Path(domain.__file__).with_name("start-qemu")


@pytest.mark.parametrize(
    ("version", "threads"),
    [((7, 2), "single"), ((8, 0), "single"), ((8, 1), "multi"), ((10, 0), "multi"), (None, "multi")],
)
def test_threads_of_vcpus_by_version(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int] | None, threads: str
) -> None:
    """Before 8.1 a block that was translated while the kernel patched it stays: `Oops: int3` on an unpatched kernel."""
    monkeypatch.setattr(emulator, "version", lambda: version)
    monkeypatch.delenv(emulator.OVERRIDE, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert emulator.threads(2) == threads
    assert emulator.safe() == (threads == "multi")
    assert emulator.threads(3) == "single", "the host has fewer CPUs than that"
    assert emulator.threads(4, nested=True) == "multi"
    monkeypatch.setenv(emulator.OVERRIDE, "multi")
    assert emulator.threads(4) == "multi"
    monkeypatch.setenv(emulator.OVERRIDE, "single")
    assert emulator.threads(1) == "single"


def test_an_override_that_is_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(emulator.OVERRIDE, "two")
    with pytest.raises(UserError, match="NUMALAB_TCG_THREADS is 'two': single or multi"):
        emulator.threads(1)


def qemu(tmp_path: Path, says: str) -> str:
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    return str(program)


def test_version_of_qemu(tmp_path: Path) -> None:
    assert emulator.version(qemu(tmp_path, "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)")) == (7, 2)


def test_no_qemu_or_none_that_says_its_version(tmp_path: Path) -> None:
    assert emulator.version("numalab-has-no-such-program") is None
    assert emulator.version(qemu(tmp_path, "hello")) is None


def started(tmp_path: Path, *words: str, **told: str) -> list[str]:
    """What QEMU gets to see of the words that libvirt gives to `start-qemu`."""
    program = tmp_path / "qemu-system-x86_64"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    where = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **told}
    done = subprocess.run([START, *words], capture_output=True, text=True, check=True, env=where)
    return done.stdout.splitlines()


def test_words_pass_as_they_are(tmp_path: Path) -> None:
    words = [
        "-accel",
        "tcg",
        "-object",
        '{"qom-type":"memory-backend-memfd","size":4096}',
        "-append",
        "a  b",
    ]
    assert started(tmp_path, *words) == words


def test_one_thread_for_the_emulator_only(tmp_path: Path) -> None:
    told = {"NUMALAB_TCG": "thread=single"}
    assert started(tmp_path, "-S", "-accel", "tcg", "-m", "tcg", **told) == [
        "-S",
        "-accel",
        "tcg,thread=single",
        "-m",
        "tcg",
    ]
    assert started(tmp_path, "-accel", "kvm", **told) == ["-accel", "kvm"]


def test_cells_without_memory(tmp_path: Path) -> None:
    words = ["-object", '{"id":"ram-node1","size":0}', "-numa", "node,nodeid=0,memdev=ram-node0"]
    words += ["-numa", "node,nodeid=1,memdev=ram-node1"]
    assert started(tmp_path, *words, NUMALAB_MEMORYLESS="1") == [
        "-numa",
        "node,nodeid=0,memdev=ram-node0",
        "-numa",
        "node,nodeid=1",
    ]
