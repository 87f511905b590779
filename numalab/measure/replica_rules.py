"""What may stand in an entry of a replica, given the primary's entry of the same place.

The contract of replicated page tables, entry by entry (0 is always allowed in a lazy replica):

* a *leaf* maps the same frames as the primary's leaf, permits no more, has A set (and so has the primary), and W only
  where D is set in both: the processor never has a reason to write into a replica;
* a *link* leads to the replica, of the same domain, of the table to which the primary's entry leads;
* a *pass-through*, marked by a software bit, leads to the primary's own table: in PMD tables to a PTE table, with a
  second mark if that lies on another node than the replica belongs on; in PUD tables to a PMD table, only for want of
  memory and so always with the second mark. There is none above.

Pure numpy on arrays of entries, uint64 of one shape; each rule is a mask of the entries that break it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from numalab.measure.pagetable import LEAF_LEVELS, PAGE_SHIFT

Entries = NDArray[np.uint64]
Mask = NDArray[np.bool_]


def _bit(number: int) -> np.uint64:
    return np.uint64(1 << number)


PRESENT, WRITE, USER, ACCESSED, DIRTY, HUGE = (_bit(n) for n in (0, 1, 2, 5, 6, 7))
NO_EXECUTE = _bit(63)
#: Marks of a pass-through: every one, and those for want of memory, where the domain should have a table of its own.
PASSTHROUGH, PASSTHROUGH_REMOTE = _bit(11), _bit(9)
#: Levels of the tables with pass-throughs, and of those in which they are for want of memory only.
PASSTHROUGH_LEVELS, _FORCED_LEVEL = (2, 3), 3
_KEY = np.uint64(0xF << 59)
#: PWT and PCD; PAT has two places.
_CACHING, _PAT, _PAT_HUGE = np.uint64(0x18), _bit(7), _bit(12)
_FRAME = np.uint64(0x000F_FFFF_FFFF_F000)


def leaves(entries: Entries, level: int) -> Mask:
    """Entries by which the processor maps memory; those that only Linux takes for present have no replica."""
    found = _has(entries, PRESENT)
    if level == 1:
        return found
    return found & _has(entries, HUGE) if level <= LEAF_LEVELS else np.zeros_like(found)


def accessed_leaves(entries: Entries, level: int) -> Mask:
    """Leaves whose page the processor has used: an eager replica has them all."""
    return leaves(entries, level) & _has(entries, ACCESSED)


def tables(entries: Entries, level: int) -> Mask:
    """Entries that lead to a table of the next lower level."""
    return _has(entries, PRESENT) & ~leaves(entries, level) if level > 1 else np.zeros(entries.shape, np.bool_)


@dataclass(frozen=True)
class Kinds:
    """What each entry of a replica is; masks of one shape, at most one true for each entry."""

    leaf: Mask
    link: Mask
    passthrough: Mask

    @classmethod
    def of(cls, replica: Entries, level: int) -> Kinds:
        """Sort the entries of replica tables of `level`."""
        leading = tables(replica, level)
        marked = leading & _has(replica, PASSTHROUGH)
        return cls(leaves(replica, level), leading & ~marked, marked)


def entry_rules(primary: Entries, replica: Entries, level: int, *, remote: Mask) -> dict[str, Mask]:
    """The entries that break each rule, those about the place of links excepted.

    Args:
        primary: entries of primary tables of `level`.
        replica: the same entries of their replicas.
        remote: whether the table an entry of the primary leads to lies on another node than the replica belongs on.
    """
    kinds = Kinds.of(replica, level)
    same_kind = kinds.leaf & leaves(primary, level)
    passing = kinds.passthrough & tables(primary, level)
    marks = PASSTHROUGH | PASSTHROUGH_REMOTE
    marked_wrongly = _has(replica, PASSTHROUGH_REMOTE) != wants_memory(level, remote)
    return {
        "absent": (replica != 0) & ~_has(replica, PRESENT),
        "leaf-primary": kinds.leaf & ~leaves(primary, level),
        **{f"leaf-{name}": same_kind & broken for name, broken in _leaf_rules(primary, replica, level).items()},
        "table-primary": (kinds.link | kinds.passthrough) & ~tables(primary, level),
        "passthrough-level": kinds.passthrough & (level not in PASSTHROUGH_LEVELS),
        "passthrough-table": passing & (((primary ^ replica) & ~marks) != 0),
        "passthrough-mark": passing & (level in PASSTHROUGH_LEVELS) & marked_wrongly,
    }


def wants_memory(level: int, remote: Mask) -> Mask:
    """Whether a pass-through in a table of `level` is for want of memory; `remote` as in `entry_rules`."""
    return remote | (level == _FORCED_LEVEL)


def _leaf_rules(primary: Entries, replica: Entries, level: int) -> dict[str, Mask]:
    differ = primary ^ replica
    below = np.uint64((1 << PAGE_SHIFT + 9 * (level - 1)) - 1)
    type_bits = _CACHING | (_PAT if level == 1 else _PAT_HUGE)
    extra = replica & ~primary
    writes = _has(replica, WRITE)
    # W=0 with D=1 is a shadow stack to some processors: not what the primary's W=1 permits.
    shadow = ~writes & _has(replica, DIRTY) & _has(primary, WRITE)
    return {
        "frame": (differ & _FRAME & ~below) != 0,
        "accessed": ~(_has(replica, ACCESSED) & _has(primary, ACCESSED)),
        "dirty": writes & ~(_has(replica, DIRTY) & _has(primary, DIRTY)),
        "permission": _has(extra, WRITE)
        | _has(extra, USER)
        | _has(primary & ~replica, NO_EXECUTE)
        | ((differ & _KEY) != 0)
        | shadow,
        "type": (differ & type_bits) != 0,
    }


def _has(entries: Entries, bit: np.uint64) -> Mask:
    found: Mask = (entries & bit) != 0
    return found
