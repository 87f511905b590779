"""Check replicas of page tables against their primary, entry for entry: the oracle of the kernel's tests.

Nothing here asks the kernel's code whether it is right: tables, descriptors and entries are read as they are in
memory. The machine must stand still and the process be quiet: a replica may lag behind inside a critical section.
`check` is pure numpy; `numalab.measure.pgtable_repl` does the same for a process of a live machine.

Beside the rules for entries (`replica_rules`), these:

* `ring-open` the ring of a table does not come back to it; `ring-info` a table on a ring does not say that it is a
  replica of that level; `ring-domain` two replicas of one table are of one domain;
* `root` a root in use is not on the ring of the primary's; `root-half` with page-table isolation, the user half of a
  root is not its kernel half;
* `link-ring` a link leads to no replica of the primary's child, `link-domain` to that of another domain;
* `eager` an accessed leaf of the primary is missing in an eager replica.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from numalab.measure import replica_rules as rules
from numalab.measure import rings
from numalab.measure.nodes import NodeMap
from numalab.measure.pagetable import ENTRIES, PAGE_SHIFT, PageReader, frames_of, walk
from numalab.measure.process import Replication, Root
from numalab.measure.replica_report import Report, Violation

#: Pairs of tables that are compared in one go.
_CHUNK = 128
#: More domains than `pt_repl_info` can name.
_DOMAINS = 256


@dataclass(frozen=True)
class Replicated:
    """An address space with replicas, as it is in memory.

    Attributes:
        levels: 4 or 5.
        roots: primary first, then every replica that has a root.
        replication: what was asked for; None: there never was a replica.
        domains: number of domains of the machine.
        nodes: gives the column of a table's node.
        read_pages, read_links: read table pages, and descriptors.
        deposited: int64, frames of PTE tables of the primary that no entry leads to.
        pti: page-table isolation is on: a second page beside each top page, for user mode.
    """

    levels: int
    roots: tuple[Root, ...]
    replication: Replication | None
    domains: int
    nodes: NodeMap
    read_pages: PageReader
    read_links: rings.LinkReader
    deposited: NDArray[np.int64]
    pti: bool = False

    @property
    def used(self) -> dict[int, Root]:
        """Replicas that CPUs walk, by domain."""
        told = self.replication
        if told is None or not told.active:
            return {}
        return {root.domain: root for root in self.roots if root.domain is not None and root.domain in told.domains}


def check(space: Replicated) -> Report:
    """Check every replica of an address space.

    Raises:
        WalkError: the primary contradicts itself.
    """
    return _Check(space).run()


@dataclass(frozen=True)
class _Pairs:
    """Replicas of one level beside their primaries, one row each.

    Attributes:
        row: index of the primary.
        replica: frame number.
        domain: of the replica.
        primary_entries, replica_entries: uint64 [row, entry].
    """

    row: NDArray[np.int64]
    replica: NDArray[np.int64]
    domain: NDArray[np.int64]
    primary_entries: rules.Entries
    replica_entries: rules.Entries


class _Check:
    """One check; `frame`, `level` and `va` have a row for each table of the primary."""

    def __init__(self, space: Replicated) -> None:
        self.space = space
        self.tables = walk([space.roots[0].frame], space.levels, space.read_pages, space.nodes)
        spare = len(space.deposited)
        self.frame = np.concatenate([self.tables.frame, space.deposited])
        self.level = np.concatenate([self.tables.level, np.ones(spare, np.int8)]).astype(np.int64)
        self.va = np.concatenate([self.tables.va, np.zeros(spare, np.uint64)])
        self.rings = rings.follow(self.frame, space.read_links, space.domains)
        self.domain = rings.domain_of(self.rings.info)
        self.eager = space.replication is not None and space.replication.mode == "eager"
        self.homes = np.full(_DOMAINS, -1, np.int64)
        for root in space.roots:
            if root.domain is not None and root.home is not None:
                self.homes[root.domain] = root.home
        mapped = self.rings.owner < len(self.tables)
        self.report = Report(
            self._count(self.tables.level.astype(np.int64), self.tables.frame, self.tables.refs),
            self._count(self.level[self.rings.owner[mapped]], self.rings.member[mapped], 1),
            self._count(self.level[self.rings.owner[~mapped]], self.rings.member[~mapped], 1)[0],
        )

    def _count(
        self, level: NDArray[np.int64], frame: NDArray[np.int64], weight: NDArray[np.int32] | int
    ) -> NDArray[np.int64]:
        counts = np.zeros((self.space.levels, self.space.nodes.columns), np.int64)
        np.add.at(counts, (level - 1, self.space.nodes.column(frame)), weight)
        return counts[:, : len(self.space.nodes.nodes)]

    def run(self) -> Report:
        self._rings()
        self._roots()
        for level in range(1, self.space.levels + 1):
            width = ENTRIES // 2 if level == self.space.levels else ENTRIES
            mine = np.flatnonzero(self.level[self.rings.owner] == level)
            for start in range(0, len(mine), _CHUNK):
                part = mine[start : start + _CHUNK]
                row, replica = self.rings.owner[part], self.rings.member[part]
                primary_entries = self.space.read_pages(self.frame[row])[:, :width]
                replica_entries = self.space.read_pages(replica)[:, :width]
                self._compare(level, _Pairs(row, replica, self.domain[part], primary_entries, replica_entries))
        return self.report

    # Rings and roots.

    def _rings(self) -> None:
        for row in self.rings.broken[:1]:
            text = f"the ring of the table at frame {self.frame[row]:#x} does not come back to it"
            self._note("ring-open", -1, int(self.level[row]), int(self.va[row]), len(self.rings.broken), text)
        info, owner = self.rings.info, self.rings.owner
        says, level = rings.level_of(info), self.level[owner]
        # With four levels there is no table of level 4 but the root: it may go by either number.
        fits = (says == level) | ((says == rings.ROOT_LEVEL) & (level == self.space.levels))
        self._note_tables("ring-info", ~(rings.is_replica(info) & (self.domain < self.space.domains) & fits))
        twice = np.ones(len(owner), np.bool_)
        twice[np.unique(owner * _DOMAINS + self.domain, return_index=True)[1]] = False
        self._note_tables("ring-domain", twice)

    def _roots(self) -> None:
        of_top = self.level[self.rings.owner] == self.space.levels
        members = set(zip(self.domain[of_top].tolist(), self.rings.member[of_top].tolist(), strict=True))
        for domain, root in self.space.used.items():
            if (domain, root.frame) not in members:
                text = f"the root at frame {root.frame:#x} is not on the ring of the primary's"
                self._note("root", domain, self.space.levels, 0, 1, text)

    def _note_tables(self, rule: str, broken: NDArray[np.bool_]) -> None:
        for at in np.flatnonzero(broken)[:1]:
            row = self.rings.owner[at]
            text = f"the table at frame {self.rings.member[at]:#x} says of itself {self.rings.info[at]:#x}"
            where = int(self.level[row]), int(self.va[row])
            self._note(rule, int(self.domain[at]), *where, int(broken.sum()), text)

    def _note(self, rule: str, domain: int, level: int, va: int, count: int, text: str) -> None:
        self.report.violations.append(Violation(rule, domain, level, va, count, text))

    # Entries.

    def _compare(self, level: int, pairs: _Pairs) -> None:
        primary, replica = pairs.primary_entries, pairs.replica_entries
        leading = rules.tables(primary, level)
        child = np.where(leading, frames_of(primary), 0)
        remote = leading & (self._node(child) != self.homes[pairs.domain][:, np.newaxis])
        kinds = rules.Kinds.of(replica, level)
        broken = rules.entry_rules(primary, replica, level, remote=remote)
        broken |= self._links(pairs, kinds.link & leading, child)
        if level == self.space.levels and self.space.pti:
            # The user half has what the kernel half has, which alone is not executable.
            user = self.space.read_pages(pairs.replica + 1)[:, : replica.shape[1]]
            broken["root-half"] = ((user ^ replica) & ~rules.NO_EXECUTE) != 0
        if self.eager:
            walked = np.isin(pairs.domain, list(self.space.used))[:, np.newaxis]
            wanted = rules.accessed_leaves(primary, level) | (leading & self._holds_accessed(child))
            broken["eager"] = walked & (replica == 0) & wanted
        passing = kinds.passthrough & leading & (level in rules.PASSTHROUGH_LEVELS)
        forced = rules.wants_memory(level, remote)
        self.report.local += int((passing & ~forced).sum())
        self.report.remote += int((passing & forced).sum())
        self.report.entries += int(np.count_nonzero(replica))
        for rule, mask in broken.items():
            self._note_entries(rule, level, pairs, mask)

    def _links(self, pairs: _Pairs, link: rules.Mask, child: NDArray[np.int64]) -> dict[str, rules.Mask]:
        """Links that lead elsewhere than to the replica, of the same domain, of the primary's child."""
        where = np.nonzero(link)
        target = frames_of(pairs.replica_entries[link])
        owner = self.rings.owner_of(target)
        on_ring = (owner >= 0) & (self.frame[owner] == child[where])
        foreign = np.zeros(len(target), np.bool_)
        at = np.searchsorted(self.rings.member, target[on_ring])
        foreign[on_ring] = self.domain[at] != pairs.domain[where[0]][on_ring]
        broken = {"link-ring": np.zeros_like(link), "link-domain": np.zeros_like(link)}
        broken["link-ring"][where] = ~on_ring
        broken["link-domain"][where] = foreign
        return broken

    def _holds_accessed(self, child: NDArray[np.int64]) -> rules.Mask:
        """Whether the table at each frame has an accessed leaf in it or below."""
        return np.isin(child, self._accessed_frames)

    @cached_property
    def _accessed_frames(self) -> NDArray[np.int64]:
        """Frames of the primary's tables with an accessed leaf in them or below."""
        tables = self.tables
        found = np.zeros(len(tables), np.bool_)
        for level in range(1, self.space.levels + 1):
            rows = np.flatnonzero(tables.level == level)
            for start in range(0, len(rows), _CHUNK):
                part = rows[start : start + _CHUNK]
                found[part] |= rules.accessed_leaves(self.space.read_pages(tables.frame[part]), level).any(axis=1)
            above = tables.parent[rows[found[rows]]]
            found[above[above >= 0]] = True
        return tables.frame[found]

    def _note_entries(self, rule: str, level: int, pairs: _Pairs, mask: rules.Mask) -> None:
        for domain in np.unique(pairs.domain[mask.any(axis=1)]).tolist():
            row, index = np.nonzero(mask & (pairs.domain == domain)[:, np.newaxis])
            first = row[0], index[0]
            va = int(self.va[pairs.row[first[0]]]) + (int(first[1]) << PAGE_SHIFT + 9 * (level - 1))
            has, primary = int(pairs.replica_entries[first]), int(pairs.primary_entries[first])
            self._note(rule, domain, level, va, len(row), f"{has:#x} where the primary has {primary:#x}")

    def _node(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Node number of each frame, -1 for those on none."""
        column = self.space.nodes.column(frames.ravel()).reshape(frames.shape)
        return np.array([*self.space.nodes.nodes, -1, -1], np.int64)[column]
