"""Policies for same-page merging (KSM): on or off, who decides where a merged page lies, how many threads scan.

All are files below /sys/kernel/mm/ksm, written at run time and put back afterwards. Every policy begins and ends with
nothing merged (`run` = 2 takes all merged pages apart) and lets KSM start when the programs announce "ready": their
memory is there then, and passes are counted from the same moment in every run. On a real host this takes apart what KSM
has merged there before.

Automatic NUMA balancing is off: it takes faults on merged pages and moves the others. The scan-time advisor is off, for
it sets `pages_to_scan` itself. Pages of zeroes are merged like any others, so that savings are counted alike.
"""

from __future__ import annotations

from collections.abc import Mapping

from numalab.features import Feature
from numalab.run.policy import NO_BALANCING, Knob, NodeList, NodeNumber, Param, Policy

KSM = "/sys/kernel/mm/ksm"
#: The patch set that brings placement of merged pages and parallel scanning.
NUKSM = "nuksm"
_KERNEL = "KSM (CONFIG_KSM)"

FEATURES = (
    Feature("placement of merged pages by use", f"{KSM}/numa_policy", "patch set nuksm"),
    Feature("copies of hot merged pages", f"{KSM}/numa_max_copies", "patch set nuksm"),
    Feature("parallel scanning for equal pages", f"{KSM}/scan_threads", "patch set nuksm"),
)

#: What `run` may be: only the last of them takes apart what was merged.
_APART = Knob(f"{KSM}/run", "2", brought_by=_KERNEL)
_START = Knob(f"{KSM}/run", "1", mark="ready")

_SCAN = {
    "pages": Param(int, 1000, "pages that KSM scans each time it wakes"),
    "sleep": Param(int, 100, "ms that it sleeps in between"),
    "smart": Param(int, 1, "1: pages that were merged with none are left out of some passes, 0: never"),
}
_THREADS = {"threads": Param(int, 1, "threads that scan")}
_PLACING = {
    "on": Param(NodeList, "all", "nodes a merged page may lie on, such as 0-2,5"),
    "hysteresis": Param(int, 50, "per cent by which another node has to be cheaper for a page to move there"),
    "rate": Param(int, 4096, "pages that may move to one node per second; 0: none"),
    "sample": Param(int, 1000, "ms between two looks at the accesses to one merged page"),
    "cgroups": Param(int, 0, "1: the cpu.weight of a process's cgroup is one more factor of its weight; 0: it is not"),
}
#: What stock KSM does, on a kernel that can do otherwise.
_STOCK = {
    "numa_policy": "none",
    "numa_max_copies": "1",
    "numa_force_node": "-1",
    "numa_cgroup_weight": "0",
    "scan_threads": "1",
}


def knob(name: str, value: str, *, optional: bool = False) -> Knob:
    """One file of KSM."""
    return Knob(f"{KSM}/{name}", value, optional=optional)


def _scanning(across: str, values: Mapping[str, str]) -> tuple[Knob, ...]:
    """All knobs of a policy under which KSM runs; `values` are those that the patch set brings, in this order.

    Where one of them is as in stock KSM, a kernel will do that does not have it: the patch set's halves can be left
    out of a kernel one by one (CONFIG_KSM_NUMA, CONFIG_KSM_SCAN_THREADS).
    """
    return (
        NO_BALANCING,
        _APART,
        knob("advisor_mode", "none", optional=True),
        knob("merge_across_nodes", across),
        knob("use_zero_pages", "0", optional=True),
        knob("smart_scan", "{smart}", optional=True),
        knob("pages_to_scan", "{pages}"),
        knob("sleep_millisecs", "{sleep}"),
        *(Knob(f"{KSM}/{name}", value, without=_STOCK.get(name, "")) for name, value in values.items()),
        # Again: put back first, it takes apart what is merged before the others are put back.
        _APART,
        _START,
    )


def _placing(name: str, summary: str, values: Mapping[str, str], params: Mapping[str, Param] | None = None) -> Policy:
    """A policy of the patch set: what is not in `values` is as in stock KSM."""
    ours = {
        "numa_nodes": "{on}",
        "numa_hysteresis": "{hysteresis}",
        "numa_migrate_rate": "{rate}",
        "numa_sample_millisecs": "{sample}",
        **_STOCK,
        "numa_cgroup_weight": "{cgroups}",
        "scan_threads": "{threads}",
        **values,
    }
    return Policy(
        name,
        summary,
        knobs=_scanning("1", ours),
        requires=(NUKSM,),
        params={**_SCAN, **_PLACING, **_THREADS, **(params or {})},
    )


OFF = Policy(
    "ksm-off",
    "no pages are merged (the paper's KSM-off)",
    knobs=(NO_BALANCING, _APART),
)

STOCK = Policy(
    "ksm",
    "stock KSM: a merged page lies where the order of scanning has it",
    knobs=_scanning("1", _STOCK),
    params=_SCAN,
)

SEPARATE = Policy(
    "ksm-separate",
    "stock KSM that merges pages of one node only (merge_across_nodes = 0): all local, less is saved",
    knobs=_scanning("0", _STOCK),
    params=_SCAN,
)

FAIR = _placing("fair", "merged pages lie where they are used; equals share what is remote", {"numa_policy": "fair"})
PRIORITY = _placing(
    "priority",
    "merged pages lie where they are used, a use weighted by priority: (difference of nice + 1) : 1",
    {"numa_policy": "priority"},
)
STRICT = _placing(
    "strict",
    "merged pages lie where the process of the highest priority among the sharers uses them; equals as in fair",
    {"numa_policy": "strict"},
)
COPIES = _placing(
    "copies",
    "a hot merged page may have copies on other nodes, as long as they give up no more than a share of what is saved",
    {"numa_policy": "{placement}", "numa_max_copies": "{copies}", "numa_copies_percent": "{percent}"},
    {
        "copies": Param(int, 2, "the most copies of one page, one for each node"),
        "percent": Param(int, 10, "per cent of the saved pages that all copies together may give up"),
        "placement": Param(
            str, "fair", "who decides where pages without copies lie", choices=("none", "fair", "priority", "strict")
        ),
    },
)
FORCE_NODE = _placing(
    "force-node",
    "every merged page lies on one node",
    {"numa_force_node": "{node}"},
    {"node": Param(NodeNumber, 0, "the node")},
)
SCAN_THREADS = Policy(
    "scan-threads",
    "stock KSM's placement, several threads that scan",
    knobs=_scanning("1", {**_STOCK, "scan_threads": "{threads}"}),
    requires=(NUKSM,),
    params={**_SCAN, "threads": Param(int, 2, "threads that scan")},
)

POLICIES = (OFF, STOCK, SEPARATE, FAIR, PRIORITY, STRICT, COPIES, FORCE_NODE, SCAN_THREADS)
