"""The kernel's own account in the form of a snapshot: the same numbers that a look from outside gives."""

from __future__ import annotations

from dataclasses import replace

from analysis.placement import placements
from numalab.kinds import Kind
from numalab.machine.topology import Node, Topology
from numalab.measure import numa_pgtables
from numalab.measure.from_kernel import Told, summary
from tests.unit.snapshots import snapshot, unreplicated

#: The shape of the sample: node 2 has CPUs and no memory.
SHAPE = Topology((Node(1, 1 << 24), Node(1, 1 << 24), Node(1, 0)), ((10, 20, 20), (20, 10, 20), (20, 20, 10)))


def test_the_same_as_a_look_from_outside() -> None:
    process = unreplicated()
    seen = snapshot(process).to_json()
    told = summary([Told(process.pid, process.comm, numa_pgtables.of(process))], SHAPE, label="ready")
    assert told["number_kind"] == "measured"
    assert (told["label"], told["levels"], told["nodes"]) == ("ready", seen["levels"], seen["nodes"])
    assert told["cpu_nodes"] == [0, 1, 2]
    assert told["table_pages"] == seen["table_pages"]
    [mine], [theirs] = told["processes"], seen["processes"]
    keys = ("pid", "comm", "levels", "table_pages", "leaf", "leaf_zero", "leaf_other", "deposited")
    for key in (*keys, "local_share", "remote_share"):
        assert mine[key] == theirs[key], key


def test_what_analysis_reads_of_it() -> None:
    process = unreplicated()
    told = [Told(pid, "gups", numa_pgtables.of(process)) for pid in (1, 2)]
    entry = {"mark": "ready", "file": None, "summary": summary(told, SHAPE, label="ready")}
    [placed] = placements({"cell": {}, "placement": [entry]}, None)
    assert placed.kind is Kind.MEASURED
    assert placed.processes == ("gups (1)", "gups (2)")
    assert (placed.pages == 2 * process.table_pages).all()
    assert placed.trees == 1


def test_five_levels() -> None:
    account = numa_pgtables.parse(
        "tables pgd N0=1\ntables p4d N1=1\ntables pud N0=2\ntables pmd N0=3\ntables pte N1=4\n"
    )
    told = summary([Told(1, "gups", account)], replace(SHAPE, paging_levels=5), label="")
    assert told["table_pages"] == [[0, 4, 0], [3, 0, 0], [2, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert told["processes"][0]["remote_share"] == {"0": None, "1": None, "2": None}, "nothing is mapped"
