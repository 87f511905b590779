"""The kernel's own account of a process's page tables: parsed, and compared with a walk."""

from __future__ import annotations

from dataclasses import replace

import pytest

from numalab.errors import ExperimentError
from numalab.measure import numa_pgtables, selfcheck
from numalab.measure.snapshot import Root
from tests.unit.guest_memory import GuestMemory
from tests.unit.snapshots import placement, tree, unreplicated

#: The example of Documentation/filesystems/proc.rst.
DOCUMENTED = """\
tables pgd N0=1
tables p4d N0=1
tables pud N0=2
tables pmd N0=3
tables pte N0=21 N2=512
tables deposited N1=16
leaves 4096 N0: N0=417 N1=2 zero=5 other=4
leaves 4096 N2: N0=65536 N1=65536 N2=65536 N3=65536
leaves 2097152 N0: N1=16
"""
#: What a kernel would say of `unreplicated()`.
OF_SAMPLE = """\
tables pgd N0=1
tables pud N0=1
tables pmd N1=1
tables pte N1=1
tables deposited N1=1
leaves 4096 N1: N0=4 N1=2 zero=1 other=1
leaves 2097152 N1: N1=1
"""


def test_documented_example() -> None:
    found = numa_pgtables.parse(DOCUMENTED)
    assert found.tables["pte"] == {0: 21, 2: 512}
    assert found.tables["deposited"] == {1: 16}
    assert found.leaves[4096, 0] == {0: 417, 1: 2, "zero": 5, "other": 4}
    assert found.leaves[2 << 20, 0] == {1: 16}
    assert len(found.leaves) == 3


@pytest.mark.parametrize(
    "line",
    [
        "tables",
        "tables pxd N0=1",
        "tables pte 0=1",
        "tables pte N0=x",
        "tables pte zero=1",
        "leaves 4096 N0 N0=1",
        "leaves 4097 N0: N0=1",
        "leaves 4096 N0: none=1",
        "something else",
        "",
    ],
)
def test_other_lines_are_refused(line: str) -> None:
    with pytest.raises(ExperimentError, match="numa_pgtables"):
        numa_pgtables.parse(f"tables pgd N0=1\n{line}\n")


def test_a_level_twice_is_refused() -> None:
    with pytest.raises(ExperimentError):
        numa_pgtables.parse("tables pte N0=1\ntables pte N1=1\n")


def test_a_walk_that_agrees() -> None:
    kernel = numa_pgtables.parse(OF_SAMPLE)
    assert numa_pgtables.of(unreplicated()) == kernel
    assert selfcheck.against_numa_pgtables(unreplicated(), kernel) == []


@pytest.mark.parametrize(
    ("there", "instead", "what"),
    [
        ("pud N0=1", "pud N1=1", "pud"),
        ("tables deposited N1=1", "tables deposited", "deposited"),
        ("N0=4 N1=2", "N0=3 N1=3", "4096"),
        ("zero=1 other=1", "other=2", "4096"),
        ("leaves 2097152 N1: N1=1", "leaves 1073741824 N1: N1=1", "2097152"),
    ],
)
def test_every_disagreement_is_named(there: str, instead: str, what: str) -> None:
    assert there in OF_SAMPLE
    kernel = numa_pgtables.parse(OF_SAMPLE.replace(there, instead))
    found = selfcheck.against_numa_pgtables(unreplicated(), kernel)
    assert any(what in str(each) for each in found)


def test_the_primary_is_compared_and_shared_tables_count_per_entry() -> None:
    memory = GuestMemory(4)
    top = tree(memory, [0x10, 0x11, 0x1010, 0x1011])
    memory.link(0x11, 77, 0x1010)
    copy = tree(memory, [0x1110, 0x1111, 0x1112, 0x1113])
    process = replace(placement(memory, [Root((0,), top), Root((1,), copy)]), pid=1)
    found = numa_pgtables.of(process)
    assert found.tables["pgd"] == {0: 1}
    assert found.tables["pmd"] == {1: 2}
    assert found.leaves[2 << 20, 1] == {1: 2}
