"""The points of an experiment's matrix, and the order in which they are run.

Points that differ only in kernel, policy or interference are what an experiment compares, so within one repeat they
run next to each other (interleaved), in shuffled order; the groups they form are shuffled as well.
The order hangs on a keyed hash of each point, not on a random generator: the same seed gives the same
order on every version of Python, and leaving a point out does not move the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from numalab.errors import UserError, nearest
from numalab.results import NO_INTERFERENCE, PLACEBO
from numalab.run.spec import AXES, Experiment

ONLY_KEYS = (*AXES, "repeat")


@dataclass(frozen=True)
class Point:
    """One point of the matrix, by the names of its axes.

    `policy` is the label in the results; `placebo_of` is the policy that is in fact applied when this
    is the A/A repetition of the baseline, else "".
    """

    kernel: str
    policy: str
    workload: str
    topology: str
    repeat: int
    placebo_of: str = ""
    interference: str = NO_INTERFERENCE

    @property
    def applied_policy(self) -> str:
        """The policy that is applied."""
        return self.placebo_of or self.policy

    def to_json(self) -> dict[str, Any]:
        """Its axes as plain JSON values."""
        return asdict(self) | {"placebo_of": self.placebo_of or None}

    def __str__(self) -> str:
        beside = "" if self.interference == NO_INTERFERENCE else f" beside {self.interference}"
        return f"{self.workload}{beside} on {self.topology}, {self.kernel}, {self.policy} #{self.repeat}"


def points(experiment: Experiment, *, repeats: int | None = None) -> list[Point]:
    """Return every point of the matrix that is not excluded, once, in the order of running.

    `repeats` takes the place of the experiment's own number.
    """
    found = list(_all(experiment, experiment.repeats if repeats is None else repeats))
    return sorted(found, key=lambda point: _place(experiment.seed, point))


def _all(experiment: Experiment, repeats: int) -> Iterator[Point]:
    for axes in experiment.kept():
        kernel, policy = axes["kernel"], axes["policy"]
        placebo = experiment.placebo and (kernel, policy) == (experiment.baseline_kernel, experiment.baseline_policy)
        for repeat in range(repeats):
            yield Point(**axes, repeat=repeat)
            if placebo:
                yield Point(**(axes | {"policy": PLACEBO}), repeat=repeat, placebo_of=policy)


def _place(seed: int, point: Point) -> tuple[int, bytes, bytes]:
    group = (point.workload, point.topology)
    # Nothing where nothing runs beside: the order of experiments without interference is fixed for good.
    beside = () if point.interference == NO_INTERFERENCE else (point.interference,)
    return (
        point.repeat,
        _draw(seed, point.repeat, *group),
        _draw(seed, point.repeat, *group, point.kernel, point.policy, *beside),
    )


def _draw(*words: object) -> bytes:
    return hashlib.sha256(repr(words).encode()).digest()


def parse_only(texts: Iterable[str], experiment: Experiment, repeats: int) -> dict[str, set[str]]:
    """Return the filter that `--only key=value` options describe: for each key the values that stay.

    Raises:
        UserError: a key or value that the matrix does not have; names the nearest.
    """
    wanted: dict[str, set[str]] = {}
    known: Mapping[str, tuple[str, ...]] = experiment.axes | {"repeat": tuple(map(str, range(repeats)))}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in known:
            raise UserError(f"--only {text}: write KEY=VALUE with KEY one of {', '.join(known)}{nearest(key, known)}")
        names = known[key] + ((PLACEBO,) if key == "policy" and experiment.placebo else ())
        if value not in names:
            raise UserError(f"--only {text}: no {key} {value!r} in this matrix{nearest(value, names)}")
        wanted.setdefault(key, set()).add(value)
    return wanted


def select(found: Iterable[Point], wanted: Mapping[str, set[str]]) -> list[Point]:
    """Return the points that pass a filter of `parse_only`, in their order."""
    return [point for point in found if all(str(getattr(point, key)) in values for key, values in wanted.items())]
