"""Provenance: what cannot be known is null, and the reproducing line is one a shell takes."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from numalab.kernel.image import KernelImage
from numalab.run import provenance
from numalab.run.matrix import Point


def git(top: Path, *words: str) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *words], cwd=top, check=True, capture_output=True)


def test_git_state(tmp_path: Path) -> None:
    assert provenance.git_state(tmp_path / "nowhere") == {"commit": None, "dirty": None}
    git(tmp_path, "init", "-q")
    assert provenance.git_state(tmp_path) == {"commit": None, "dirty": None}
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "first")
    clean = provenance.git_state(tmp_path)
    assert (len(str(clean["commit"])), clean["dirty"]) == (40, False)
    (tmp_path / "results").write_text("not tracked, so not part of what was run")
    assert provenance.git_state(tmp_path)["dirty"] is False
    (tmp_path / "file").write_text("2")
    assert provenance.git_state(tmp_path) == {"commit": clean["commit"], "dirty": True}


def test_knobs_as_grep_prints_them() -> None:
    text = (
        b"/proc/sys/vm/swappiness:60\n"
        b"/proc/sys/vm/lowmem_reserve_ratio:256\t256\t32\t0\n"
        b"/proc/sys/vm/two:first:with colon\n/proc/sys/vm/two:second\n"
        b"/proc/sys/vm/empty:\n"
        b"grep: something odd\n"
        b"/proc/sys/vm/bytes:\xff\n"
    )
    assert provenance.parse_knobs(text) == {
        "/proc/sys/vm/swappiness": "60",
        "/proc/sys/vm/lowmem_reserve_ratio": "256\t256\t32\t0",
        "/proc/sys/vm/two": "first:with colon\nsecond",
        "/proc/sys/vm/empty": "",
        "/proc/sys/vm/bytes": "\ufffd",
    }


def test_the_line_that_reproduces_a_cell() -> None:
    point = Point("/boot/my kernel", "placebo", "gups", "two", 4, placebo_of="none", interference="far")
    line = provenance.reproduce("my exp.toml", point, accel="kvm", repeats=9)
    words = shlex.split(line)
    assert words[:7] == ["numalab", "run", "my exp.toml", "--accel", "kvm", "--repeat", "9"]
    assert words[7::2] == ["--only"] * 6
    axes = ["kernel=/boot/my kernel", "policy=placebo", "workload=gups", "topology=two", "interference=far", "repeat=4"]
    assert words[8::2] == axes


def test_versions_and_kernel() -> None:
    found = provenance.versions()
    assert found["click"]
    assert set(found) == {"python", "numalab", "libvirt-python", "drgn", "numpy", "click"}
    kernel = KernelImage("patched", Path("x"), "6.12.1", build_id="ab", provenance={"compiler": "gcc", "name": "p:s"})
    assert provenance.of_kernel(kernel, "cd") == {
        "compiler": "gcc",
        "name": "patched",
        "release": "6.12.1",
        "build_id": "ab",
        "image_sha256": "cd",
    }


def test_the_host() -> None:
    host = provenance.of_run()["host"]
    assert host["cpus"] >= 1
    assert host["memory"] > 1 << 20
    assert len(host["load"]) == 3
