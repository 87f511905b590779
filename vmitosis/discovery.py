"""NO-F: which vCPUs share a node, told from latencies between them alone.

A guest that does not see nodes measures how long a cache line takes between each pair of its vCPUs
(tools/mm/pgrepl-probe). Within a node that is quick, between nodes slow; how quick and how slow is not known, may
differ between any two nodes, and samples are disturbed. `discover` finds the groups:

1. Latencies are taken as logarithms, the lower of both directions: disturbance only ever adds.
2. Hyper-threads of a core form a level of their own below the local one. vCPUs that have one partner each, far nearer
   than everybody else, become one unit.
3. Units are clustered (average linkage, then each unit goes where its median latency is lowest), for every number of
   groups. A partition counts when *every* two groups are further apart (median latency between them) than each of them
   is wide inside, by more than disturbance can explain (`Evidence.margin`) and by a share (`LEAST`) that structure
   within a node, such as the place on a mesh, does not reach.
4. It must be further apart than the best partition of a flat matrix of that size looks (`vmitosis.chance`): few vCPUs
   have few pairs, among which chance makes groups.
5. Of those that count the finest is taken, except one whose gap is small beside that of a coarser one.

No latency is compared with a constant number of nanoseconds. A matrix in which no partition counts is one group.

    python -m vmitosis.discovery matrix.csv
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from numalab.errors import UserError
from numalab.run.policy import number_list
from vmitosis.chance import critical, strength
from vmitosis.partitions import Evidence, Labels, Matrix, candidates

__all__ = ["Evidence", "Grouping", "discover", "strongest"]

#: A finer partition must have at least this share of the gap of a coarser one, or it is structure within nodes.
_SHARE = 0.3
#: Hyper-threads: latency to the partner over that to the next, as logs; and in spacings of the other neighbours.
_SIBLING, _SIBLING_SPACINGS = float(np.log(1.25)), 4.0
#: Where nothing else is there to tell cores of two threads from nodes of two vCPUs: threads of a core are nearer.
_CORE_RATIO = float(np.log(2.75))
#: Nodes of two vCPUs are not believed in beyond this number of them.
_MOST_PAIR_NODES = 8


@dataclass(frozen=True)
class Grouping:
    """The groups of vCPUs that share a node, as far as latencies tell.

    Attributes:
        groups: each ascending, in the order of their lowest vCPU.
        confidence: 0 to 1; below one half the answer is a guess (`reason` says why).
        siblings: pairs of vCPUs that look like hyper-threads of one core.
        local: median latency inside groups, hyper-threads aside, in the matrix's unit; None for a lone unit.
        remote: lowest and highest median latency between two groups; None for one group.
        reason: one line for people.
    """

    groups: tuple[tuple[int, ...], ...]
    confidence: float
    siblings: tuple[tuple[int, int], ...]
    local: float | None
    remote: tuple[float, float] | None
    reason: str

    @property
    def labels(self) -> tuple[int, ...]:
        """Number of the group of each vCPU."""
        found = {vcpu: number for number, group in enumerate(self.groups) for vcpu in group}
        return tuple(found[vcpu] for vcpu in sorted(found))

    def lists(self) -> str:
        """CPU lists, one for each group, as `/sys/kernel/mm/pgtable_repl/domains` takes them: "0-3,8 4-7"."""
        return " ".join(number_list(group) for group in self.groups)

    def renumbered(self, cpus: Sequence[int]) -> Grouping:
        """The same for vCPUs with these numbers, in the order of the matrix."""
        groups = sorted(tuple(sorted(cpus[vcpu] for vcpu in group)) for group in self.groups)
        return replace(self, groups=tuple(groups), siblings=tuple((cpus[a], cpus[b]) for a, b in self.siblings))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "groups": [list(group) for group in self.groups],
            "confidence": round(self.confidence, 4),
            "siblings": [list(pair) for pair in self.siblings],
            "local": self.local,
            "remote": list(self.remote) if self.remote else None,
            "reason": self.reason,
        }


def discover(latencies: NDArray[Any] | Sequence[Sequence[float]]) -> Grouping:
    """Group vCPUs by the latencies between them.

    Args:
        latencies: square, one row and column for each vCPU, any unit, both directions or one (NaN elsewhere); the
            diagonal does not matter.

    Raises:
        UserError: no square of positive numbers, or a pair measured in neither direction.
    """
    logs = _logarithms(np.asarray(latencies, np.float64))
    if len(logs) == 1:
        return Grouping(((0,),), 1.0, (), None, None, "one vCPU")
    if len(logs) == 2:
        local = float(np.exp(logs[0, 1]))
        return Grouping(((0, 1),), 0.0, (), local, None, "two vCPUs: one latency, nothing to compare it with")
    pairs = _siblings(logs)
    unit = _units(len(logs), pairs)
    between = _between_units(logs, unit)
    tried = candidates(between)
    labels, confidence, reason = _choose(tried, logs, pairs, unit)
    return _grouping(labels[unit], logs, pairs, confidence, reason)


def strongest(latencies: NDArray[Any]) -> float:
    """Return the strength (`vmitosis.chance`) of the strongest partition with a gap, whether it counts or not."""
    logs = _logarithms(np.asarray(latencies, np.float64))
    pairs = _siblings(logs)
    unit = _units(len(logs), pairs)
    tried = candidates(_between_units(logs, unit))
    found = [strength(logs, labels[unit], pairs) for labels, evidence in tried if evidence.gap > 0]
    if pairs:  # which may be taken for nodes
        found.append(strength(logs, unit))
    return max(found, default=-np.inf)


def _logarithms(given: Matrix) -> Matrix:
    if given.ndim != 2 or given.shape[0] != given.shape[1] or not len(given):
        raise UserError(f"latencies must be a square, one row and column for each vCPU, not {given.shape}")
    both = np.fmin(given, given.T)
    off = ~np.eye(len(both), dtype=bool)
    if np.isnan(both[off]).any():
        one, other = np.argwhere(np.isnan(both) & off)[0]
        raise UserError(f"the latency between vCPU {one} and vCPU {other} is missing")
    if not (both[off] > 0).all() or np.isinf(both[off]).any():
        raise UserError("latencies must be positive numbers")
    logs = np.zeros_like(both)
    logs[off] = np.log(both[off])
    return logs


def _siblings(logs: Matrix) -> list[tuple[int, int]]:
    """Pairs that are each other's nearest by far, if most vCPUs have such a partner."""
    count = len(logs)
    if count < 4:
        return []
    away = logs + np.where(np.eye(count, dtype=bool), np.inf, 0.0)
    near = np.sort(away, axis=1)
    partner = away.argmin(axis=1)
    mutual = partner[partner] == np.arange(count)
    gap = near[:, 1] - near[:, 0]
    # How far the next two neighbours are from each other: what chance makes of a gap.
    spacing = float(np.median(near[:, 2] - near[:, 1]))
    alone = mutual & (gap > max(_SIBLING, _SIBLING_SPACINGS * spacing))
    alone &= alone[partner]
    if np.count_nonzero(alone) < 0.6 * count:
        return []
    return [(one, int(partner[one])) for one in range(count) if alone[one] and one < partner[one]]


