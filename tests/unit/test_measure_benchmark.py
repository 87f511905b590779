"""The benchmark measures a walk that is right."""

from __future__ import annotations

import numpy as np
import pytest

from numalab.measure.benchmark import SyntheticTree, parse_rate


@pytest.mark.parametrize("filled", [1.0, 0.5, 0.0])
def test_synthetic_tree(filled: float) -> None:
    tree = SyntheticTree(700, filled=filled)
    found = tree.walk()
    assert [int((found.level == level).sum()) for level in (1, 2, 3, 4)] == [700, 2, 1, 1]
    by_node = found.leaves.sum(axis=0)
    assert by_node[:4].sum() + by_node[4] == pytest.approx(700 * 512 * filled, rel=0.01)
    assert np.allclose(by_node[:4], 700 * 128 * filled, rtol=0.05)
    assert tree.entries == 704 * 512 - 256


def test_parse_rate_keeps_its_promise() -> None:
    assert parse_rate(SyntheticTree(2048)) >= 50e6
