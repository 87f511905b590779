"""What the laboratory learns of nuKSM (entry point `numalab.systems`)."""

from __future__ import annotations

from pathlib import Path

from nuksm import policies
from numalab.run.system import System

SYSTEM = System(
    name="nuksm",
    summary="de-duplicated pages on NUMA machines: on whose node they lie, and how they are found (nuKSM, PACT 2021)",
    policies=policies.POLICIES,
    experiments_dir=Path(__file__).parent / "experiments",
    features=policies.FEATURES,
)
