"""A result directory, loaded: its experiment, its results, and both as tidy frames."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import frames
from analysis.placement import Placement, placements
from numalab.errors import ExperimentError, UserError
from numalab.results import PLACEBO, CorruptResultError, Json, load_experiment, load_results, succeeded

__all__ = ["AXES", "PLACEBO", "Dataset", "load", "succeeded"]
AXES = frames.POINT


@dataclass(frozen=True)
class Dataset:
    """What a result directory holds.

    Attributes:
        directory: where it is.
        experiment: content of experiment.json, None when it is missing or damaged.
        results: the good results, in the order in which they were run.
        corrupt: the damaged result files.
    """

    directory: Path
    experiment: Json | None
    results: list[Json]
    corrupt: list[CorruptResultError]

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.directory.resolve().name

    @cached_property
    def values(self) -> pd.DataFrame:
        """One row per value (`analysis.frames.values`)."""
        return frames.values(self.results)

    @cached_property
    def outcomes(self) -> pd.DataFrame:
        """One row per cell (`analysis.frames.outcomes`)."""
        return frames.outcomes(self.results)

    @cached_property
    def placements(self) -> list[Placement]:
        """All snapshots, in the order of the results."""
        return [each for result in self.results for each in placements(result, frames.kind_of_machine(result))]

    def axis(self, axis: str) -> list[str]:
        """Return the values of an axis that have results, in the experiment's order, others after them."""
        present = list(dict.fromkeys(str(result["cell"][axis]) for result in self.results))
        planned = list((self.spec("matrix") or {}).get(axis, []))
        return [v for v in planned if v in present] + sorted(v for v in present if v not in planned)

    def baseline(self, axis: str) -> str:
        """Return what the others are compared with along `axis`: the experiment's choice, else the first."""
        return str((self.spec("baseline") or {}).get(axis) or self.axis(axis)[0])

    @property
    def waiting(self) -> int:
        """How many planned cells have no good result yet."""
        planned = set((self.experiment or {}).get("order", []))
        return len(planned - {result["cell"]["id"] for result in self.results})

    def spec(self, key: str) -> Any:
        """Return a part of the resolved experiment file, None when it is not known."""
        return ((self.experiment or {}).get("spec") or {}).get(key)


def load(directory: Path) -> Dataset:
    """Load a result directory.

    Raises:
        UserError: there are no results in it, or they are of a newer schema.
        ExperimentError: every result in it is damaged.
    """
    if not directory.exists():
        raise UserError(f"{directory}: no such directory", remedy="name a directory that `numalab run` wrote")
    if not directory.is_dir():
        raise UserError(f"{directory}: not a directory", remedy="name a directory that `numalab run` wrote")
    loaded = load_results(directory)
    if not loaded.results:
        first = loaded.corrupt[0]
        raise ExperimentError(
            f"{directory}: all {len(loaded.corrupt)} result files are damaged; the first: {first}",
            remedy=first.remedy,
        )
    try:
        experiment: Json | None = load_experiment(directory)
    except CorruptResultError as error:
        experiment = None
        loaded.corrupt.append(error)
    except UserError:
        if (directory / "experiment.json").exists():
            raise
        experiment = None
    ordered = sorted(loaded.results, key=lambda result: (str(result["started"]), str(result["cell"]["id"])))
    return Dataset(directory, experiment, ordered, loaded.corrupt)
