"""What a tree per node costs, counted by a small virtual machine in a machine that counts instructions."""

from __future__ import annotations

import pytest

from numalab.errors import ExperimentError
from numalab.kernel.image import KernelImage
from vmitosis.cost.measure import NODES, PAGES, count, machine_for

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]


@pytest.mark.patch_set("vmitosis")
def test_faults_tables_and_instructions(patched: KernelImage) -> None:
    with machine_for(patched) as machine:
        off, local, copied = (count(machine, mode) for mode in ("off", "local", "replicate"))
    # One tree: who comes second finds all of it there.
    for run in (off, local):
        assert run.phases["first", 0].faults == run.phases["first", 0].entries == PAGES
        assert run.phases["first", 1].faults == 0
        assert run.tables
        assert run.tables.roots == (None,)
    # One for each node: a fault for each page and node, and tables on that node.
    assert [copied.phases["first", node].faults for node in range(NODES)] == [PAGES] * NODES
    assert [copied.phases["again", node].faults for node in range(NODES)] == [0] * NODES
    assert copied.tables
    assert off.tables
    assert copied.tables.roots == (0, 1)
    assert copied.tables.misplaced() == 0
    assert {copied.tables.bytes_of(node) for node in range(NODES)} == {off.tables.bytes_of(None)}
    one, two, without = copied.per_fault(0), copied.per_fault(1), off.per_fault(0)
    assert one
    assert two
    assert without
    # A fault into the second tree is as dear as into the first, and hardly dearer than without replicas.
    assert two == pytest.approx(one, rel=0.05)
    assert one < 1.1 * without
    assert copied.per_exit(0) < 1.1 * off.per_exit(0)


def test_a_kernel_without_modes_says_so(stock: KernelImage) -> None:
    with machine_for(stock) as machine:
        found = count(machine, "kernel")
        assert found.phases["first", 0].faults == PAGES
        assert found.tables is None
        with pytest.raises(ExperimentError, match="KVM_ENABLE_CAP"):
            count(machine, "replicate")
