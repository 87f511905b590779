"""What tests of guests of a machine have in common."""

from __future__ import annotations

from numalab.machine.second import SecondLevel
from vmitosis.second_level import ByNode, DebugFiles
from vmitosis.snapshot2d import Snapshot2D, take


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
