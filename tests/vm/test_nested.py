"""Machines that run guests of their own, and machines that a daemon runs."""

from __future__ import annotations

import os
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


# The daemons as systemd would start them, seen by nobody else: no host has to run them for this test. The shell stays:
# PID 1 has to reap, or libvirtd waits for ever for a QEMU that it asked what it can do.
DAEMONS = (
    "mkdir -p /run/libvirt && mount -t tmpfs none /run/libvirt && mount -t proc proc /proc && virtlogd -d && "
    'libvirtd -d -p /run/libvirt/libvirtd.pid && "$@"; exit $?'
)


def test_a_machine_of_the_systems_daemon() -> None:
    # In a process of its own: once the embedded driver is open, libvirt knows no daemon any more.
    argv = [sys.executable, "-m", "numalab", "boot", "--connect", "qemu:///system", "--accel", "tcg", "--nodes", "1"]
    own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", DAEMONS, "sh"]
    if os.getuid() != 0 or subprocess.run([*own[:-4], "true"], check=False, capture_output=True).returncode:
        own = []
    done = subprocess.run([*own, *argv, "--", "echo", "hello"], capture_output=True, check=False, timeout=240)
    if not own and done.returncode == 3:
        pytest.skip(f"no libvirt daemon runs on this host, and only root can start one: {done.stderr.decode()}")
    assert (done.returncode, done.stdout) == (0, b"hello\n"), done.stderr
