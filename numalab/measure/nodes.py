"""Which node a page frame belongs to.

The online nodes' page ranges (`struct pglist_data`) say it, except where ranges of several nodes
overlap, as on machines that interleave nodes: there each page's own `struct page` is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: The lookup table has at most this many slots; each covers a power of two of frames.
_MAX_SLOTS = 1 << 20
_RAGGED = np.uint16(0xFFFF)
#: Counters are summed in fields of this many bits (a table page has 512 entries), so many in a word.
_FIELD, _PER_WORD = 10, 6

#: Tells the node of single frames, -1 for frames without memory.
Resolver = Callable[[int], int]


class Span(NamedTuple):
    """Frames `start` to `end` (exclusive) of node `node`."""

    start: int
    end: int
    node: int


class NodeMap:
    """Maps frame numbers to columns: one per node in the order of `nodes`, then "zero", then "other".

    Frames in holes and beyond memory are "other". "zero" is for the shared zero pages, which the caller
    recognises: where they lie says nothing about placement.

    Attributes:
        nodes: node numbers, ascending; memoryless nodes are among them.
        zero: column of the zero pages, `len(nodes)`.
        other: the last column.
        columns: number of columns, `len(nodes) + 2`.
        spans: disjoint, ascending.
    """

    def __init__(self, nodes: Iterable[int], spans: Iterable[Span]) -> None:
        """Make the map.

        Raises:
            ValueError: when spans overlap (see `disjoint`) or belong to no node of `nodes`.
        """
        self.nodes = tuple(sorted(nodes))
        self.zero, self.other, self.columns = len(self.nodes), len(self.nodes) + 1, len(self.nodes) + 2
        self.spans = tuple(sorted(Span(*span) for span in spans if span[0] < span[1]))
        for before, after in pairwise(self.spans):
            if after.start < before.end:
                raise ValueError(f"{before} and {after} overlap")
        place = {node: column for column, node in enumerate(self.nodes)}
        other = self.other
        # Borders of constant runs: [0, first) other, then alternating spans and holes.
        borders, kinds = [0], [other]
        for span in self.spans:
            if span.node not in place:
                raise ValueError(f"{span} belongs to none of the nodes {self.nodes}")
            if borders[-1] == span.start:
                kinds[-1] = place[span.node]
            else:
                borders.append(span.start)
                kinds.append(place[span.node])
            borders.append(span.end)
            kinds.append(other)
        self._borders = np.array(borders, np.int64)
        self._kinds = np.array(kinds, np.uint16)
        self._shift, self._table = self._lookup_table()
        # One more column, of weight 0, for what does not count.
        self._weights = np.zeros((-(-self.columns // _PER_WORD), self.columns + 1), np.uint64)
        for each in range(self.columns):
            self._weights[each // _PER_WORD, each] = 1 << _FIELD * (each % _PER_WORD)

    def _lookup_table(self) -> tuple[int, NDArray[np.uint16]]:
        """(log2 of frames per slot, slots); a slot with a border inside is ragged, the last is other."""
        shift = 9
        end = int(self._borders[-1])
        while end >> shift >= _MAX_SLOTS:
            shift += 1
        starts = np.arange((end >> shift) + 2, dtype=np.int64) << shift
        table = self._exact(starts)
        table[self._borders[self._borders & ((1 << shift) - 1) != 0] >> shift] = _RAGGED
        return shift, table

    def _exact(self, frames: NDArray[np.int64]) -> NDArray[np.uint16]:
        return self._kinds[np.searchsorted(self._borders, frames, side="right") - 1]

    def column(self, frames: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Column of each frame number (not negative), uint16."""
        found = self._table.take(frames >> self._shift, mode="clip")
        ragged = found == _RAGGED
        if ragged.any():
            found[ragged] = self._exact(frames[ragged])
        return found

    def count(
        self, frames: NDArray[np.int64], counted: NDArray[np.bool_] | None = None, zero_frame: int = -1
    ) -> NDArray[np.int32]:
        """Count each row of `frames` by column: int32 [rows, columns].

        Args:
            frames: [rows, width], width at most 512.
            counted: which of them count, all when None.
            zero_frame: frames of this number count as "zero".
        """
        column = self.column(frames)
        if zero_frame >= 0:
            column[frames == zero_frame] = self.zero
        if counted is not None:  # without a branch per frame, which costs ten times as much
            np.maximum(column, (~counted).view(np.uint8) * np.uint16(self.columns), out=column)
        # Several counters of 10 bits side by side in one word are summed at once.
        words = [weights.take(column).sum(axis=1) for weights in self._weights]
        fields = [
            words[each // _PER_WORD] >> np.uint64(_FIELD * (each % _PER_WORD)) & np.uint64((1 << _FIELD) - 1)
            for each in range(self.columns)
        ]
        return np.stack(fields, axis=1).astype(np.int32)

    def node(self, frame: int) -> int | None:
        """Node number of one frame; None for "other"."""
        column = int(self.column(np.array([frame], np.int64))[0])
        return self.nodes[column] if column < len(self.nodes) else None


def disjoint(spans: Sequence[Span], resolve: Resolver, *, step: int = 512) -> list[Span]:
    """Cut overlapping spans into disjoint ones, asking `resolve` where more than one node claims a frame.

    Frames are asked at every `step`; where the answer changes in between, the border is searched. A
    node's memory that is shorter than `step` and lies between two of the same other node is missed.
    """
    edges = sorted({edge for span in spans for edge in (span.start, span.end)})
    pieces: list[Span] = []
    for start, end in pairwise(edges):
        claims = {span.node for span in spans if span.start <= start < span.end}
        if len(claims) == 1:
            pieces.append(Span(start, end, claims.pop()))
        elif claims:
            pieces.extend(_resolved(start, end, resolve, step))
    joined: list[Span] = []
    for piece in pieces:
        if joined and joined[-1].end == piece.start and joined[-1].node == piece.node:
            joined[-1] = joined[-1]._replace(end=piece.end)
        else:
            joined.append(piece)
    return joined


def _resolved(start: int, end: int, resolve: Resolver, step: int) -> Iterable[Span]:
    """Disjoint spans of [start, end) as `resolve` tells them; frames of node -1 are left out."""
    at, node = start, resolve(start)
    # The grid, not start + n * step: borders between nodes lie on round addresses.
    for probe in [*range((start // step + 1) * step, end, step), end]:
        while True:
            last = probe - 1
            if resolve(last) == node:
                break
            low, high = at, last  # node of low is `node`, of high is not
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if resolve(middle) == node else (low, middle)
            if node >= 0:
                yield Span(at, high, node)
            at, node = high, resolve(high)
        if probe < end and resolve(probe) != node:
            if node >= 0:
                yield Span(at, probe, node)
            at, node = probe, resolve(probe)
    if node >= 0:
        yield Span(at, end, node)
