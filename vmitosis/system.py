"""What the laboratory learns of vMitosis (entry point `numalab.systems`)."""

from __future__ import annotations

from pathlib import Path

from numalab.features import Feature
from numalab.run.system import System
from vmitosis import policies

FEATURES = (
    Feature("replication of second-level page tables", "/sys/module/kvm/parameters/numa_mmu", "patch set vmitosis"),
    Feature(
        "domains of replicas in NUMA-oblivious guests", "/sys/kernel/mm/pgtable_repl/provider", "patch set vmitosis"
    ),
)

SYSTEM = System(
    name="vmitosis",
    summary="both levels of a virtual machine's page tables, moved and replicated (vMitosis, ASPLOS 2021)",
    policies=policies.POLICIES,
    experiments_dir=Path(__file__).parent / "experiments",
    features=FEATURES,
)
