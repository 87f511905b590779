"""What the laboratory learns of Mitosis (entry point `numalab.systems`)."""

from __future__ import annotations

from pathlib import Path

from mitosis import policies, replication
from numalab.run.system import System

SYSTEM = System(
    name="mitosis",
    summary="page tables on NUMA machines: where they lie, and what that costs (Mitosis, ASPLOS 2020)",
    policies=(*policies.POLICIES, *replication.POLICIES),
    experiments_dir=Path(__file__).parent / "experiments",
    features=replication.FEATURES,
)
