"""The vectorised walk against a naive one, and against what Linux calls present."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numalab.measure import pagetable
from numalab.measure.nodes import NodeMap, Span
from numalab.measure.pagetable import Tables, WalkError, frames_of, walk
from tests.unit.guest_memory import GuestMemory, entry, naive_walk

#: Node 1 has no memory; there is a hole between the nodes 0 and 2, and node 3 ends at no round frame.
NODES = NodeMap(
    [0, 1, 2, 3],
    [Span(0, 0x800, 0), Span(0x1000, 0x2000, 2), Span(0x2000, 0x2FFD, 3), Span(0x4_0000, 0x20_0000, 3)],
)
ZERO, HUGE_ZERO = 0x1234, 0x1200
KINDS = ("data", "data", "data", "protnone", "special", "swap", "none")


def random_memory(seed: int, levels: int, roots: int, sharing: bool) -> tuple[GuestMemory, list[int]]:
    """Trees with every kind of entry, some tables referred to twice in one tree or by several."""
    rng = random.Random(seed)
    memory = GuestMemory(levels)
    frames = iter(rng.sample(range(0x3000), 400))

    def leaf(level: int) -> int:
        kind = rng.choice(KINDS)
        if kind == "none":
            return 0
        frame = rng.choice([rng.randrange(0x3100), rng.randrange(0x4_0000, 0x21_0000), ZERO, HUGE_ZERO])
        if level == 1 or kind == "swap":
            return entry(frame, kind)
        base = frame >> 9 * (level - 1) << 9 * (level - 1)
        return entry(HUGE_ZERO if level == 2 and frame == HUGE_ZERO else base, rng.choice([kind, "split"]), huge=True)

    def grow(level: int, top: bool) -> int:
        frame = memory.table(next(frames))
        span = 256 if top else 512
        if level == 1:
            for index in rng.sample(range(512), rng.choice([0, 1, 7, 300, 512])):
                memory.set(frame, index, leaf(1))
            return frame
        for index in sorted(rng.sample(range(span), rng.randrange(4))):
            memory.link(frame, index, grow(level - 1, False))
        if level <= pagetable.LEAF_LEVELS:
            for index in rng.sample(range(span), rng.randrange(20)):
                if not memory.pages[frame][index]:
                    memory.set(frame, index, leaf(level))
        if sharing:
            below = [int(v) >> 12 & 0xFFFF for v in memory.pages[frame] if int(v) & 0x81 == 1]
            for index in rng.sample(range(span), rng.randrange(3)):
                if below and not memory.pages[frame][index]:
                    memory.link(frame, index, rng.choice(below))
        if top:  # the kernel's half, which must not be walked
            memory.set(frame, rng.randrange(256, 512), entry(0xDEAD))
        return frame

    return memory, [grow(levels, True) for _ in range(roots)]


def as_dict(tables: Tables) -> dict[tuple[int, int, int], tuple[int, int, dict[int, int]]]:
    return {
        (int(tables.root[i]), int(tables.level[i]), int(tables.frame[i])): (
            int(tables.va[i]),
            int(tables.refs[i]),
            {column: int(count) for column, count in enumerate(tables.leaves[i]) if count},
        )
        for i in range(len(tables))
    }


@given(st.integers(0, 2**32), st.sampled_from([4, 5]), st.integers(0, 3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_walk_agrees_with_a_naive_walk(seed: int, levels: int, roots: int, sharing: bool) -> None:
    memory, tops = random_memory(seed, levels, roots, sharing)
    found = walk(tops, levels, memory.read, NODES, zero_frame=ZERO, huge_zero_frame=HUGE_ZERO)
    wanted = naive_walk(memory, tops, NODES, ZERO, HUGE_ZERO)
    assert as_dict(found) == {key: (va, refs, dict(leaves)) for key, (va, refs, leaves) in wanted.items()}


@given(st.integers(0, 2**32), st.sampled_from([4, 5]))
@settings(max_examples=20, deadline=None)
def test_rows_are_in_order_and_parents_point_up(seed: int, levels: int) -> None:
    memory, tops = random_memory(seed, levels, 2, True)
    found = walk(tops, levels, memory.read, NODES)
    assert (np.diff(found.level) <= 0).all()
    for row in range(len(found)):
        parent = int(found.parent[row])
        if found.level[row] == levels:
            assert parent == -1
            continue
        assert found.level[parent] == found.level[row] + 1
        assert found.root[parent] == found.root[row]
        span = 1 << (12 + 9 * int(found.level[row]))
        index = (int(found.va[row]) - int(found.va[parent])) // span
        assert int(memory.pages[int(found.frame[parent])][index]) >> 12 & 0xFFFF == int(found.frame[row])


def test_many_tables_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagetable, "_CHUNK", 3)
    memory, tops = random_memory(7, 4, 3, True)
    found = walk(tops, 4, memory.read, NODES, zero_frame=ZERO, huge_zero_frame=HUGE_ZERO)
    assert as_dict(found) == {
        key: (va, refs, dict(leaves))
        for key, (va, refs, leaves) in naive_walk(memory, tops, NODES, ZERO, HUGE_ZERO).items()
    }
    assert memory.reads > len(found) // 3


def single(value: int, level: int) -> Tables:
    """Walk a tree with one entry, at `level`."""
    memory = GuestMemory(4)
    frames = [memory.table(0x100 + n) for n in range(4)]
    for above, below in pairwise(frames[: 5 - level]):
        memory.link(above, 3, below)
    memory.set(frames[4 - level], 5, value)
    return walk([frames[0]], 4, memory.read, NODES, zero_frame=ZERO, huge_zero_frame=HUGE_ZERO)


@pytest.mark.parametrize(
    ("level", "value", "column"),
    [
        (1, entry(0x1400), 2),
        (1, entry(0x1400, "protnone"), 2),
        (1, entry(0x1400, "special"), 2),
        (1, entry(ZERO, "special"), 4),
        (1, entry(HUGE_ZERO), 2),
        (1, entry(0x900), 5),  # in a hole
        (1, entry(0x2FFC), 3),
        (1, entry(0x2FFD), 5),  # just behind the last frame of a node
        (1, entry(0x7FFF_FFFF), 5),  # far beyond memory
        (1, entry(0x1400) | 1 << 7, 2),  # PAT, not a huge page
        (2, entry(0x1400, huge=True), 2),
        (2, entry(0x1400, huge=True) | 1 << 12, 2),  # PAT of a huge page lies among the frame's bits
        (2, entry(0x1400, "protnone", huge=True), 2),
        (2, entry(0x1400, "split"), 2),
        (2, entry(HUGE_ZERO, huge=True), 4),
        (2, entry(HUGE_ZERO, huge=True) | 1 << 12, 4),
        (3, entry(0x4_0000, huge=True), 3),
        (3, entry(0x4_0000, "protnone", huge=True), 3),
    ],
)
def test_leaves_that_linux_takes_for_present(level: int, value: int, column: int) -> None:
    found = single(value, level)
    assert found.leaves.sum() == 1
    assert found.leaves[found.level == level][0, column] == 1
    assert len(found) == 5 - level


@pytest.mark.parametrize("level", [1, 2, 3, 4])
@pytest.mark.parametrize("value", [0, entry(0x1400, "swap"), entry(0, "swap"), entry(0x1_FFFF, "swap")])
def test_swap_and_empty_entries_are_neither_leaves_nor_tables(level: int, value: int) -> None:
    found = single(value, level)
    assert found.leaves.sum() == 0
    assert len(found) == 5 - level


def test_inverted_frames_come_back() -> None:
    frames = np.array([0, 1, 0x1234, 0xFF_FFFF_FFFF], np.int64)
    assert frames_of(np.array([entry(int(f), "protnone") for f in frames], np.uint64)).tolist() == frames.tolist()


def test_a_loop_is_refused() -> None:
    memory = GuestMemory(4)
    top, middle = memory.table(1), memory.table(2)
    memory.link(top, 0, middle)
    memory.link(middle, 0, middle)
    memory.link(middle, 1, memory.table(3))
    with pytest.raises(WalkError, match="0x2 is a table of level"):
        walk([top], 4, memory.read, NODES)


def test_the_kernels_half_is_walked_on_request_only() -> None:
    memory = GuestMemory(4)
    top = memory.table(1)
    memory.link(top, 300, memory.table(2))
    assert len(walk([top], 4, memory.read, NODES)) == 1
    assert len(walk([top], 4, memory.read, NODES, user_only=False)) == 2


def test_select_renumbers_parents() -> None:
    memory, tops = random_memory(11, 4, 2, False)
    whole = walk(tops, 4, memory.read, NODES)
    second = whole.select(whole.root == 1).of_roots_from(1)
    alone = walk(tops[1:], 4, memory.read, NODES)
    for name in ("root", "level", "frame", "va", "parent", "refs", "leaves"):
        assert np.array_equal(getattr(second, name), getattr(alone, name)), name


def test_no_roots_no_tables() -> None:
    found = walk([], 5, GuestMemory(5).read, NODES)
    assert len(found) == 0
    assert found.leaves.shape == (0, NODES.columns)