def _units(count: int, pairs: Sequence[tuple[int, int]]) -> Labels:
    """Number of the unit of each vCPU: a core whose threads were found, or the vCPU itself."""
    first = np.arange(count)
    for one, other in pairs:
        first[other] = one
    return np.unique(first, return_inverse=True)[1].astype(np.int64)


def _between_units(logs: Matrix, unit: Labels) -> Matrix:
    """Latency between units: the median of those of their members."""
    members = np.zeros((unit.max() + 1, 2), np.int64)
    order = np.argsort(unit, kind="stable")
    starts = np.searchsorted(unit[order], np.arange(len(members)))
    ends = np.searchsorted(unit[order], np.arange(len(members)), side="right")
    members[:, 0], members[:, 1] = order[starts], order[ends - 1]
    four = [logs[np.ix_(members[:, one], members[:, other])] for one in (0, 1) for other in (0, 1)]
    between: Matrix = np.median(four, axis=0)
    np.fill_diagonal(between, 0.0)
    return between


def _choose(
    tried: Sequence[tuple[Labels, Evidence]], logs: Matrix, pairs: Sequence[tuple[int, int]], unit: Labels
) -> tuple[Labels, float, str]:
    """The partition of units that is taken, how sure that is, and why."""
    counting = [(labels, found, _beyond_chance(logs, labels[unit], pairs)) for labels, found in tried if found.counts]
    good = [each for each in counting if each[2] > 1.0]
    if not good:
        return _nothing_found(tried, logs, pairs, unit, max((each[2] for each in counting), default=0.0))
    largest = max(found.gap for _, found, _ in good)
    labels, taken, beyond = [each for each in good if each[1].gap >= _SHARE * largest][-1]
    reason = f"{taken.groups} groups, {np.exp(taken.gap):.2f} times as far from each other as inside"
    confidence = _confidence(taken, beyond, any(found.groups > taken.groups for _, found, _ in good))
    if 2 * len(pairs) == len(logs) and unit.max() < _MOST_PAIR_NODES:
        confidence *= 0.7
        reason += "; its pairs of vCPUs, taken for cores, might be nodes"
    return labels, confidence, reason


