"""What tests of guests of a machine have in common."""

from __future__ import annotations

import pytest

from numalab.machine import emulator
from numalab.machine.second import SecondLevel
from vmitosis.second_level import ByNode, DebugFiles
from vmitosis.snapshot2d import Snapshot2D, take

#: Of tests in which guests have second-level tables by node while their vCPUs move: an older QEMU may lose the machine
#: (docs/vmitosis.md, "Known faults"), so that they are a part of `make test-full` there.
BY_NODE = pytest.mark.slow if emulator.threads(emulator.version()) == "single" else pytest.mark.vm


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
