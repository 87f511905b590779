"""The long matrix of the kernel's own tests: groups × page-table levels × boot options, held against a baseline.

Every point has a directory of its own, and says by a hash of everything that decides its results whether they still
stand: an interrupted matrix goes on with the next program, a new kernel or new test programs are run anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from numalab.errors import MachineLostError, UserError, nearest
from numalab.kernel.image import KernelImage
from numalab.machine.outcome import BootFailureError
from numalab.machine.topology import uniform
from numalab.paths import write_json
from numalab.run.reader import Problems, Table, fits, read_toml, type_name
from numalab.selftest import catalogue, lab, record
from numalab.selftest.build import Programs
from numalab.selftest.compare import Difference, compare, explanations_by_place
from numalab.selftest.lab import OnResult, Setting
from numalab.selftest.record import Run

FILE = Path(__file__).with_name("matrix.toml")
#: How often a machine that does not answer is booted before that is its outcome.
_TRIES = 2
#: Which results are in a directory: all of them, or those that there are so far.
_STANDS, _BEGUN = "stands.json", "begun.json"
_RESULTS, _BASELINE = "results.json", "baseline.json"


@dataclass(frozen=True)
class Axis:
    """Settings that exclude each other: value → words of the kernel's command line.

    A word FILE=VALUE whose FILE begins with a slash is set before each program, and set back after it.

    `own`: for the kernel under test alone. `groups`: to which it means something; empty: to all of them.
    """

    name: str
    values: Mapping[str, str]
    own: bool = False
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Matrix:
    """What is run.

    Attributes:
        groups: of test programs, in the order they are run.
        kernel, against: names of the kernel under test and of the one it is compared with.
        repeats, baseline_repeats: on either.
        levels: of page tables, 4 or 5.
        axes: boot options.
        explanations: pattern of a test → why its difference is meant.
        explained_at: "axis=value" → explanations that stand there only.
    """

    groups: tuple[str, ...]
    kernel: str
    against: str
    repeats: int
    baseline_repeats: int
    levels: tuple[int, ...]
    axes: tuple[Axis, ...]
    explanations: Mapping[str, str] = field(default_factory=dict)
    explained_at: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """One group on one kind of machine: `chosen` is the value of each axis that the group has, in their order."""

    group: str
    levels: int
    chosen: tuple[str, ...]
    matrix: Matrix

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Those of the matrix that its group has."""
        return _axes_of(self.matrix, self.group)

    @property
    def values(self) -> dict[str, str]:
        """Its place on each axis by name, group and levels first."""
        names = ("group", "levels", *(axis.name for axis in self.axes))
        return dict(zip(names, (self.group, str(self.levels), *self.chosen), strict=True))

    @property
    def name(self) -> str:
        """Of its directory, e.g. "mm-levels=4-pti=on-thp=never"."""
        return "-".join([self.group, *(f"{axis}={value}" for axis, value in self.values.items() if axis != "group")])

    @property
    def explanations(self) -> dict[str, str]:
        """Those that stand at its place."""
        found = dict(self.matrix.explanations)
        for axis, value in self.values.items():
            found |= self.matrix.explained_at.get(f"{axis}={value}", {})
        return found

    def words(self, *, own: bool) -> str:
        """Return what is added to the kernel's command line; with or without those of its own."""
        return " ".join(word for word in self._said(own=own) if not word.startswith("/"))

    def files(self, *, own: bool) -> tuple[tuple[str, str], ...]:
        """Return the files that are set before each program, and their values; with or without those of its own."""
        pairs = (word.partition("=") for word in self._said(own=own) if word.startswith("/"))
        return tuple((file, value) for file, _, value in pairs)

    def _said(self, *, own: bool) -> list[str]:
        pairs = zip(self.axes, self.chosen, strict=True)
        return [word for axis, value in pairs if own or not axis.own for word in axis.values[value].split()]


@dataclass(frozen=True)
class Outcome:
    """What a point came to.

    Attributes:
        point: which.
        found, before: results on the kernel under test and on the other; None: no machine came up, or not run yet.
        differences: of the two.
        lost: how the machine was lost before any test ran, "" when it was not.
    """

    point: Point
    found: Run | None = None
    before: Run | None = None
    differences: tuple[Difference, ...] = ()
    lost: str = ""

    @property
    def blames(self) -> bool:
        """Whether the kernel under test is to blame for something."""
        return bool(self.lost) or any(each.blames for each in self.differences)


