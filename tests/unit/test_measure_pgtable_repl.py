"""The kernel's own account of replicas: parsed, and compared with what its memory says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from numalab.errors import ExperimentError
from numalab.measure import pgtable_repl
from numalab.measure.process import Replication
from numalab.measure.replica_check import check
from tests.unit.replica_memory import PASSTHROUGH, PASSTHROUGH_REMOTE, PMD, PUD, TOP, sample

#: The example of the contract, with two lines that a later kernel might add.
DOCUMENTED = """\
mode lazy
nodes 0-3
flags fork exec
follow off
weather fine and dry
table pgd 0 1 1
table pte 0 512 0
link local 12
link remote 0
count fill 1234
count migrated 0
owner 17
"""
#: What a kernel would say of `sample()`.
OF_SAMPLE = """\
mode lazy
nodes 0-3
flags
follow off
table pgd 0 1 1
table pud 0 1 1
table pmd 0 1 1
table pte 0 1 1
table pgd 1 0 1
table pud 1 0 1
table pmd 1 0 1
table pte 1 1 1
table pgd 2 0 1
table pud 2 0 1
table pmd 2 0 1
table pte 2 0 2
table pgd 3 0 1
table pud 3 0 1
table pmd 3 0 1
table pte 3 0 2
link local 2
link remote 0
count fill 0
"""


def test_documented_example() -> None:
    found = pgtable_repl.parse(DOCUMENTED)
    assert (found.mode, found.nodes, found.flags, found.follow) == ("lazy", (0, 1, 2, 3), ("fork", "exec"), False)
    assert found.tables == {("pgd", 0): (1, 1), ("pte", 0): (512, 0)}
    assert found.links == {"local": 12, "remote": 0}
    assert found.counts == {"fill": 1234, "migrated": 0}


def test_a_process_that_never_replicated() -> None:
    found = pgtable_repl.parse("mode off\nnodes\nflags\nfollow off\ntable pgd 1 1 0\n")
    assert (found.mode, found.nodes, found.flags, found.tables) == ("off", (), (), {("pgd", 1): (1, 0)})
    assert pgtable_repl.parse("mode eager\nnodes 0-1,5\nfollow on\n").nodes == (0, 1, 5)
    assert pgtable_repl.parse("mode eager\nfollow on\n").follow


@pytest.mark.parametrize(
    "line",
    [
        "table pte 0 1",
        "table pxd 0 1 1",
        "table pte N0 1 1",
        "link local",
        "link local x",
        "count fill 1 2",
        "count fill",
    ],
)
def test_known_lines_of_another_form_are_named(line: str) -> None:
    with pytest.raises(ExperimentError, match=line):
        pgtable_repl.parse(f"mode lazy\n{line}\n")


@pytest.mark.parametrize("text", ["", "nodes 0-3\n", "mode\n", "mode lazy eager\n", "mode lazy\nnodes a-b\n"])
def test_what_is_no_such_file(text: str) -> None:
    with pytest.raises(ExperimentError, match="pgtable_repl"):
        pgtable_repl.parse(text)


def test_counts_that_agree() -> None:
    space = sample().space(TOP)
    assert pgtable_repl.against(check(space), space, pgtable_repl.parse(OF_SAMPLE), 7) == []


def test_a_pass_through_to_a_pmd_table_is_remote() -> None:
    memory = sample()
    memory.set(memory.copies[PUD, 0], 3, PMD << 12 | 0x67 | PASSTHROUGH | PASSTHROUGH_REMOTE)
    space = memory.space(TOP)
    report = check(space)
    said = OF_SAMPLE.replace("link remote 0", "link remote 1")
    assert pgtable_repl.against(report, space, pgtable_repl.parse(said), 7) == []
    (found,) = pgtable_repl.against(report, space, pgtable_repl.parse(OF_SAMPLE), 7)
    assert "pass-through entries, remote: walked 1, the kernel says 0" in str(found)


def test_a_process_without_replicas_agrees() -> None:
    memory = sample()
    memory.next.clear()
    memory.roots.clear()
    space = memory.space(TOP, replication=None, domains=0)
    lines = [line for line in OF_SAMPLE.splitlines() if line.startswith("table") and line.split()[3] != "0"]
    text = "\n".join(["mode off", "nodes", *(f"{line[:-2]} 0" for line in lines)])
    assert pgtable_repl.against(check(space), space, pgtable_repl.parse(text), 7) == []


@pytest.mark.parametrize(
    ("there", "instead", "what"),
    [
        ("mode lazy", "mode eager", "process 7: mode: walked lazy, the kernel says eager"),
        ("nodes 0-3", "nodes 0-2", "nodes"),
        ("table pte 2 0 2", "table pte 2 0 1", "(pte, node 2): walked (0, 2), the kernel says (0, 1)"),
        ("table pmd 0 1 1\n", "", "(pmd, node 0): walked (1, 1), the kernel says (0, 0)"),
        ("table pmd 0 1 1\n", "table pmd 0 1 1\ntable p4d 0 1 1\n", "(p4d, node 0)"),
        ("link local 2", "link local 1", "pass-through entries, local"),
        ("link remote 0", "link remote 1", "pass-through entries, remote"),
    ],
)
def test_every_disagreement_is_named(there: str, instead: str, what: str) -> None:
    assert there in OF_SAMPLE
    space = sample().space(TOP)
    kernel = pgtable_repl.parse(OF_SAMPLE.replace(there, instead))
    (found,) = pgtable_repl.against(check(space), space, kernel, 7)
    assert what in str(found)


def test_problems_are_lines() -> None:
    memory = sample()
    memory.set(memory.roots[1], 5, 0x700 << 12 | 0x67)
    space = memory.space(TOP, replication=Replication("lazy", active=True, domains=(0, 1, 2)))
    report = check(space)
    kernel = pgtable_repl.parse(OF_SAMPLE)
    checked = pgtable_repl.Checked(report, kernel, pgtable_repl.against(report, space, kernel, 7))
    assert [line.split(":")[0] for line in checked.problems] == ["table-primary", "process 7"]
    assert replace(checked, differences=[]).problems == checked.problems[:1]
