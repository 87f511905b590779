"""Machines that tests share: a test must leave its machine as it found it, and alive."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from numalab.kernel.image import KernelImage
from numalab.kernel.images import resolve
from numalab.machine.session import Machine
from numalab.machine.topology import uniform


def guest_programs() -> dict[str, Path]:
    """The workloads, where the guest finds them."""
    from workloads.build import binaries

    return {f"/bin/{name}": path for name, path in binaries().items()}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """Compiles a program of tests/fixtures for the guest, by its name."""

    def compile_(name: str) -> bytes:
        binary = tmp_path_factory.mktemp(name) / name
        source = Path(__file__).parent.parent / "fixtures" / f"{name}.c"
        subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-static", "-o", binary, source], check=True)
        return binary.read_bytes()

    return compile_


@pytest.fixture(scope="session")
def placer(compiled: Callable[[str], bytes]) -> bytes:
    """Maps memory of every kind where its words say (tests/fixtures/placer.c)."""
    return compiled("placer")


@pytest.fixture(scope="session")
def stock() -> KernelImage:
    return resolve("stock")


@pytest.fixture(scope="session")
def patched() -> KernelImage:
    return resolve("patched", build=True)


@pytest.fixture(scope="session")
def _stock4(stock: KernelImage) -> Iterator[Machine]:
    with Machine(stock, uniform(4, 1, "512M"), accel="tcg", extra_files=guest_programs()) as machine:
        yield machine


@pytest.fixture(scope="session")
def _patched4(patched: KernelImage) -> Iterator[Machine]:
    with Machine(patched, uniform(4, 1, "512M"), accel="tcg", extra_files=guest_programs()) as machine:
        yield machine


@pytest.fixture
def stock4(_stock4: Machine) -> Iterator[Machine]:
    """Four nodes × 1 CPU × 512 MiB, Debian's kernel."""
    yield _stock4
    assert not _stock4.complaints


@pytest.fixture
def patched4(_patched4: Machine) -> Iterator[Machine]:
    """Four nodes × 1 CPU × 512 MiB, the patched kernel."""
    yield _patched4
    assert not _patched4.complaints
