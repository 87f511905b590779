"""Published values to set beside our own (`reference_data/README.md` says where each comes from)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

DATA = Path(__file__).resolve().parent / "reference_data"


@dataclass(frozen=True)
class Published:
    """A table of published values.

    Attributes:
        name: the file's name without ".csv".
        source: paper, figure and machine, to be printed beside the values.
        summary: what the values are.
    """

    name: str
    source: str
    summary: str

    def table(self) -> pd.DataFrame:
        """Return the values; a text column's empty field is "", a number's is NA."""
        frame = pd.read_csv(DATA / f"{self.name}.csv", dtype={"figure": "string"})
        if "note" in frame:
            frame["note"] = frame["note"].fillna("")
        return frame


_MACHINE = "measured on hardware by the authors, 4 × Xeon E7-4850 v3, Linux 4.17"

MITOSIS_FIGURE_4 = Published(
    "mitosis_figure4",
    f"Mitosis, ASPLOS 2020, figure 4 ({_MACHINE})",
    "share of leaf page-table entries that are remote, as seen from each socket",
)
MITOSIS_RUNTIMES = Published(
    "mitosis_runtimes",
    f"Mitosis, ASPLOS 2020, figures 6, 9, 10 and 11 ({_MACHINE})",
    "cycles of a run, of its page walks, and the rest",
)
MITOSIS_TABLE_5 = Published(
    "mitosis_table5",
    f"Mitosis, ASPLOS 2020, table 5 ({_MACHINE})",
    "cycles of mmap, mprotect and munmap with replication on and off",
)

CATALOGUE = (MITOSIS_FIGURE_4, MITOSIS_RUNTIMES, MITOSIS_TABLE_5)


def remote_shares() -> dict[str, list[float]]:
    """Return, by workload, the published remote share of leaf entries as seen from sockets 0, 1, 2, 3."""
    table = MITOSIS_FIGURE_4.table().sort_values(["workload", "node"], kind="stable")
    return {str(workload): list(rows["remote_share"]) for workload, rows in table.groupby("workload", sort=False)}
