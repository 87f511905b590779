"""Costs of second-level tables: what faults.c prints, ratios, and what is promised of them. No machine."""

from __future__ import annotations

import pytest

from numalab.errors import ExperimentError
from numalab.machine.rootfs import static_program
from vmitosis.cost import measure
from vmitosis.cost.follow import Followed
from vmitosis.cost.measure import EXITS, PAGES, read
from vmitosis.cost.table import Table

TABLES = """\
tables root 0 as 0 guest_mode 0 invalid 0 level 4 node 0 tables 1
tables root 0 as 0 guest_mode 0 invalid 0 level 1 node 0 tables 9
tables leaf 0 level 1 node 0 entries 4096
tables root 1 as 0 guest_mode 0 invalid 0 level 4 node 1 tables 1
"""


def printed(fault: int, exit_: int, second: int = 0, tables: str = "") -> str:
    lines = []
    for vcpu, faults in ((0, PAGES), (1, second)):
        lines += [
            f"phase enter vcpu {vcpu} cpu {vcpu} ticks 90000 faults 1 entries 1",
            f"phase first vcpu {vcpu} cpu {vcpu} ticks {PAGES * 4 + fault * faults} faults {faults} entries {faults}",
            f"phase again vcpu {vcpu} cpu {vcpu} ticks {PAGES * 4} faults 0 entries 0",
            f"phase exits vcpu {vcpu} cpu {vcpu} ticks {EXITS * exit_} faults 0 entries 0",
        ]
    return "\n".join(lines) + "\n" + tables


def test_what_is_printed() -> None:
    found = read(printed(2000, 900, PAGES, TABLES), "k", "replicate")
    assert (found.per_fault(0), found.per_fault(1)) == (2000, 2000)
    assert (found.per_page(0), found.per_page(1), found.per_exit(1)) == (1, 1, 900)
    assert found.tables
    assert found.tables.bytes_of(0) == 10 * 4096
    alone = read(printed(2000, 900), "k", "off")
    assert (alone.per_fault(1), alone.per_page(1), alone.tables) == (None, 0, None)


def test_what_is_missing_is_said() -> None:
    text = printed(1, 1).replace("phase exits vcpu 1", "phase exits vcpu 9")
    with pytest.raises(ExperimentError, match=r"\[\('exits', 1\)\]"):
        read(text, "k", "off")


@pytest.mark.parametrize(
    ("fault", "exit_", "words"),
    [(2000, 900, []), (2030, 900, ["fault: 1.0150 > 1.01"]), (2000, 1000, ["exit: 1.1111 > 1.01"])],
)
def test_off_costs_nothing(fault: int, exit_: int, words: list[str]) -> None:
    base, off = read(printed(2000, 900), "none", "kernel"), read(printed(fault, exit_), "mine", "off")
    assert not Table([base, off], differences=["the compiler"]).exceeded
    # What replication costs is told, and has no bound.
    copied = read(printed(4000, 2000, PAGES, TABLES), "mine", "replicate")
    table = Table([base, off, copied])
    assert [each.partition("instructions of a ")[2] for each in table.exceeded] == words
    text = table.to_markdown()
    assert "| mine | replicate | 1.000 | 1.000 | 4,000 | 4,000 | 2.0000 | 2,000 | 2.2222 | node 0: 40,960, " in text
    assert "| none | – | 1.000 | 0.000 | 2,000 | – | – |" in text
    assert table.to_json()["runs"][2]["table_bytes"] == {"node 0": 40960, "node 1": 4096}


def test_tables_that_follow_late() -> None:
    late = Followed(interval=1.0, old_gone=3.5, refilled=6.0, entries=1000, tables=9)
    assert Table(followed=late).exceeded == ["old tables gone after 3.5 s, not 3.0"]
    assert not Table(followed=Followed(1.0, 2.5, 60.0, 1000, 9)).exceeded
    assert "after 3.5 s (promised: 3 s)" in " ".join(Table(followed=late).to_markdown().split())


def test_the_program_compiles() -> None:
    assert static_program("faults", [measure._SOURCE], "faults.c").stat().st_size
