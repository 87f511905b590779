"""What scanning would cost with more memory than an emulated machine has: modelled, from what was counted with less.

A tree of n pages is some log2 n deep, and a page is compared with one page for each level; everything else a pass does
to a page does not depend on how many there are. So instructions for each page are a + b log2 n, which two sizes
determine and more than two put to the test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nuksm.cost.passes import Pass

#: Mergeable memory of all processes together that is asked about.
ASKED = ("1G", "8G")


@dataclass(frozen=True)
class Growth:
    """Instructions for each page by the number of pages, of one pass.

    Attributes:
        number: of the pass.
        base: instructions for each page of one page, `a` above.
        level: more of them each time the number of pages doubles, `b`.
        error: the largest part by which the line misses what was counted; None: two sizes, it misses nothing.
    """

    number: int
    base: float
    level: float
    error: float | None

    def per_page(self, pages: int) -> float:
        """Instructions for each of `pages` pages."""
        return self.base + self.level * float(np.log2(pages))


def growth(
    by_size: Mapping[int, Sequence[Pass]], cost: Callable[[Pass], float] = lambda each: each.per_page
) -> list[Growth]:
    """Return the growth of each pass that was counted with every size (pages of all processes → passes).

    `cost` is what grows, for each page. Empty for fewer than two sizes: nobody can tell then.
    """
    if len(by_size) < 2:
        return []
    pages = sorted(by_size)
    levels = np.log2(np.array(pages, dtype=float))
    found = []
    for same in zip(*(by_size[count] for count in pages), strict=False):
        counted = np.array([cost(each) for each in same])
        level, base = np.polyfit(levels, counted, 1)
        missed = float(np.max(np.abs(base + level * levels - counted) / counted))
        found.append(Growth(same[0].number, float(base), float(level), missed if len(pages) > 2 else None))
    return found
