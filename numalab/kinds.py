"""The kinds a number can have; every number that leaves numalab carries one."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """Where a number comes from; the value is what result files hold, `label` what people read."""

    MEASURED = "measured"  # read from hardware, natively or under KVM
    COUNTED = "counted"  # exact counts in emulation: instructions, faults, page-table pages
    MODELLED = "modelled"  # cycles and the like from a model
    EMULATION_TIME = "emulation-time"  # wall time of emulation: never a speed of the system under study

    @property
    def label(self) -> str:
        """The words for this kind in tables, plots and reports."""
        return {
            Kind.MEASURED: "measured on hardware",
            Kind.COUNTED: "counted in emulation",
            Kind.MODELLED: "modelled",
            Kind.EMULATION_TIME: "wall time of the emulation (not a speed)",
        }[self]