@dataclass(frozen=True)
class Rig:
    """What the points have in common: both kernels, the built programs, the accelerator, patience with time-outs."""

    kernel: KernelImage
    against: KernelImage
    built: Programs
    accel: str
    patience: float = 1.0

    def settings(self, point: Point) -> tuple[Setting, Setting]:
        """Return the settings of a point for the kernel under test and for the one it is compared with."""
        group = catalogue.group(point.group)
        shape = uniform(group.nodes, group.cpus_per_node, group.node_memory, paging_levels=point.levels)
        words = point.words(own=True)
        mine = Setting(group, group.programs, self.kernel, shape, self.accel, self.built, words, self.patience)
        mine = replace(mine, files=point.files(own=True))
        return mine, replace(mine, kernel=self.against, append=point.words(own=False), files=point.files(own=False))


def load(path: Path = FILE) -> Matrix:
    """Read a matrix.

    Raises:
        UserError: everything that is wrong with it, one line each, naming file and key.
    """
    problems = Problems(str(path))
    top = Table(read_toml(path), "", problems)
    known = catalogue.groups()
    groups = top.words("groups", required=True)
    for number, name in enumerate(groups):
        if name not in known:
            problems.add(f"groups[{number}]", f"unknown group {name!r}{nearest(name, known)}")
    axes = [*_axes(top.table("axes"), own=False), *_axes(top.table("own"), own=True)]
    for axis in axes:
        if axis.name in ("group", "levels") or [each.name for each in axes].count(axis.name) > 1:
            problems.add(f"{'own' if axis.own else 'axes'}.{axis.name}", "the name is taken")
    axes = _limited(axes, top.table("limited"), groups)
    top.get("explained", list, [])
    matrix = Matrix(
        groups=groups,
        kernel=top.get("kernel", str, "patched"),
        against=top.get("against", str, "stock"),
        repeats=top.count("repeats", 1, least=1),
        baseline_repeats=top.count("baseline_repeats", 2, least=1),
        levels=_levels(top),
        axes=tuple(axes),
    )
    top.close()
    by_place = explanations_by_place(path)
    places = _places(matrix)
    for place in by_place:
        if place and place not in places:
            problems.add("explained.where", f"no {place!r} in this matrix{nearest(place, places)}")
    problems.raise_any()
    return replace(matrix, explanations=by_place.pop("", {}), explained_at=by_place)


def _places(matrix: Matrix) -> set[str]:
    """Every "axis=value" at which a point can lie."""
    axes = [(axis.name, axis.values) for axis in matrix.axes]
    axes += [("group", dict.fromkeys(matrix.groups, "")), ("levels", {str(level): "" for level in matrix.levels})]
    return {f"{axis}={value}" for axis, values in axes for value in values}


def _axes(table: Table, *, own: bool) -> Iterator[Axis]:
    for name, described in table.children().items():
        values = {value: described.get(value, str, "") for value in described.value}
        if not values:
            table.problems.add(described.key, "must have at least one value")
        yield Axis(name, values, own)


def _limited(axes: Sequence[Axis], table: Table, groups: Sequence[str]) -> list[Axis]:
    """The axes, those that `table` names for some groups only."""
    names = [axis.name for axis in axes]
    for name in table.value:
        if name not in names:
            table.problems.add(table.path(name), f"no axis of that name{nearest(name, names)}")
        for group in table.words(name):
            if group not in groups:
                table.problems.add(table.path(name), f"no group {group!r} in this matrix{nearest(group, groups)}")
    return [replace(axis, groups=table.words(axis.name)) for axis in axes]


def _axes_of(matrix: Matrix, group: str) -> tuple[Axis, ...]:
    return tuple(axis for axis in matrix.axes if not axis.groups or group in axis.groups)


def _levels(top: Table) -> tuple[int, ...]:
    found = top.get("levels", list, [4])
    for number, value in enumerate(found):
        if not fits(value, int) or value not in (4, 5):
            said = value if fits(value, int) else type_name(value)
            top.problems.add(f"levels[{number}]", f"must be 4 or 5, not {said}")
    return tuple(found)


