"""Latency matrices between vCPUs: read from a file, and simulated for machines of known shape."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from numalab.errors import UserError

_MISSING = ("", "-")


@dataclass(frozen=True)
class Simulated:
    """A simulated machine and what a probe would measure on it.

    Attributes:
        latencies: ns, float64 [vCPU, vCPU]; row to column.
        node: of each vCPU: the truth.
        threads: vCPUs per core, 1 or 2.
        seed: it came from.
    """

    latencies: NDArray[np.float64]
    node: NDArray[np.int64]
    threads: int
    seed: int

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The vCPUs of each node, in the order of their lowest vCPU."""
        found = [tuple(int(cpu) for cpu in np.flatnonzero(self.node == node)) for node in np.unique(self.node)]
        return tuple(sorted(found))


def simulate(
    seed: int,
    *,
    nodes: int | None = None,
    vcpus: int | None = None,
    threads: int | None = None,
    local: float | None = None,
    ratio: float | None = None,
    noise: float | None = None,
    even: bool | None = None,
) -> Simulated:
    """Simulate one machine; what is not given is drawn.

    Nodes: 1 to 8 (one in ten machines has one). vCPUs: 8 to 128, at least 3 to a node (4 with hyper-threads: 2 cores),
    evenly or not, in order or scattered. Local latency 25-110 ns; remote 1.35 to 3.5 times that, each pair of nodes by
    itself, by hops around a ring, or by boards; up to 8 % more in one direction than in the other. Within a node the
    place of a core (mesh) makes up to ±8 %. Hyper-threads: 0.25 to 0.55 of local. Disturbance: log-normal, up to 8 %,
    and up to one pair in 25 takes 1.2 to 20 times as long (Pareto).
    """
    rng = np.random.default_rng(seed)
    nodes = nodes or (1 if rng.random() < 0.1 else int(rng.integers(2, 9)))
    threads = threads or int(rng.integers(1, 3))
    least = 4 if threads == 2 else 3
    vcpus = vcpus or int(rng.integers(max(8, nodes * least), 129))
    local = local or float(rng.uniform(25, 110))
    ratio = ratio or float(rng.uniform(1.35, 3.5))
    noise = float(rng.uniform(0.005, 0.08)) if noise is None else noise
    even = bool(rng.random() < 0.6) if even is None else even
    node, core = _places(rng, nodes, vcpus, threads, least, even)
    level = local * _distances(rng, nodes, ratio)
    direction = 1 + rng.uniform(0, 0.08, (nodes, nodes)) * (rng.random() < 0.5)
    np.fill_diagonal(direction, 1.0)
    exact = (level * direction)[np.ix_(node, node)]
    place = rng.uniform(-0.04, 0.04, core.max() + 1)  # of both ends
    exact *= 1 + place[core][:, None] + place[core][None, :]
    exact[core[:, None] == core[None, :]] = local * rng.uniform(0.25, 0.55)
    measured = exact * np.exp(np.abs(rng.normal(0, noise, exact.shape)))
    hit = rng.random(exact.shape) < rng.uniform(0, 0.04)
    measured[hit] *= np.minimum(1.2 * (1 + rng.pareto(1.5, np.count_nonzero(hit))), 20)
    np.fill_diagonal(measured, 0.0)
    return Simulated(measured, node, threads, seed)


def _places(
    rng: np.random.Generator, nodes: int, vcpus: int, threads: int, least: int, even: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Node and core of each vCPU."""
    cores = vcpus // threads
    if even:
        node_of_core = np.arange(cores) * nodes // cores
    else:
        spare = np.repeat(np.arange(nodes), least // threads)
        node_of_core = np.sort(np.concatenate([spare, rng.integers(0, nodes, cores - len(spare))]))
    core = np.repeat(np.arange(cores), threads)
    if len(core) < vcpus:  # the last core has one thread in the guest
        core = np.append(core, cores)
        node_of_core = np.append(node_of_core, nodes - 1)
    order = np.arange(vcpus)
    match int(rng.integers(0, 3)):
        case 0:
            order = rng.permutation(vcpus)
        case 1 if threads == 2:  # all first threads, then all second ones
            order = np.argsort(np.arange(vcpus) % 2, kind="stable")
    core = core[order].astype(np.int64)
    return node_of_core[core].astype(np.int64), core


def _distances(rng: np.random.Generator, nodes: int, ratio: float) -> NDArray[np.float64]:
    """Latency between nodes, the local one being 1."""
    one, other = np.meshgrid(np.arange(nodes), np.arange(nodes))
    match int(rng.integers(0, 4)):
        case 0:
            level = np.full((nodes, nodes), ratio)
        case 1:  # each pair by itself
            level = np.triu(ratio * rng.uniform(1.0, 1.5, (nodes, nodes)), 1)
            level += level.T
        case 2:  # hops around a ring
            hops = np.minimum(np.abs(one - other), nodes - np.abs(one - other))
            level = ratio * (1 + rng.uniform(0.1, 0.5) * (hops - 1))
        case _:  # two boards
            level = np.where(one % 2 == other % 2, ratio, ratio * rng.uniform(1.2, 1.8))
    np.fill_diagonal(level, 1.0)
    return level


def flat(seed: int, vcpus: int, noise: float) -> NDArray[np.float64]:
    """A matrix without structure, as an emulated machine gives it: log-normal, with outliers."""
    rng = np.random.default_rng(seed)
    measured = 200 * np.exp(rng.normal(0, noise, (vcpus, vcpus)))
    measured[rng.random(measured.shape) < 0.05] *= 8
    return measured


def read(path: Path) -> tuple[NDArray[np.float64], tuple[int, ...]]:
    """Read a matrix and the numbers of its CPUs from a CSV file (what tools/mm/pgrepl-probe prints).

    A square of numbers; a first row and a first column with CPU numbers may be there, empty fields and "-" are
    missing values, lines that begin with "#" are skipped.

    Raises:
        UserError: it is not that.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    return parse(text, str(path))


def parse(text: str, path: str) -> tuple[NDArray[np.float64], tuple[int, ...]]:
    """As `read`, for a text; `path` names it in complaints."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    rows = [[field.strip() for field in row] for row in csv.reader(lines)]
    if not rows:
        raise UserError(f"{path}: no matrix in it")
    header = None
    if not all(_number(field) for field in rows[0] if field not in _MISSING) or len(rows) == len(rows[0]) + 1:
        header = rows.pop(0)
    size = len(rows)
    labelled = all(len(row) == size + 1 for row in rows)
    if not labelled and any(len(row) != size for row in rows):
        lengths = sorted({len(row) for row in rows})
        raise UserError(f"{path}: {size} rows of {', '.join(map(str, lengths))} fields are no square")
    names = [row[0] for row in rows] if labelled else (header or [str(each) for each in range(size)])
    try:
        cpus = tuple(int(name.removeprefix("cpu")) for name in names[-size:])
        values = [[float(field) if field not in _MISSING else np.nan for field in row[-size:]] for row in rows]
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return np.array(values), cpus


def _number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
