"""Guests that are sent to another QEMU, or into a file and back, while their memory is changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numalab.errors import ExperimentError
from numalab.machine.migration import INCOMING, arrived, listen, send, take_over
from numalab.machine.second import SecondLevel
from vmitosis.survival.keeper import Keeper
from vmitosis.survival.memory import Memory, compare
from vmitosis.survival.rig import Rig

Facts = dict[str, Any]
_ONE_TREE = "/sys/module/kvm/parameters/numa_mmu_dirty_log"


def live_migration(rig: Rig) -> Facts:
    """To another QEMU while memory is changed and vCPUs bounce; both memories are compared while both stand still."""
    return _live(rig, trees=1)


def live_migration_all_trees(rig: Rig) -> Facts:
    """The same with all trees kept while dirty pages are logged (`kvm.numa_mmu_dirty_log=0`)."""
    rig.machine.write_file(_ONE_TREE, b"0\n")
    try:
        return _live(rig, trees=2)
    finally:
        rig.machine.write_file(_ONE_TREE, b"1\n")


def _live(rig: Rig, *, trees: int) -> Facts:
    """Migrate; `trees`: how many a replicated guest has while dirty pages are logged. Where it arrives it has all."""
    with rig.guest() as guest, rig.kept(guest) as keeper, _other(rig) as other:
        uri = f"unix:{other.directory}/migration"
        listen(other, uri)
        with rig.bouncing(guest):
            before = keeper.status()
            sent = send(guest, uri)
        # QEMU goes on logging until the guest would run again.
        logged = rig.debug(guest).tables().roots
        wanted = trees if rig.mode == "replicate" else 1
        if len(logged) != wanted:
            raise ExperimentError(f"there are trees for {logged} while dirty pages are logged, not {wanted}")
        arrived(other)
        with _memory(guest, "here") as here, _memory(other, "there") as there:
            compared = compare(here, there)
        after = _go_on(rig, guest, other, keeper)
        assert before
        return {
            "compared_bytes": compared,
            "rounds_of_sending": sent["ram"]["dirty-sync-count"],
            "sent_bytes": sent["ram"]["transferred"],
            "checked_since": after - before.checked,
            "trees_while_logging": len(logged),
        }


def snapshot_restore(rig: Rig) -> Facts:
    """Into a file, the QEMU ended, and back into another one; memory compared before and after."""
    with rig.guest() as guest, rig.kept(guest) as keeper:
        with rig.bouncing(guest):
            keeper.rounds(1)
        guest.qmp.execute("stop")
        file = "/tmp/snapshot"
        try:
            send(guest, f"exec:cat > {file}")
            size = int(rig.machine.run(["stat", "-c", "%s", file], check=True).stdout)
            channel = guest.channel
            with _memory(guest, "before") as before:
                guest.close()
                with _other(rig) as other:
                    listen(other, f"exec:cat {file}")
                    arrived(other)
                    with _memory(other, "after") as after:
                        compared = compare(before, after)
                    take_over(other, channel)
                    _run_there(rig, other, keeper)
        finally:
            rig.machine.run(["rm", "-f", file])
        return {"compared_bytes": compared, "file_bytes": size}


@contextmanager
def _memory(guest: SecondLevel, name: str) -> Iterator[Memory]:
    made = Memory(guest, name)
    try:
        yield made
    finally:
        made.remove()


@contextmanager
def _other(rig: Rig) -> Iterator[SecondLevel]:
    """A guest that waits for another one to arrive in it."""
    other = rig.guest(slot=1, qemu_args=INCOMING)
    other.boot(run=False)
    try:
        yield other
    finally:
        other.close()


def _go_on(rig: Rig, guest: SecondLevel, other: SecondLevel, keeper: Keeper) -> int:
    take_over(other, guest.channel)
    guest.close()
    return _run_there(rig, other, keeper)


def _run_there(rig: Rig, other: SecondLevel, keeper: Keeper) -> int:
    """Let a guest that has arrived run, and see all of its memory checked; the pages checked so far."""
    other.qmp.execute("cont")
    keeper.guest = other
    with rig.bouncing(other):
        said = keeper.rounds(1)
    rig.both_trees(other)  # raises unless there is one for each node
    keeper.finish()
    rig.quiet(other)
    return said.checked