def points(matrix: Matrix, only: Iterable[str] = ()) -> list[Point]:
    """Return the points of a matrix, those that every `KEY=VALUE` of `only` leaves (alternatives of one key add up).

    Raises:
        UserError: a key or value that it does not have; names the nearest.
    """
    known: dict[str, Sequence[str]] = {"group": matrix.groups, "levels": [str(level) for level in matrix.levels]}
    known |= {axis.name: list(axis.values) for axis in matrix.axes}
    wanted: dict[str, set[str]] = {}
    for text in only:
        key, equals, value = text.partition("=")
        if not equals or key not in known:
            raise UserError(f"--only {text}: write KEY=VALUE with KEY one of {', '.join(known)}{nearest(key, known)}")
        if value not in known[key]:
            raise UserError(f"--only {text}: no {key} {value!r} in this matrix{nearest(value, known[key])}")
        wanted.setdefault(key, set()).add(value)
    found = [
        Point(group, levels, chosen, matrix)
        for group, levels in product(matrix.groups, matrix.levels)
        for chosen in product(*(axis.values for axis in _axes_of(matrix, group)))
    ]
    return [point for point in found if all(point.values.get(key) in values for key, values in wanted.items())]


def share(points: Sequence[Point], which: int, of: int) -> list[Point]:
    """Return the `which`-th (from 1) of `of` shares of `points`, for as many processes at once, or hosts.

    Points that are held against the same baseline are in the same share: none is run twice, nobody waits for one.
    """

    def baseline(point: Point) -> tuple[object, ...]:
        return point.group, point.levels, point.words(own=False), point.files(own=False)

    number = {each: index % of + 1 for index, each in enumerate(dict.fromkeys(map(baseline, points)))}
    return [point for point in points if number[baseline(point)] == which]


def run(
    point: Point, rig: Rig, out: Path, *, on_result: Callable[[str], OnResult] = lambda _: lambda *_: None
) -> Outcome:
    """Run a point unless its results in `out` stand; `on_result` gives what is told, by name of the kernel.

    Raises:
        MissingError: this host lacks something.
    """
    known = standing(point, rig, out)
    if known is not None:
        return known
    matrix = point.matrix
    mine, other = rig.settings(point)
    place = out / point.name
    place.mkdir(parents=True, exist_ok=True)
    key = _key(point, rig)
    (place / _STANDS).unlink(missing_ok=True)
    if not _says(place / _BEGUN, key):
        (place / _RESULTS).unlink(missing_ok=True)
    write_json(place / _BEGUN, {"key": key})
    for tries_left in range(_TRIES - 1, -1, -1):
        try:
            told = on_result(f"{matrix.against} (baseline)")
            before, _ = lab.baseline(other, matrix.baseline_repeats, on_result=told)
            before.save(place / _BASELINE)
            lab.run(mine, matrix.repeats, place, on_result=on_result(matrix.kernel), file=_RESULTS, resume=True)
            break
        except MachineLostError as error:
            # A busy host may be too slow for a boot; a kernel that panics there does so again.
            if not tries_left or not isinstance(error, BootFailureError):
                return Outcome(point, lost=str(error))
    write_json(place / _STANDS, {"key": key})
    done = standing(point, rig, out)
    assert done is not None
    return done


def standing(point: Point, rig: Rig, out: Path) -> Outcome | None:
    """Return what a point came to before, None when it has not been run or something that decides it has changed."""
    place = out / point.name
    if not _says(place / _STANDS, _key(point, rig)):
        return None
    found, before = record.load(place), record.load(place / _BASELINE)
    return Outcome(point, found, before, tuple(compare(found, before, point.explanations)))


def _says(file: Path, key: str) -> bool:
    try:
        return bool(json.loads(file.read_text())["key"] == key)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _key(point: Point, rig: Rig) -> str:
    mine, other = rig.settings(point)
    inputs = {
        "settings": [mine.key(), other.key()],
        "repeats": [point.matrix.repeats, point.matrix.baseline_repeats],
        "programs": [repr(program) for program in mine.programs],
        "patience": rig.patience,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
