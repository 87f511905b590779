"""What the patch set nuksm promises of fairness, priority and savings, held against runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from nuksm import metrics
from nuksm.metrics import Savings
from nuksm.runs import Run

#: Policies by their own names: what stock KSM does; those that place pages, and have no copies; all without copies.
STOCK = "ksm"
PLACED = ("fair", "priority", "strict")
SAVES_AS_STOCK = (*PLACED, "force-node", "scan-threads")


@dataclass
class Judged:
    """How many promises are kept, which are not, and of which nobody can tell: a line each."""

    kept: int = 0
    broken: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def say(self, ok: bool, line: str) -> None:
        """Count a promise that is kept, or note one that is not."""
        if ok:
            self.kept += 1
        else:
            self.broken.append(line)


def judge(runs: Sequence[Run]) -> Judged:
    """Hold each run against what its policy promises; what stock KSM saves is told by runs of the same workload."""
    found = Judged()
    for run in runs:
        what = f"{run.policy}, {run.workload}, repeat {run.repeat}"
        if run.own_name in PLACED and not run.moves:
            _shares(run, what, found)
        if run.own_name in PLACED:
            _moves(run, what, found)
        if run.own_name in SAVES_AS_STOCK:
            _savings(run, _stock(runs, run), what, found)
        if run.percent is not None:
            _copies(run, what, found)
    _ratios(runs, found)
    return found


def _ratios(runs: Sequence[Run], found: Judged) -> None:
    """Where weights count shares rise with them, from 1:10 to 10:1, over all runs of one program and its parameters."""
    alike: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        weighted = run.own_name == "priority" or (run.own_name == "fair" and run.cgroups)
        if weighted and not run.moves and len(run.shares) == 2:
            alike.setdefault((run.policy, run.kernel, run.program or run.workload), []).append(run)
    for (policy, _, _), group in alike.items():
        pairs = {run.weights[0] / run.weights[1]: run for run in group}
        if len(pairs) < 2:
            continue
        ok = metrics.monotone([(run.weights[0] / run.weights[1], run.shares[0]) for run in group])
        each = ", ".join(pairs[ratio].workload for ratio in sorted(pairs))
        found.say(ok, f"{policy}: local shares of the first process do not rise with its weight: {each}")


def _shares(run: Run, what: str, found: Judged) -> None:
    """Equals differ by some points at most; others have shares in the order of their weights."""
    shares = " and ".join(f"{share:.3f}" for share in run.shares)
    if len(set(run.weights)) == 1 or (run.own_name == "fair" and not run.cgroups):
        ok = run.spread <= metrics.FAIR_POINTS
        found.say(ok, f"{what}: local shares {shares} differ by {run.spread:.1f} points")
    else:
        weights = ":".join(str(weight) for weight in run.weights)
        ok = metrics.ordered_by_weight(run.shares, run.weights)
        found.say(ok, f"{what}: local shares {shares} are not in the order of the weights {weights}")


def _moves(run: Run, what: str, found: Judged) -> None:
    """Pages come after a process that goes to another node."""
    for move in run.moves:
        if move.seconds is None:
            found.say(False, f"{what}: the pages of instance {move.instance} have not followed it")
        else:
            bound = f"{move.bound:.2f}" if move.bound is not None else "-"
            found.say(
                move.kept,
                f"{what}: the pages of instance {move.instance} took {move.seconds:.2f} s and {move.passes} passes, "
                f"not {bound} s",
            )


def _stock(runs: Sequence[Run], run: Run) -> Savings | None:
    """What stock KSM saves of the same workload on the same kernel, the median of its runs."""
    same = [one for one in runs if (one.own_name, one.kernel, one.workload) == (STOCK, run.kernel, run.workload)]
    saved = [one.savings.sharing for one in same if one.savings]
    return Savings(0, round(statistics.median(saved))) if saved else None


def _savings(run: Run, stock: Savings | None, what: str, found: Judged) -> None:
    if stock is None or run.savings is None:
        found.unknown.append(f"{what}: whether it saves what stock KSM does: not counted")
        return
    ok = run.savings.same_as(stock)
    found.say(ok, f"{what}: saves {run.savings.sharing:,} pages, stock KSM {stock.sharing:,}")


def _copies(run: Run, what: str, found: Judged) -> None:
    if run.savings is None:
        found.unknown.append(f"{what}: what its copies give up: not counted")
        return
    given_up = 100 * run.savings.given_up
    found.say(
        given_up <= (run.percent or 0), f"{what}: copies give up {given_up:.1f} % of the savings, not {run.percent} %"
    )
