"""Placement of page tables: what the other rooms use of this one.

snapshot = take(machine, names=["gups"], label="ready")
print(snapshot.processes[0].table_pages, snapshot.processes[0].local_share(0))
save(snapshot, Path("snapshot-ready.npz"))
"""

from numalab.measure.archive import load, save
from numalab.measure.render import render
from numalab.measure.snapshot import ProcessPlacement, Root, Snapshot
from numalab.measure.take import detach, take

__all__ = ["ProcessPlacement", "Root", "Snapshot", "detach", "load", "render", "save", "take"]
