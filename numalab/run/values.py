"""What kind of number a machine's numbers are (numalab.kinds)."""

from __future__ import annotations

from numalab.kinds import Kind
from numalab.results import Json
from numalab.run.lab import SampleLike


def counter_kind(accel: str) -> Kind:
    """Return the kind of an exact count: in emulation it is counted, on hardware measured."""
    return Kind.COUNTED if accel == "tcg" else Kind.MEASURED


def sample_to_json(sample: SampleLike, accel: str) -> Json:
    """Return a workload's sample as it stands in result files; value None is missing."""
    return {"metric": sample.metric, "value": sample.value, "unit": sample.unit, "kind": counter_kind(accel)}
