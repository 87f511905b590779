"""From guest leaf entries to translations through both levels, by the nodes of the two leaf tables. Pure numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from numalab.measure.nodes import NodeMap
from numalab.measure.radix import Ends

Frames = NDArray[np.int64]


def pairs(
    own: NDArray[np.uint16],
    frame: Frames,
    level: NDArray[np.int64],
    ends_of: Callable[[Frames], Ends] | None,
    nodes: NodeMap,
    check: Callable[[Frames, Frames], None] = lambda *_: None,
) -> NDArray[np.int64]:
    """Count translations [node of the guest's table, node of the second level's]; the last column has the unfilled.

    Args:
        own: column (in `nodes`) of the host node of the guest's table page, for each guest leaf entry.
        frame: first guest frame it maps.
        level: 1 (4K), 2 (2M) or 3 (1G).
        ends_of: walks the second level for guest frames; None when there is none: everything is unfilled.
        nodes: of the host.
        check: is given guest frames and the host frames that the second level has for them.
    """
    count = len(nodes.nodes)
    found = np.zeros((count, count + 1), np.int64)
    if ends_of is None:
        np.add.at(found, (own, np.full(len(own), count)), 1)
        return found
    while len(frame):
        ends = ends_of(frame)
        # A guest page larger than the piece the second level speaks of there: look at the pieces.
        larger = ends.level < level
        whole = ~larger
        mapped = whole & ends.present
        check(frame[mapped], ends.frame[mapped])
        second = np.where(ends.present[whole], nodes.column(ends.table[whole]), count)
        np.add.at(found, (own[whole], second), 1)
        own, level, frame = _pieces(own[larger], level[larger], frame[larger])
    return found


def _pieces(
    own: NDArray[np.uint16], level: NDArray[np.int64], frame: Frames
) -> tuple[NDArray[np.uint16], NDArray[np.int64], Frames]:
    """Each page as 512 of the next smaller size."""
    step = np.repeat(np.int64(1) << 9 * (level - 2), 512)
    place = np.tile(np.arange(512, dtype=np.int64), len(frame))
    return np.repeat(own, 512), np.repeat(level - 1, 512), np.repeat(frame, 512) + place * step