def _beyond_chance(logs: Matrix, labels: Labels, siblings: Sequence[tuple[int, int]] = ()) -> float:
    """Strength of a partition of vCPUs in what chance reaches; above 1 it is believed."""
    return strength(logs, labels, siblings) / critical(len(logs))


def _confidence(taken: Evidence, beyond: float, rivals: bool) -> float:
    """Near 1 when the gap is far above its margin and what chance makes, and single pairs agree.

    Lower when a finer partition does as well.
    """
    above = 1.0 - 0.5 * float(np.exp(-3.0 * (min(taken.gap / taken.margin, beyond) - 1.0)))
    agree = max(0.0, 2.0 * taken.apart - 1.0)
    return float(np.clip(above * agree * (0.85 if rivals else 1.0), 0.0, 1.0))


def _nothing_found(
    tried: Sequence[tuple[Labels, Evidence]],
    logs: Matrix,
    pairs: Sequence[tuple[int, int]],
    unit: Labels,
    beyond: float,
) -> tuple[Labels, float, str]:
    units = int(unit.max()) + 1
    whole = np.zeros(units, np.int64)
    if pairs and 2 * len(pairs) == len(logs) and units <= _MOST_PAIR_NODES and _beyond_chance(logs, unit) > 1.0:
        # Two levels, and the lower one has pairs: cores of one node, or nodes of two vCPUs? Latencies alone do not
        # say; threads that share a cache are nearer than cores that share a socket.
        inside = float(np.median([logs[one, other] for one, other in pairs]))
        outside = float(np.median(logs[np.triu_indices(len(logs), 1)]))
        if outside - inside < _CORE_RATIO:
            return np.arange(units), 0.4, "pairs of vCPUs: taken for nodes, though they might be cores of one node"
        return whole, 0.4, "pairs of vCPUs: taken for cores of one node, though they might be nodes"
    best = max((found.gap / found.margin for _, found in tried), default=0.0)
    reason = "no group is set apart from the others"
    if beyond > 0.0:
        best, reason = beyond, "what looks like groups is no more than chance makes of so few pairs"
    return whole, float(np.clip(1.0 - 0.5 * max(best, 0.0) ** 2, 0.0, 1.0)), reason


def _grouping(
    labels: Labels, logs: Matrix, pairs: Sequence[tuple[int, int]], confidence: float, reason: str
) -> Grouping:
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    members.sort(key=lambda group: int(group[0]))
    same = labels[:, None] == labels[None, :]
    inner = np.triu(same, 1)
    for one, other in pairs:
        inner[one, other] = False
    local = float(np.exp(np.median(logs[inner]))) if inner.any() else None
    remote = None
    if len(members) > 1:
        medians = [
            float(np.exp(np.median(logs[np.ix_(one, other)])))
            for place, one in enumerate(members)
            for other in members[place + 1 :]
        ]
        remote = (min(medians), max(medians))
    groups = tuple(tuple(int(vcpu) for vcpu in group) for group in members)
    return Grouping(groups, confidence, tuple(pairs), local, remote, reason)


@click.command("discovery", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("matrix", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer as JSON.")
@click.option("--lists", is_flag=True, help="Print CPU lists only, as /sys/kernel/mm/pgtable_repl/domains takes them.")
def command(matrix: Path, as_json: bool, lists: bool) -> int:
    """Print the groups of vCPUs that share a node, and how sure that is, from a MATRIX of latencies (CSV).

    Exit status: 0 answered (see the confidence), 2 no such matrix.
    """
    from vmitosis.latencies import read

    latencies, cpus = read(matrix)
    found = discover(latencies).renumbered(cpus)
    if as_json:
        click.echo(json.dumps(found.to_json()))
    elif lists:
        click.echo(found.lists())
    else:
        for number, group in enumerate(found.groups):
            click.echo(f"group {number}: {number_list(group)}")
        click.echo(f"confidence {found.confidence:.2f}: {found.reason}")
    return 0


if __name__ == "__main__":
    from numalab.cli.main import execute

    execute(command, None, name="python -m vmitosis.discovery")
