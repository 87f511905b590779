"""What workloads report: metrics, their units, what kind of number each is, and the reader of the result line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from numalab.errors import ExperimentError
from numalab.kinds import Kind

#: The last line of a workload's standard output begins with this.
RESULT_PREFIX = b"numalab-result: "
_SHOWN = 200


class Quantity(StrEnum):
    """What a metric counts."""

    COUNT = "count"  # things: updates, pages, levels, bytes; exact, in emulation too
    TIME = "time"  # or a rate: depends on how fast the machine runs


@dataclass(frozen=True)
class Metric:
    """One number a workload reports; `better` is "higher", "lower" or "" (neither)."""

    quantity: Quantity
    unit: str
    help: str
    better: str = ""

    def kind(self, accel: str) -> Kind:
        """Return the kind of such a number on a machine run by `accel` ("tcg" is emulation, all else hardware)."""
        if accel != "tcg":
            return Kind.MEASURED
        return Kind.COUNTED if self.quantity is Quantity.COUNT else Kind.EMULATION_TIME

    def to_json(self) -> dict[str, str]:
        """Plain JSON values."""
        return {"quantity": self.quantity.value, "unit": self.unit, "help": self.help, "better": self.better}


@dataclass(frozen=True)
class Sample:
    """One number of one run; value None is missing."""

    metric: str
    value: float | int | None
    about: Metric

    @property
    def unit(self) -> str:
        """Unit of the value."""
        return self.about.unit

    def to_json(self, accel: str) -> dict[str, Any]:
        """As it stands in result files, with the kind it has on a machine run by `accel`."""
        kind = self.about.kind(accel).value
        return {"metric": self.metric, "value": self.value, "unit": self.unit, "kind": kind}


def find(metrics: Mapping[str, Metric], name: str) -> Metric | None:
    """Return the metric called `name`; one per node is listed with N for the node's number."""
    return metrics.get(name) or metrics.get(re.sub(r"(?<=_node)\d+$", "N", name))


def read_result(stdout: bytes, metrics: Mapping[str, Metric], *, program: str) -> list[Sample]:
    """Return the samples of the result line, the last line of `stdout`.

    Raises:
        ExperimentError: there is no such line, or it holds something else than known metrics and numbers.
    """
    lines = stdout.rstrip(b"\n").split(b"\n")
    last = lines[-1]
    if not last.startswith(RESULT_PREFIX):
        said = f"its last line: {_quoted(last)}" if last.strip() else "it printed nothing"
        raise ExperimentError(f"{program} printed no result line; {said}")
    if not stdout.endswith(b"\n"):
        raise ExperimentError(f"{program}: the result line is cut off: {_quoted(last)}")
    try:
        values = json.loads(
            last.removeprefix(RESULT_PREFIX), object_pairs_hook=_no_duplicates, parse_constant=_no_constants
        )
    except ValueError as error:  # JSON and UTF-8 errors, and ours
        raise ExperimentError(f"{program}: the result line is malformed ({error}): {_quoted(last)}") from None
    if not isinstance(values, dict):
        raise ExperimentError(f"{program}: the result line holds no metrics: {_quoted(last)}")
    return [_sample(name, value, metrics, program) for name, value in values.items()]


def _sample(name: str, value: Any, metrics: Mapping[str, Metric], program: str) -> Sample:
    about = find(metrics, name)
    if about is None:
        raise ExperimentError(f"{program} reports the metric {name!r}, which its catalogue entry does not have")
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise ExperimentError(f"{program} reports {name} = {value!r}, which is not a number")
    return Sample(name, value, about)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a metric appears twice")
    return found


def _no_constants(word: str) -> Any:
    raise ValueError(f"{word} is not a number")


def _quoted(line: bytes) -> str:
    text = line.decode(errors="replace")
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
