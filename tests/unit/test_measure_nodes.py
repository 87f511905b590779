"""Frames to nodes: holes, interleaving, ragged ends, memoryless nodes, large machines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numalab.measure import nodes
from numalab.measure.nodes import NodeMap, Span, disjoint

#: Column of frames that belong to none of four nodes; 4 is for the zero pages.
OTHER = 5


@st.composite
def layouts(draw: st.DrawFn) -> list[Span]:
    """Disjoint spans of up to four nodes in any order, some with holes between."""
    at, spans = 0, []
    for _ in range(draw(st.integers(0, 8))):
        at += draw(st.sampled_from([0, 0, 1, 511, 512, 5000, 1 << 20]))
        length = draw(st.sampled_from([1, 33, 512, 4096, 262144 - 33, 1 << 22]))
        spans.append(Span(at, at + length, draw(st.integers(0, 3))))
        at += length
    return spans


def naive(spans: list[Span], frame: int) -> int:
    return next((span.node for span in spans if span.start <= frame < span.end), OTHER)


@given(layouts(), st.lists(st.integers(0, 1 << 26), max_size=50))
@settings(deadline=None)
def test_columns(spans: list[Span], frames: list[int]) -> None:
    edges = [edge + step for span in spans for edge in span[:2] for step in (-1, 0, 1) if edge + step >= 0]
    asked = np.array(frames + edges + [(1 << 40) - 1], np.int64)
    found = NodeMap(range(4), spans).column(asked)
    assert found.tolist() == [naive(spans, frame) for frame in asked.tolist()]


@given(st.integers(1, 20), st.integers(0, 2**32), st.booleans())
@settings(deadline=None, max_examples=30)
def test_rows_are_counted_by_column(nodes: int, seed: int, masked: bool) -> None:
    mapped = NodeMap(range(nodes), [Span(n * 700, n * 700 + 690, n) for n in range(nodes)])
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, nodes * 700 + 50, (3, 512))
    mask = rng.random((3, 512)) < 0.5 if masked else None
    found = mapped.count(frames, mask, zero_frame=5)
    for row in range(3):
        columns = mapped.column(frames[row])
        columns[frames[row] == 5] = mapped.zero
        counted = columns if mask is None else columns[mask[row]]
        assert found[row].tolist() == np.bincount(counted, minlength=mapped.columns).tolist()


def test_a_full_page_on_one_node_does_not_overflow() -> None:
    mapped = NodeMap(range(8), [Span(0, 10, 3)])
    assert mapped.count(np.zeros((1, 512), np.int64)).tolist() == [[0, 0, 0, 512, 0, 0, 0, 0, 0, 0]]


def test_table_stays_small_on_a_large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_MAX_SLOTS", 64)
    spans = [Span(0, 100_000, 0), Span(100_000, 100_001, 1), Span(100_001, 9_999_999, 0)]
    mapped = NodeMap([0, 1], spans)
    assert mapped._table.size <= 65
    assert mapped.column(np.array([99_999, 100_000, 100_001, 9_999_998, 9_999_999])).tolist() == [0, 1, 0, 0, 3]


def test_memoryless_and_sparse_node_numbers_have_columns() -> None:
    mapped = NodeMap([7, 0, 3], [Span(0, 10, 7), Span(10, 20, 0)])
    assert mapped.nodes == (0, 3, 7)
    assert mapped.node(0) == 7
    assert mapped.node(10) == 0
    assert mapped.node(20) is None


def test_impossible_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        NodeMap([0, 1], [Span(0, 10, 0), Span(9, 20, 1)])
    with pytest.raises(ValueError, match="none of the nodes"):
        NodeMap([0, 1], [Span(0, 10, 2)])


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(512, 5000)), min_size=1, max_size=8), st.integers(0, 700))
@settings(deadline=None)
def test_interleaved_nodes_are_told_apart(runs: list[tuple[int, int]], start: int) -> None:
    truth, at = [], start
    for node, length in runs:
        truth.append(Span(at, at + length, node))
        at += length
    claims = [
        Span(
            min(span.start for span in truth if span.node == node),
            max(span.end for span in truth if span.node == node),
            node,
        )
        for node in {span.node for span in truth}
    ]
    asked: list[int] = []

    def resolve(frame: int) -> int:
        asked.append(frame)
        return naive(truth, frame)

    found = disjoint(claims, resolve)
    assert NodeMap(range(4), found).column(np.arange(at + 10)).tolist() == [
        naive(truth, frame) for frame in range(at + 10)
    ]
    if len(claims) == 1:
        assert not asked


def test_holes_inside_overlapping_claims_belong_to_nobody() -> None:
    truth = [Span(0, 1000, 0), Span(1000, 3000, -1), Span(3000, 4000, 1), Span(4000, 8000, 0)]
    found = disjoint([Span(0, 8000, 0), Span(0, 4000, 1)], lambda frame: naive(truth, frame))
    assert found == [Span(0, 1000, 0), Span(3000, 4000, 1), Span(4000, 8000, 0)]
