"""What tests of guests of a machine have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from numalab.kernel.image import KernelImage
from numalab.machine import emulator
from numalab.machine.second import HOST_PROGRAMS, SecondLevel
from numalab.machine.session import Machine
from numalab.machine.topology import Topology
from numalab.measure.take import detach as detach_machine
from vmitosis.provision import boot, parse_shape
from vmitosis.second_level import ByNode, DebugFiles, no_balancing
from vmitosis.snapshot2d import Snapshot2D, detach, take
from workloads.build import binaries

#: Of tests in which guests have second-level tables by node while their vCPUs move: an older QEMU may lose the machine
#: (docs/vmitosis.md, "Known faults"), so that they are a part of `make test-full` there.
BY_NODE = pytest.mark.vm if emulator.safe() else pytest.mark.slow
#: Seconds, of an emulated machine's clock, in which a guest of up to 256 MiB takes its second-level faults again.
REFAULTS = 15.0


@contextmanager
def guest_with_gups(kernel: KernelImage, topology: Topology, shape: str, *programs: str) -> Iterator[SecondLevel]:
    """A guest with /tmp/gups, alone in a machine of this kernel with some programs of the host; none may complain."""
    names = (*HOST_PROGRAMS, *programs)
    with Machine(kernel, topology, accel="tcg", nested=True, host_programs=names) as machine:
        no_balancing(machine)
        with boot(parse_shape(shape), kernel, inside=machine) as guest:
            assert isinstance(guest, SecondLevel)
            guest.write_file("/tmp/gups", binaries()["gups"].read_bytes(), mode=0o755)
            yield guest
            assert not guest.complaints
            detach(guest)
        detach_machine(machine)
        assert not machine.complaints


def debug_files(guest: SecondLevel) -> DebugFiles:
    """What KVM shows of a guest (patch set vmitosis)."""
    return DebugFiles(guest.machine, guest.qemu_pid)


def quiet(guest: SecondLevel, debugfs: DebugFiles, pid: int) -> Snapshot2D:
    """A snapshot while the second level did not change, which agrees with KVM's own table of tables."""
    for _ in range(10):
        before = debugfs.tables().pages
        snapshot = take(guest, [pid])
        if debugfs.tables().pages == before:
            break
    else:
        raise AssertionError("the second level changes all the time")
    counted: ByNode = {}
    for tree in snapshot.trees:
        if not tree.root.invalid and not tree.root.guest_mode:
            for level, row in enumerate(tree.table_pages.tolist(), 1):
                counted |= {(tree.root.nid, level, node): pages for node, pages in enumerate(row) if pages}
    assert counted == before
    assert snapshot.contradictions == 0
    return snapshot
