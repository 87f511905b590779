"""Where a result comes from: enough to run the same cell again, or to find out why that differs."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numalab
from numalab.errors import ExperimentError
from numalab.kernel.image import KernelImage
from numalab.machine.host import ACCEL
from numalab.machine.outcome import GuestFileError
from numalab.paths import ROOT
from numalab.run.lab import MachineLike, host_memory
from numalab.run.matrix import ONLY_KEYS, Point

_PACKAGES = ("libvirt-python", "drgn", "numpy", "click")
#: Printed as "path:value" by one grep, so that a hundred knobs cost one command.
_KNOBS = "/proc/sys/vm/* /proc/sys/kernel/numa_* /sys/kernel/mm/transparent_hugepage/[deks]*"
_KNOBS_SECONDS = 60.0


def of_run() -> dict[str, Any]:
    """Return what holds for the whole run: host, versions, state of the checkout, command line."""
    return {
        "host": {
            "cpus": os.cpu_count(),
            "cpu_model": _cpu_model(),
            "memory": host_memory(),
            "kernel": platform.release(),
            "load": list(os.getloadavg()),
        },
        "versions": versions(),
        "git": git_state(ROOT),
        "argv": sys.argv,
    }


def versions() -> dict[str, str | None]:
    """Return the versions of Python, numalab and what it stands on; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "numalab": numalab.__version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def git_state(root: Path) -> dict[str, Any]:
    """Return commit and dirtiness of the checkout at `root`; None where there is no git, or no commit yet."""
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None or commit is None else bool(changes)}


def of_kernel(kernel: KernelImage, sha256: str) -> dict[str, Any]:
    """Return what is known of a kernel."""
    return {
        **kernel.provenance,
        "name": kernel.name,
        "release": kernel.release,
        "build_id": kernel.build_id,
        "image_sha256": sha256,
    }


def sysctls(machine: MachineLike) -> dict[str, str]:
    """Return the guest's memory-management knobs by path; those that cannot be read are absent.

    Raises:
        ExperimentError: the guest does not answer in time.
    """
    try:
        done = machine.run(["sh", "-c", f"grep -s '' {_KNOBS}"], timeout=_KNOBS_SECONDS)
    except GuestFileError as error:
        raise ExperimentError(f"the guest's knobs cannot be read: {error}") from error
    return parse_knobs(done.stdout)


def parse_knobs(text: bytes) -> dict[str, str]:
    """Return path → value of lines "path:value"; the lines of a knob with several are joined."""
    found: dict[str, str] = {}
    for line in text.decode(errors="replace").splitlines():
        path, colon, value = line.partition(":")
        if colon and path.startswith("/"):
            found[path] = f"{found[path]}\n{value}" if path in found else value
    return found


def load_now() -> list[float]:
    """Return the host's load averages over 1, 5 and 15 minutes."""
    return list(os.getloadavg())


def reproduce(experiment: str, point: Point, *, accel: str, repeats: int | None) -> str:
    """Return the command that runs this one cell again; `experiment` is the file or name as it was given."""
    words = ["numalab", "run", experiment, *(["--host"] if accel == ACCEL else ["--accel", accel])]
    if repeats is not None:
        words += ["--repeat", str(repeats)]
    axes: Mapping[str, object] = point.to_json()
    for key in ONLY_KEYS:
        words += ["--only", f"{key}={axes[key]}"]
    return shlex.join(words)


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str | None:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return None
