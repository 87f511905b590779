"""The rings that join a page table with its replicas, followed for many tables at once.

A kernel that replicates page tables links them through `ptdesc->pt_repl`: primary → replica → replica → … →
primary; NULL means that a table has no replica. A replica says in the word beside it (`pt_repl_info`) of which
domain and level it is. Pure numpy: descriptors come from a reader function, so that the same code serves a live
guest and the synthetic memory of tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: What a link reads as when there is none, and when it points at no page's descriptor.
NO_LINK, WILD_LINK = -1, -2
#: `pt_repl_info`: bits 0-7 domain, 8-11 level (the root has ROOT_LEVEL), 63 set in every replica.
ROOT_LEVEL = 5
_DOMAIN, _LEVEL_SHIFT, _LEVEL, _REPLICA = np.uint64(0xFF), np.uint64(8), np.uint64(0xF), np.uint64(1 << 63)

#: Reads descriptors: frame numbers in; frame numbers of the next in the ring (or NO_LINK, WILD_LINK) as int64, and
#: `pt_repl_info` as uint64, out.
LinkReader = Callable[[NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.uint64]]]


def domain_of(info: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Domain in each `pt_repl_info`."""
    return (info & _DOMAIN).astype(np.int64)


def level_of(info: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Level in each `pt_repl_info`: 1 (PTE) to 4 (P4D), ROOT_LEVEL for the top page."""
    return (info >> _LEVEL_SHIFT & _LEVEL).astype(np.int64)


def is_replica(info: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each `pt_repl_info` is that of a replica."""
    found: NDArray[np.bool_] = (info & _REPLICA) != 0
    return found


@dataclass(frozen=True)
class Rings:
    """The replicas of some tables: one row each, sorted by `member`.

    Attributes:
        owner: int64, index of the table it is a replica of, in the order of the frames that were asked for.
        member: int64, frame number of the replica.
        info: uint64, its `pt_repl_info`.
        broken: int64, indices of tables whose ring does not come back to them.
    """

    owner: NDArray[np.int64]
    member: NDArray[np.int64]
    info: NDArray[np.uint64]
    broken: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.member)

    def owner_of(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index of the table each frame is a replica of; -1 for those that are on no ring."""
        if not len(self):
            return np.full(len(frames), -1, np.int64)
        at = np.minimum(np.searchsorted(self.member, frames), len(self) - 1)
        return np.where(self.member[at] == frames, self.owner[at], -1)


def follow(primaries: NDArray[np.int64], read_links: LinkReader, most: int) -> Rings:
    """Follow the ring of every table.

    Args:
        primaries: frame numbers of primary tables.
        read_links: reads descriptors.
        most: replicas a table may have (the number of domains); a longer ring is broken.
    """
    at, _ = read_links(primaries)
    row = np.flatnonzero(at != NO_LINK)
    at = at[row]
    owners: list[NDArray[np.int64]] = []
    members: list[NDArray[np.int64]] = []
    infos: list[NDArray[np.uint64]] = []
    broken: list[NDArray[np.int64]] = []
    for _step in range(most + 1):
        lost = at < 0
        broken.append(row[lost])
        going = ~lost & (at != primaries[row])
        row, at = row[going], at[going]
        if not len(row):
            break
        following, info = read_links(at)
        owners.append(row)
        members.append(at)
        infos.append(info)
        at = following
    broken.append(row)
    if not members:
        return Rings(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint64), _unique(broken))
    member = np.concatenate(members)
    order = np.argsort(member, kind="stable")
    return Rings(np.concatenate(owners)[order], member[order], np.concatenate(infos)[order], _unique(broken))


def _unique(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.unique(np.concatenate(parts))
