"""Machines that run guests of their own, and machines that a daemon runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from numalab.kernel.image import KernelImage
from numalab.machine import rootfs
from numalab.machine.session import Machine
from numalab.machine.topology import uniform

pytestmark = pytest.mark.vm

NESTED = (
    "qemu-system-x86_64 -accel kvm -cpu host -m 256M -M q35 -nodefaults -display none -serial stdio -no-reboot "
    "-kernel /nested/kernel -initrd /nested/initrd -append"
)


def test_a_guest_of_the_guest(stock: KernelImage) -> None:
    files = {"/nested/kernel": stock.path, "/nested/initrd": rootfs.build(stock, {})}
    shape = uniform(2, 1, "768M")
    with Machine(
        stock, shape, accel="tcg", nested=True, host_programs=["qemu-system-x86_64"], extra_files=files
    ) as machine:
        npt = machine.read_file("/sys/module/kvm_amd/parameters/npt").strip()
        assert npt in (b"1", b"Y"), "nested paging, two levels of page tables, is what this is for"
        words = 'console=ttyS0 panic=-1 quiet rdinit=/bin/sh -- -c "echo a guest of the guest; poweroff -f"'
        done = machine.run([*NESTED.split(), words], timeout=240)
        assert done.ok, done.stderr
        assert b"a guest of the guest" in done.stdout
        assert not machine.complaints


def test_a_machine_of_the_systems_daemon() -> None:
    # In a process of its own: once the embedded driver is open, libvirt knows no daemon any more.
    argv = [sys.executable, "-m", "numalab", "boot", "--connect", "qemu:///system", "--accel", "tcg", "--nodes", "1"]
    done = subprocess.run([*argv, "--", "echo", "hello"], capture_output=True, check=False, timeout=240)
    if done.returncode == 3:
        pytest.skip(f"no libvirt daemon runs on this host: {done.stderr.decode()}")
    assert (done.returncode, done.stdout) == (0, b"hello\n"), done.stderr
