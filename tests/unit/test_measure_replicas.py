"""The checker of replicas: it finds nothing in what is as it should be, and each single thing that is not."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numalab.measure import replica_rules, rings
from numalab.measure.process import Replication
from numalab.measure.replica_check import check
from tests.unit.guest_memory import PASSTHROUGH, PASSTHROUGH_REMOTE, PSE
from tests.unit.replica_memory import (
    ACCESSED,
    DIRTY,
    PMD,
    PTE,
    PTE1,
    PUD,
    REPLICA,
    TOP,
    WRITE,
    ReplicaMemory,
    replica_leaf,
    sample,
)

Break = Callable[[ReplicaMemory], object]

#: A pass-through for want of memory.
FORCED = PASSTHROUGH | PASSTHROUGH_REMOTE


def rules_broken(memory: ReplicaMemory, mode: str = "lazy", root: int = TOP, **more: object) -> list[str]:
    return [each.rule for each in check(memory.space(root, mode, **more)).violations]


def change(memory: ReplicaMemory, primary: int, index: int, *, domain: int = 2, xor: int = 0, to: int = -1) -> None:
    """Change an entry of a replica: some bits, or all of it."""
    page = memory.pages[memory.copies[primary, domain]]
    page[index] = np.uint64(to if to >= 0 else int(page[index]) ^ xor)


# What is as it should be.


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("mode", ["lazy", "eager"])
@pytest.mark.parametrize("near", [True, False])
def test_faithful_replicas_are_good(levels: int, mode: str, near: bool) -> None:
    memory = sample(levels, near=near)
    report = check(memory.space(TOP if levels == 4 else 0xF, mode))
    assert report.violations == []
    tables = levels + 1
    assert report.primary.sum() == tables
    # A PTE table is passed through to on its own node: nodes 0 and 1 have a replica less each.
    assert report.replica.sum(axis=0).tolist() == [tables - near, tables - near, tables, tables]
    assert (report.local, report.remote) == ((2, 0) if near else (0, 0))
    # Of the twelve entries in PTE three are in no replica.
    assert report.entries == 4 * (levels + 9 + 8 + 2) - (9 + 8) * near


def test_a_lazy_replica_may_be_empty_and_an_eager_one_may_not() -> None:
    memory = sample()
    for index in (4, 5):
        change(memory, PMD, index, to=0)
    change(memory, PTE, 3, domain=3, to=0)
    assert rules_broken(memory, "lazy") == []
    found = check(memory.space(TOP, "eager")).violations
    assert [(each.rule, each.domain, each.level, each.count) for each in found] == [
        ("eager", 3, 1, 1),
        ("eager", 2, 2, 2),
    ]
    assert found[0].va == (1 << 39) + (3 << 30) + (4 << 21) + (3 << 12)


def test_what_the_processor_never_used_may_be_missing_in_an_eager_replica() -> None:
    memory = sample()
    lonely = memory.table(0x14)
    memory.set(lonely, 0, 0x700 << 12 | 0x8000_0000_0000_0007)
    memory.link(PMD, 100, lonely)
    assert rules_broken(memory, "eager") == []
    memory.set(lonely, 0, 0x700 << 12 | 0x8000_0000_0000_0027)
    assert rules_broken(memory, "eager") == ["eager"] * 4


def test_replicas_that_are_not_in_use_need_not_be_complete() -> None:
    memory = sample()
    change(memory, PTE, 3, domain=3, to=0)
    some = Replication("eager", active=True, domains=(0, 1, 2))
    assert rules_broken(memory, "eager", replication=some) == []
    assert rules_broken(memory, "eager", replication=Replication("eager", active=False, domains=(3,))) == []


def test_a_process_that_never_replicated() -> None:
    memory = sample()
    memory.next.clear()
    memory.roots.clear()
    report = check(memory.space(TOP, replication=None, domains=0))
    assert report.violations == []
    assert report.replica.sum() == report.entries == 0


def test_deposited_tables_have_rings_too() -> None:
    memory = sample()
    spare = memory.table(0x20)
    copy = memory.fresh(3)
    memory.join(spare, 3, 1, copy)
    report = check(memory.space(TOP, "eager", deposited=np.array([spare])))
    assert report.violations == []
    assert report.primary.sum() == 5
    assert report.spare.tolist() == [0, 0, 0, 1]
    assert report.replica.sum(axis=0).tolist() == [4, 4, 5, 5]
    memory.set(copy, 0, 0x700 << 12 | 0x67)
    assert rules_broken(memory, deposited=np.array([spare])) == ["leaf-primary"]


# Entries: one way to break each rule. The change is made on domain 2, where nothing is passed through, but where said.

ENTRY_RULES: list[tuple[str, Break]] = [
    ("absent", lambda m: change(m, PTE, 0, xor=1)),
    ("absent", lambda m: change(m, PTE, 300, to=0x1000)),
    ("leaf-primary", lambda m: change(m, PTE, 300, to=0x700 << 12 | 0x8000_0000_0000_0067)),
    ("leaf-primary", lambda m: m.set(PTE, 0, 0)),
    ("leaf-primary", lambda m: m.set(PTE, 0, 0x500 << 12 | 0x120)),
    ("leaf-primary", lambda m: change(m, PMD, 4, to=0x1600 << 12 | 0x8000_0000_0000_00E7)),
    ("leaf-frame", lambda m: change(m, PTE, 0, xor=1 << 12)),
    ("leaf-frame", lambda m: change(m, PMD, 6, xor=1 << 21)),
    ("leaf-accessed", lambda m: change(m, PTE, 0, xor=ACCESSED)),
    ("leaf-accessed", lambda m: m.set(PTE, 0, int(m.pages[PTE][0]) & ~ACCESSED)),
    ("leaf-dirty", lambda m: change(m, PTE, 0, xor=DIRTY)),
    ("leaf-dirty", lambda m: m.set(PTE, 0, int(m.pages[PTE][0]) & ~DIRTY)),
    ("leaf-permission", lambda m: change(m, PTE, 0, xor=1 << 63)),
    ("leaf-permission", lambda m: m.set(PTE, 0, int(m.pages[PTE][0]) & ~WRITE)),
    ("leaf-permission", lambda m: m.set(PTE, 0, int(m.pages[PTE][0]) & ~4)),
    ("leaf-permission", lambda m: change(m, PTE, 0, xor=1 << 60)),
    ("leaf-permission", lambda m: change(m, PTE, 0, xor=WRITE)),  # with D set: a shadow stack
    ("leaf-type", lambda m: change(m, PTE, 0, xor=1 << 4)),
    ("leaf-type", lambda m: change(m, PTE, 0, xor=1 << 7)),
    ("leaf-type", lambda m: change(m, PMD, 6, xor=1 << 12)),
    ("table-primary", lambda m: m.set(PMD, 4, 0)),
    ("table-primary", lambda m: m.set(PMD, 4, 0x1600 << 12 | 0x8000_0000_0000_00E7)),
    ("table-primary", lambda m: change(m, PUD, 9, xor=PSE)),
    ("passthrough-level", lambda m: change(m, TOP, 1, to=PUD << 12 | 0x67 | PASSTHROUGH)),
    ("passthrough-level", lambda m: change(m, TOP, 1, to=PUD << 12 | 0x67 | FORCED)),
    ("passthrough-table", lambda m: change(m, PMD, 5, domain=1, xor=1 << 12)),
    ("passthrough-table", lambda m: change(m, PUD, 3, to=PTE << 12 | 0x67 | FORCED)),
    ("passthrough-mark", lambda m: change(m, PMD, 5, domain=1, xor=PASSTHROUGH_REMOTE)),
    ("passthrough-mark", lambda m: change(m, PMD, 5, to=PTE1 << 12 | 0x67 | PASSTHROUGH)),
    ("passthrough-mark", lambda m: change(m, PUD, 3, to=PMD << 12 | 0x67 | PASSTHROUGH)),
    # ... on the PMD table's own node: local pass-throughs are to PTE tables only.
    ("passthrough-mark", lambda m: change(m, PUD, 3, domain=0, to=PMD << 12 | 0x67 | PASSTHROUGH)),
    ("link-ring", lambda m: change(m, PMD, 4, to=m.copies[PTE1, 2] << 12 | 0x67)),
    ("link-ring", lambda m: change(m, PMD, 4, to=PTE << 12 | 0x67)),  # the primary's own, without the mark
    ("link-ring", lambda m: change(m, PMD, 4, to=0x3FFF << 12 | 0x67)),
    ("link-domain", lambda m: change(m, PMD, 4, to=m.copies[PTE, 3] << 12 | 0x67)),
]


@pytest.mark.parametrize(("rule", "spoil"), ENTRY_RULES, ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(ENTRY_RULES)])
def test_an_entry_that_breaks_a_rule(rule: str, spoil: Break) -> None:
    memory = sample()
    assert rules_broken(memory) == []
    spoil(memory)
    found = check(memory.space(TOP)).violations
    assert {each.rule for each in found} == {rule}
    assert all(str(each).startswith(f"{rule}: domain ") for each in found)


def test_every_rule_for_entries_is_tried() -> None:
    entries = np.zeros((1, 512), np.uint64)
    known = set(replica_rules.entry_rules(entries, entries, 1, remote=entries != 0)) | {"link-ring", "link-domain"}
    assert known == {rule for rule, _ in ENTRY_RULES}


def test_a_pass_through_for_want_of_memory_is_marked() -> None:
    memory = sample()
    change(memory, PMD, 4, to=PTE << 12 | 0x67 | FORCED)
    report = check(memory.space(TOP))
    assert report.violations == []
    assert (report.local, report.remote) == (2, 1)


@pytest.mark.parametrize("domain", [0, 2], ids=["on the domain's own node", "elsewhere"])
@pytest.mark.parametrize("mode", ["lazy", "eager"])
def test_a_pass_through_to_a_pmd_table_is_for_want_of_memory(domain: int, mode: str) -> None:
    memory = sample()
    change(memory, PUD, 3, domain=domain, to=PMD << 12 | 0x67 | FORCED)
    report = check(memory.space(TOP, mode))
    assert report.violations == []
    # Replicas below it that nothing links are on their rings, with what they pass through to.
    assert (report.local, report.remote) == (2, 1)


def test_a_violation_says_where_and_how_often() -> None:
    memory = sample()
    for index in (5, 7):
        change(memory, PTE, index, xor=1 << 12)
    (found,) = check(memory.space(TOP)).violations
    assert (found.domain, found.level, found.count) == (2, 1, 2)
    assert str(found) == (
        "leaf-frame: domain 2, level 1, address 0x80c0805000: "
        "0x8000000000504067 where the primary has 0x8000000000505067 (2 such)"
    )


def test_the_kernels_half_is_no_bodys_business() -> None:
    memory = sample()
    change(memory, TOP, 300, to=0xDEAD << 12 | 0x63)
    assert rules_broken(memory) == []


# Rings and roots.


def replica_of_pte(memory: ReplicaMemory) -> int:
    return memory.copies[PTE, 2]


RING_RULES: list[tuple[str, Break]] = [
    ("ring-info", lambda m: m.info.update({replica_of_pte(m): 1 << 8 | 2})),
    ("ring-info", lambda m: m.info.update({replica_of_pte(m): REPLICA | 2 << 8 | 2})),
    ("ring-info", lambda m: m.info.update({m.roots[2]: REPLICA | 3 << 8 | 2})),
    ("ring-domain", lambda m: m.join(PTE, 2, 1, m.fresh(2))),
    ("ring-open", lambda m: m.next.update({replica_of_pte(m): replica_of_pte(m)})),
    ("ring-open", lambda m: m.next.pop(replica_of_pte(m))),
    ("ring-open", lambda m: m.next.update({replica_of_pte(m): rings.WILD_LINK})),
    ("ring-open", lambda m: m.next.update({replica_of_pte(m): PTE1})),
    ("root", lambda m: m.roots.update({2: m.fresh(2)})),
    ("root", lambda m: m.roots.update({2: m.roots[3]})),
]


@pytest.mark.parametrize(("rule", "spoil"), RING_RULES, ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(RING_RULES)])
def test_a_ring_or_root_that_breaks_a_rule(rule: str, spoil: Break) -> None:
    memory = sample()
    spoil(memory)
    assert rule in rules_broken(memory)


def test_the_root_of_four_levels_goes_by_two_numbers() -> None:
    memory = sample()
    memory.info[memory.roots[2]] = REPLICA | 4 << 8 | 2
    assert rules_broken(memory) == []


def test_a_domain_that_the_machine_does_not_have() -> None:
    memory = sample()
    assert {"ring-info", "ring-open"} <= set(rules_broken(memory, domains=2))


def test_user_halves_with_page_table_isolation() -> None:
    memory = sample()
    assert rules_broken(memory, pti=True) == []
    for root in memory.roots.values():  # as the kernel has it: only its own half is not executable
        memory.pages[root][1] |= np.uint64(1 << 63)
    assert rules_broken(memory, pti=True) == []
    memory.pages[memory.roots[1] + 1][1] = np.uint64(0)
    found = check(memory.space(TOP, pti=True)).violations
    assert [(each.rule, each.domain) for each in found] == [("root-half", 1)]


def test_rings_are_followed_for_many_tables_at_once() -> None:
    memory = sample()
    frames = np.array([PTE, PMD, 0x2000, PTE1])
    found = rings.follow(frames, memory.read_links, 4)
    assert found.broken.tolist() == []
    assert np.bincount(found.owner, minlength=4).tolist() == [3, 4, 0, 3]
    assert found.owner_of(np.array([memory.copies[PMD, 1], PMD, memory.copies[PTE, 3]])).tolist() == [1, -1, 0]
    at = int(np.flatnonzero(found.member == memory.copies[PMD, 1])[0])
    assert (rings.domain_of(found.info)[at], rings.level_of(found.info)[at]) == (1, 2)
    assert rings.is_replica(found.info).all()
    assert rings.follow(np.empty(0, np.int64), memory.read_links, 4).owner_of(np.array([7])).tolist() == [-1]


# At random.


def grown(seed: int, levels: int) -> tuple[ReplicaMemory, int]:
    """A random tree, replicated in full on some nodes."""
    rng = random.Random(seed)
    memory = ReplicaMemory(levels)
    frames = iter(rng.sample([(node << 14) + n for node in range(4) for n in range(0x800)], 300))

    def leaf(level: int) -> int:
        frame = rng.randrange(1 << 22) >> 9 * (level - 1) << 9 * (level - 1)
        bits = rng.choice([0x67, 0x25, 0x27, 0x7, 0x65, 0x45, 0x120, 0x18067 & 0xFFF]) | rng.choice([0, 1 << 63])
        return frame << 12 | bits | (PSE if level > 1 else 0)

    def grow(level: int) -> int:
        frame = memory.table(next(frames))
        for index in rng.sample(range(256), rng.randrange(4) if level > 1 else rng.choice([0, 3, 200])):
            if level <= 3 and (level == 1 or rng.random() < 0.3):
                memory.set(frame, index, leaf(level))
            elif level > 1:
                memory.link(frame, index, grow(level - 1))
        return frame

    top = grow(levels)
    memory.replicate(top, rng.sample(range(4), rng.randrange(1, 5)), near=rng.random() < 0.5)
    return memory, top


@given(st.integers(0, 2**32), st.sampled_from([4, 5]), st.sampled_from(["lazy", "eager"]))
@settings(max_examples=40, deadline=None)
def test_faithful_replicas_of_random_trees_are_good(seed: int, levels: int, mode: str) -> None:
    memory, top = grown(seed, levels)
    assert rules_broken(memory, mode, top) == []


@given(st.integers(0, 2**32), st.data())
@settings(max_examples=60, deadline=None)
def test_any_other_bit_of_any_entry_is_found(seed: int, data: st.DataObject) -> None:
    """Software bits aside, and those by which a replica may be stricter than its primary."""
    memory, top = grown(seed, 4)
    filled = [
        (primary, domain, index, level_of)
        for (primary, domain), frame in memory.copies.items()
        for level_of in [memory.info[frame] >> 8 & 0xF]
        for index in np.flatnonzero(memory.pages[frame]).tolist()
    ]
    if not filled:
        return
    primary, domain, index, level = data.draw(st.sampled_from(filled))
    value = int(memory.pages[memory.copies[primary, domain]][index])
    is_leaf = level == 1 or bool(value & PSE)
    bits = [0, *range(12 if not is_leaf else 12 + 9 * (level - 1), 24)]
    if is_leaf:
        bits += [3, 4, 5, 59, 60, 61, 62]
    bit = data.draw(st.sampled_from(bits))
    change(memory, primary, index, domain=domain, xor=1 << bit)
    assert rules_broken(memory, root=top) != []


def test_what_a_replica_holds_of_a_leaf() -> None:
    """The builder of these tests, against the text of the contract."""
    assert replica_leaf(0x1067) == 0x1067
    assert replica_leaf(0x1027) == 0x1025  # W needs D
    assert replica_leaf(0x1007) == 0  # never used
    assert replica_leaf(0x1045 | ACCESSED) == 0x1065  # a shadow stack stays one
    assert replica_leaf(0x1120) == 0
