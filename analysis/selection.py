"""Which runs stand against which: two result directories, or two values of one axis within one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd

from analysis import comparison
from analysis.comparison import Comparison, Finding, Floor, Side
from analysis.dataset import PLACEBO, Dataset
from analysis.frames import POINT, known_words
from analysis.statistics import Interval, clean, geomean_ratio_interval
from analysis.statistics import repeats_needed as repeats_needed_of
from numalab.errors import UserError, nearest
from numalab.kinds import Kind

#: What is compared when nobody names a metric, beside the workloads' own; the rest is asked for by
#: name, e.g. "vmstat:numa_*".
DEFAULT_PLACEMENT = ("*:table_pages", "*:remote_share:*")
_METRIC = ["source", "metric", "unit"]
#: What a noise floor holds for: any kernel and policy at such a place.
_PLACE = ("workload", "topology", "interference")

Floors = dict[tuple[str, ...], Floor]


def between(a: Dataset, b: Dataset, metrics: Sequence[str] = (), *, noise: Dataset | None = None) -> list[Comparison]:
    """Compare two directories point by point; points that only one of them has are left out.

    The noise floor comes from `noise`, a directory with an A/A repetition, else from those in `a` or `b`.

    Raises:
        UserError: they share no point, or a metric does not exist.
    """
    wanted = _chosen(pd.concat([a.values, b.values]), metrics)
    names = (a.name, b.name) if a.name != b.name else (str(a.directory), str(b.directory))
    found = list(_pairs((names[0], a, _rows(a, wanted)), (names[1], b, _rows(b, wanted)), list(POINT)))
    if not found:
        raise UserError(
            f"{a.directory} and {b.directory} share no point ({', '.join(POINT)}) to compare",
            remedy="`numalab compare DIR --by policy` compares within one directory",
        )
    floors = noise_floors(noise, wanted) if noise else noise_floors(b, wanted) | noise_floors(a, wanted)
    return comparison.judge(with_floors((comparison.settings_differ(each) for each in found), floors))


def along(
    data: Dataset,
    axis: str,
    baseline: str | None = None,
    metrics: Sequence[str] = (),
    *,
    noise: Dataset | None = None,
) -> list[Comparison]:
    """Compare every value of `axis` with `baseline` (the experiment's own when None) within one directory.

    The noise floor comes from `noise`, a directory with an A/A repetition, else from the one in `data`.

    Raises:
        UserError: no such value, nothing beside it, or a metric does not exist.
    """
    present = data.axis(axis)
    chosen = baseline or data.baseline(axis)
    if chosen not in present:
        raise UserError(
            f"{data.directory}: no {axis} {chosen!r}{nearest(chosen, present)} (there are: {', '.join(present)})"
        )
    others = [value for value in present if value not in (chosen, PLACEBO)]
    if not others:
        raise UserError(f"{data.directory}: {axis} {chosen!r} is the only one: nothing to compare it with")
    wanted = _chosen(data.values, metrics, leading(data))
    rows = _rows(data, wanted)
    shared = [each for each in POINT if each != axis]
    found: list[Comparison] = []
    for other in others:
        sides = [(name, data, rows[rows[axis] == name]) for name in (chosen, other)]
        found += _pairs(sides[0], sides[1], shared)
    return comparison.judge(with_floors(found, noise_floors(noise or data, wanted)))


@dataclass(frozen=True)
class Overall:
    """The geometric mean of the ratios of several workloads: one side, one metric.

    Attributes:
        name: the side that is compared with the baseline.
        point: what the comparisons share beside the workload.
        workloads: which ones.
    """

    name: str
    metric: str
    kind: Kind
    point: dict[str, str]
    workloads: tuple[str, ...]
    ratio: Interval

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "b": self.name,
            "metric": self.metric,
            "kind": self.kind,
            "point": self.point,
            "workloads": list(self.workloads),
            "geometric_mean_ratio": self.ratio.to_json(),
        }


def overall(comparisons: Iterable[Comparison]) -> list[Overall]:
    """Return geometric means over workloads, where two or more have ratios of the same metric."""
    groups: dict[tuple[str, ...], list[Comparison]] = {}
    for each in comparisons:
        if each.kind is not None and each.ratio.estimate and each.unit != "share" and each.finding is not Finding.SAME:
            rest = [value for axis, value in each.point.items() if axis != "workload"]
            groups.setdefault((each.b.name, each.metric, each.kind, *rest), []).append(each)
    found = []
    for members in groups.values():
        first = members[0]
        if len(members) < 2 or first.kind is None:
            continue
        ratio = geomean_ratio_interval([(each.a.values, each.b.values) for each in members])
        point = {axis: value for axis, value in first.point.items() if axis != "workload"}
        names = tuple(each.point.get("workload", "") for each in members)
        found.append(Overall(first.b.name, first.metric, first.kind, point, names, ratio))
    return found


def split_unchanged(comparisons: Sequence[Comparison]) -> tuple[list[Comparison], list[str]]:
    """Return the comparisons worth a row, and the metrics that had one and the same value in every run."""
    moved = {each.metric for each in comparisons if each.finding is not Finding.SAME}
    unchanged = dict.fromkeys(each.metric for each in comparisons if each.metric not in moved)
    return [each for each in comparisons if each.metric in moved], list(unchanged)


def repeats_needed(comparisons: Iterable[Comparison]) -> int | None:
    """Return how many repeats would tell every mean to 1 % at 95 %; None when there are enough, or none can tell."""
    sides = [side for each in comparisons for side in (each.a, each.b) if each.ratio.estimate is not None]
    short = [n for side in sides if (n := repeats_needed_of(side.values)) and n > side.n]
    return max(short, default=None)


def has_placebo(data: Dataset) -> bool:
    """Whether `data` holds an A/A repetition: the baseline, and the same again by the name of placebo."""
    return {data.baseline("policy"), PLACEBO} <= set(data.values["policy"])


def noise_floors(data: Dataset, metrics: set[str]) -> Floors:
    """Return the noise floors of `metrics` by the A/A repetition in `data`; empty when the experiment has none."""
    if not has_placebo(data):
        return {}
    rows = _rows(data, metrics)
    sides = [(name, data, rows[rows["policy"] == name]) for name in (data.baseline("policy"), PLACEBO)]
    floors: Floors = {}
    for each in _pairs(sides[0], sides[1], [axis for axis in POINT if axis != "policy"]):
        floor = comparison.floor_of(each)
        if floor is not None:
            floors[_floor_key(each)] = floor
    return floors


def with_floors(comparisons: Iterable[Comparison], floors: Floors) -> list[Comparison]:
    """Return the comparisons with the noise floor of the same workload, topology, interference and metric."""
    return [replace(each, floor=floors.get(_floor_key(each))) for each in comparisons]


def _floor_key(each: Comparison) -> tuple[str, ...]:
    return (*(each.point.get(axis, "") for axis in _PLACE), each.source, each.metric)


def leading(data: Dataset) -> list[str]:
    """Return the metrics that the experiment leads with, the foremost first; none when it names none."""
    return list((data.spec("measure") or {}).get("metrics") or [])


def _chosen(values: pd.DataFrame, metrics: Sequence[str], lead: Sequence[str] = ()) -> set[str]:
    known = sorted(set(values["metric"].dropna()))
    if not metrics:
        own = (values["source"] == "workload") & (values["kind"] != Kind.EMULATION_TIME).fillna(True)
        return set(values.loc[own, "metric"]) | matching(known, DEFAULT_PLACEMENT) | (set(lead) & set(known))
    wanted: set[str] = set()
    for pattern in metrics:
        found = matching(known, [pattern])
        if not found:
            raise UserError(
                f"no metric {pattern!r} in these results{nearest(pattern, known)}",
                remedy=f"there are: {', '.join(known[:12])}{' ...' if len(known) > 12 else ''}",
            )
        wanted |= found
    return wanted


def matching(names: Iterable[str], patterns: Iterable[str]) -> set[str]:
    """Return the names that fit one of the patterns ("vmstat:numa_*")."""
    found = set(patterns)
    return {name for name in set(names) if any(fnmatchcase(name, pattern) for pattern in found)}


def _rows(data: Dataset, metrics: set[str]) -> pd.DataFrame:
    return data.values[data.values["metric"].isin(metrics)]


def _pairs(
    a: tuple[str, Dataset, pd.DataFrame], b: tuple[str, Dataset, pd.DataFrame], shared: list[str]
) -> Iterator[Comparison]:
    """Yield a comparison for each metric of each point that both have, in the order of A's results."""
    keys = [*shared, *_METRIC]
    theirs = {known_words(key): rows for key, rows in b[2].groupby(keys, dropna=False, sort=False)}
    for key, rows in a[2].groupby(keys, dropna=False, sort=False):
        other = theirs.get(known_words(key))
        if other is None:
            continue
        words = known_words(key)
        point = dict(zip(shared, words[: len(shared)], strict=True))
        source, metric, unit = words[len(shared) :]
        sides = (_side(a[0], a[1], point, rows), _side(b[0], b[1], point, other))
        kinds = [_kinds(rows), _kinds(other)]
        one = len(set(kinds[0] + kinds[1])) == 1
        made = comparison.measure(point, source, metric, unit, (kinds[0] + kinds[1])[0] if one else None, *sides)
        if not one and all(kinds):
            said = [" / ".join(kind.label for kind in each) for each in kinds]
            made = replace(made, reason=f"different kinds of numbers: A {said[0]}, B {said[1]}")
        yield made


def _kinds(rows: pd.DataFrame) -> list[Kind]:
    return [Kind(kind) for kind in sorted(set(rows["kind"].dropna()))]


def _side(name: str, data: Dataset, point: Mapping[str, str], rows: pd.DataFrame) -> Side:
    good = rows[rows["ok"].fillna(False).astype(bool)]
    cells = data.outcomes
    here = cells[(cells[list(point)] == pd.Series(point)).all(axis=1)]
    for axis in POINT:
        if axis not in point:
            here = here[here[axis].isin(set(rows[axis]))]
    return Side(
        name=name,
        values=clean([None if pd.isna(value) else float(value) for value in good["value"]]),
        missing=int(good["value"].isna().sum()),
        failed=int((~here["ok"].astype(bool)).sum()),
        started=tuple(sorted(set(good["started"]))),
        settings=frozenset(here.loc[here["cell"].isin(set(good["cell"])), "settings"]),
    )
