"""What the patch set promises, held against runs: each promise can be broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nuksm import figures
from nuksm.metrics import Savings
from nuksm.promises import judge
from nuksm.runs import Move, Run, run_of
from numalab.cli.main import execute
from tests.unit.test_nuksm_kernel import instance, result, write

STOCK = Run("KSM", "reads", "patched", 0, (0, 1), (1.0, 0.0), (None, None), (1, 1), Savings(1000, 1000), None, "ksm")
FAIR = replace(STOCK, policy="nuKSM", own_name="fair", shares=(0.52, 0.48))
PRIORITY = replace(FAIR, own_name="priority", weights=(10, 1), shares=(0.9, 0.1))
COPIES = replace(FAIR, own_name="copies", savings=Savings(1100, 900, 100), percent=10)


def test_all_is_kept() -> None:
    found = judge([STOCK, FAIR, PRIORITY, COPIES])
    # A share and savings each, and what copies give up.
    assert (found.kept, found.broken, found.unknown) == (5, [], [])


@pytest.mark.parametrize(
    ("run", "line"),
    [
        (replace(FAIR, shares=(0.53, 0.47)), "local shares 0.530 and 0.470 differ by 6.0 points"),
        (replace(PRIORITY, shares=(0.4, 0.6)), "are not in the order of the weights 10:1"),
        (replace(PRIORITY, shares=(0.5, 0.5)), "are not in the order of the weights 10:1"),
        (replace(PRIORITY, weights=(2, 2)), "differ by 80.0 points"),
        (replace(FAIR, savings=Savings(990, 989)), "saves 989 pages, stock KSM 1,000"),
        (replace(COPIES, savings=Savings(1101, 899, 101)), "copies give up 10.1 % of the savings, not 10 %"),
    ],
)
def test_what_is_not(run: Run, line: str) -> None:
    [said] = judge([STOCK, run]).broken
    assert line in said
    assert said.startswith("nuKSM, reads, repeat 0: ")


def test_stock_ksm_promises_nothing_and_says_what_is_saved() -> None:
    assert judge([STOCK]).kept == 0
    others = [replace(STOCK, savings=Savings(10, saved)) for saved in (10, 995, 1000)]
    assert judge([*others, FAIR]).broken == [], "the median"
    for alone in ([FAIR], [replace(STOCK, workload="btree"), FAIR], [STOCK, replace(FAIR, savings=None)]):
        found = judge(alone)
        assert found.broken == []
        assert "whether it saves what stock KSM does" in found.unknown[0]
    assert "what its copies give up" in judge([replace(COPIES, savings=None)]).unknown[0]


def test_the_policy_behind_its_label(tmp_path: Any) -> None:
    def run(**knobs: str) -> Run:
        files = [[f"/sys/kernel/mm/ksm/{name}", value] for name, value in knobs.items()]
        policy = {"label": "25 %", "name": "copies", "knobs": files}
        both = [instance(number, begun=number, local_share=0.5) for number in (0, 1)]
        found = run_of(result(*both, policy="25 %", params={"policy": policy}), tmp_path)
        assert found is not None
        return found

    found = run(numa_max_copies="2", numa_copies_percent="25")
    assert (found.policy, found.own_name, found.percent) == ("25 %", "copies", 25)
    assert run(numa_max_copies="1", numa_copies_percent="10").percent is None
    assert run().percent is None


def moving(seconds: float | None, passes: int | None, **knobs: str) -> dict[str, Any]:
    files = [[f"/sys/kernel/mm/ksm/{name}", value] for name, value in knobs.items()]
    mover = instance(0, begun=0, local_share=1.0, follow_seconds=seconds, follow_passes=passes, same_pages=500)
    mover["argv"] = ["samepage", "--move-to", "4", "--move-after", "60"]
    policy = {"name": "fair" if knobs else "ksm", "knobs": files}
    return result(mover, instance(1, begun=1, local_share=0.0), params={"policy": policy})


FOLLOWING = {"numa_policy": "fair", "numa_sample_millisecs": "100", "numa_migrate_rate": "1000"}


def test_pages_follow_in_time(tmp_path: Any) -> None:
    # 8 looks of 0.1 s, half a second for 500 pages, and the slack.
    run = run_of(moving(1.5, 30, **FOLLOWING), tmp_path)
    assert run is not None
    [move] = run.moves
    assert move.bound == pytest.approx(0.8 + 0.5 + 1.0)
    assert move == Move(0, 1.5, 30, move.bound)
    assert judge([run]).kept == 1, "shares of processes one of which sleeps are nobody's promise"
    assert run.to_json()["moves"][0]["passes"] == 30
    late = run_of(moving(5.0, 100, **FOLLOWING), tmp_path)
    never = run_of(moving(None, None, **FOLLOWING), tmp_path)
    assert late is not None
    assert never is not None
    assert "took 5.00 s and 100 passes, not 2.30 s" in judge([late]).broken[0]
    assert "have not followed" in judge([never]).broken[0]


def test_slow_passes_are_slow_looks(tmp_path: Any) -> None:
    run = run_of(moving(2.4, 4, **FOLLOWING), tmp_path)
    assert run is not None
    assert run.moves[0].bound == pytest.approx(8 * 0.6 + 0.5 + 1.0)
    assert run.moves[0].kept
    late = run_of(moving(80.0, 8, **FOLLOWING), tmp_path)
    assert late is not None
    assert "took 80.00 s and 8 passes, not 9.50 s" in judge([late]).broken[0]


def test_stock_ksm_promises_no_following(tmp_path: Any) -> None:
    run = run_of(moving(None, None), tmp_path)
    assert run is not None
    assert run.moves == (Move(0, None, None, None),)
    assert judge([run]).broken == []


RATIOS = {(1, 10): 0.09, (1, 5): 0.17, (1, 1): 0.5, (5, 1): 0.83, (10, 1): 0.91}


def test_shares_rise_from_one_ratio_to_the_next() -> None:
    def five(**others: float) -> list[Run]:
        named = {
            f"{first}:{second}": (weights, share) for weights, share in RATIOS.items() for first, second in [weights]
        }
        each = {
            name: (weights, others.get(f"at_{weights[0]}_{weights[1]}", share))
            for name, (weights, share) in named.items()
        }
        return [
            replace(PRIORITY, workload=name, program="samepage", weights=weights, shares=(share, 1 - share))
            for name, (weights, share) in each.items()
        ]

    assert judge(five()).broken == []
    [said] = judge(five(at_5_1=0.95)).broken
    assert said == "nuKSM: local shares of the first process do not rise with its weight: 1:10, 1:5, 1:1, 5:1, 10:1"
    # Those of another program are another row.
    mixed = [replace(run, program=run.workload) for run in five(at_5_1=0.95)]
    assert judge(mixed).broken == []


def test_runs_of_one_program_are_told_by_its_parameters(tmp_path: Any) -> None:
    both = [instance(number, begun=number, local_share=0.5) for number in (0, 1)]
    workload = {"program": "samepage", "params": {"size": "2M"}}
    found = run_of(result(*both, params={"workload": workload}), tmp_path)
    assert found is not None
    assert found.program == '["samepage", {"size": "2M"}]'


CGROUPS = {"numa_policy": "fair", "numa_cgroup_weight": "1"}


@pytest.mark.parametrize(
    ("knobs", "weights"),
    [
        (CGROUPS, (10, 1)),
        ({**CGROUPS, "numa_policy": "priority"}, (20, 1)),  # nice values count, too
        ({**CGROUPS, "numa_policy": "strict"}, (2, 1)),  # the higher priority alone decides
        ({**CGROUPS, "numa_cgroup_weight": "0"}, (2, 1)),
        ({}, (2, 1)),
    ],
)
def test_weights_of_cgroups(tmp_path: Path, knobs: dict[str, str], weights: tuple[int, int]) -> None:
    files = [[f"/sys/kernel/mm/ksm/{name}", value] for name, value in knobs.items()]
    both = [instance(number, begun=number, nice=number, local_share=0.5) for number in (0, 1)]
    # The second has no cgroup of its own, and so the weight that all begin with.
    both[0]["weight"], both[1]["weight"] = 1000, None
    found = run_of(result(*both, params={"policy": {"name": "fair", "knobs": files}}), tmp_path)
    assert found is not None
    assert found.weights == weights
    assert found.cgroups is (knobs.get("numa_cgroup_weight") == "1")


def test_equals_are_equal_by_their_cgroups() -> None:
    unequal = replace(FAIR, weights=(10, 1), cgroups=True)
    assert "are not in the order of the weights 10:1" in judge([STOCK, unequal]).broken[0]
    assert judge([STOCK, replace(unequal, shares=(0.91, 0.09))]).broken == []
    assert judge([STOCK, replace(unequal, cgroups=False)]).broken == [], "priorities mean nothing under fair"


def status(directory: Path) -> int:
    with pytest.raises(SystemExit) as ended:
        execute(figures.command, [str(directory), "--check"], name="figures")
    return int(ended.value.code or 0)


def test_what_nobody_can_tell_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A share that is kept, and savings that nothing can be compared with."""

    def cell(number: int, share: float, name: str) -> None:
        saved = {"ksm_pages_shared": 10, "ksm_pages_sharing": 10}
        both = [instance(each, begun=each, local_share=value, **saved) for each, value in ((0, share), (1, 1 - share))]
        params = {"policy": {"name": name, "knobs": []}}
        write(tmp_path, f"{number:016x}", result(*both, policy=name), params=params)

    cell(0, 0.5, "fair")
    assert status(tmp_path) == 3
    assert "1 promises kept, 0 not kept, 1 not known" in capsys.readouterr().err
    cell(1, 1.0, "ksm")
    assert status(tmp_path) == 0
    cell(2, 0.9, "strict")
    assert status(tmp_path) == 1
