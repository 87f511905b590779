"""Hooks cost a NOP each as long as nobody replicates: in the image that was built, and in a kernel that runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mitosis.nops.sites import Site, sites
from mitosis.nops.table import HOT, hot_rows, problems
from mitosis.replication import OF_PROCESS
from numalab.kernel.image import KernelImage
from numalab.machine.session import Machine
from numalab.machine.topology import uniform
from numalab.measure.take import guest_of

pytestmark = pytest.mark.vm

#: JMP with a displacement of one byte, or of four.
JUMPS = (b"\xeb", b"\xe9")


@pytest.fixture(scope="module")
def built(patched: KernelImage) -> list[Site]:
    assert patched.vmlinux is not None
    return sites(patched.vmlinux)


def test_the_image_has_a_nop_at_each_hook_and_few_in_hot_functions(built: list[Site]) -> None:
    assert problems(built, hot_rows(built, HOT)) == []
    assert len(built) > 100, "the hooks are not all of them here"


@pytest.fixture
def machine(patched: KernelImage, tmp_path: Path) -> Iterator[Machine]:
    """One of its own: a key stays on when it has been on."""
    with Machine(patched, uniform(2, 1, "512M"), accel="tcg", log_dir=tmp_path) as machine:
        yield machine
    assert not machine.complaints


def test_a_running_kernel_has_them_until_somebody_replicates(machine: Machine, built: list[Site]) -> None:
    def code_of(kept: list[Site]) -> list[Site]:
        guest = guest_of(machine)
        offset = int(guest.vmcoreinfo["KERNELOFFSET"], 16)
        return [
            Site(each.address, each.symbol, guest.prog.read(each.address + offset, 5), each.frames) for each in kept
        ]

    # What is needed at boot only is not there any more.
    prog = guest_of(machine).prog
    end = prog.symbol("_etext").address - int(guest_of(machine).vmcoreinfo["KERNELOFFSET"], 16)
    kept = [site for site in built if site.address < end]
    assert len(kept) > 100
    machine.run(["true"], check=True)
    assert problems(code_of(kept), []) == []
    on = OF_PROCESS.replace("PID", "self")
    machine.run(["sh", "-c", f"echo lazy > {on}"], check=True)
    wrong = [site for site in code_of(kept) if not site.code.startswith(JUMPS)]
    assert wrong == [], "hooks that are not told"
