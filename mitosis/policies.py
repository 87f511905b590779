"""Policies for the placement of page tables, and the placement codes of the papers.

Two ways lead to page tables on a chosen node. `vm.pgtable_alloc_node` (patch set "common") says where the
kernel takes the page tables of every process from, whatever the process asks for; a memory policy of the
process (the workloads' option `tables`) does it on any kernel, because page tables follow the policy of the
task that faults. Data goes by a policy of its region, so the two never mix.

Automatic NUMA balancing moves data and takes faults of its own: it is off everywhere but in `autonuma` (and
its replicated form), as in the paper.

The codes of Mitosis, figures 6 and 10: LP/RP local or remote page tables, LD/RD local or remote data, as
seen from the node the threads run on. An I behind one of them: STREAM loads the remote node meanwhile.
Policies that replicate or move page tables are in `mitosis.replication`.
"""

from __future__ import annotations

from numalab.run.policy import BALANCING, NO_BALANCING, Knob, NodeNumber, Param, Policy

ALLOC_NODE = "/proc/sys/vm/pgtable_alloc_node"
#: The patch set that brings `ALLOC_NODE`.
COMMON = "common"

#: Pages of the data (the papers' prefix T): chosen here, all cells of a figure can share one workload.
HUGE = {
    "huge": Param(
        str,
        "",
        'transparent huge pages of the data, "always" or "never"; by default what the workload says',
        choices=("", "always", "never"),
    )
}
HUGE_OPTION = {"huge": "{huge}"}


def tables_from(node: str, *, optional: bool = False) -> Knob:
    """The knob that makes `node` (-1: the kernel's own choice) the source of all user page tables."""
    return Knob(ALLOC_NODE, node, optional=optional)


FIRST_TOUCH = Policy(
    "first-touch",
    "page tables and data where the thread runs that touches first (the papers' F)",
    knobs=(
        NO_BALANCING,
        tables_from("-1", optional=True),
    ),
    params=HUGE,
    options=HUGE_OPTION,
)

AUTONUMA = Policy(
    "autonuma",
    "first touch, then automatic NUMA balancing moves data to its users (the papers' F-A)",
    knobs=(Knob(BALANCING, "1"), tables_from("-1", optional=True)),
    params=HUGE,
    options=HUGE_OPTION,
)

REMOTE_TABLES = Policy(
    "remote-tables",
    "all page tables on one node, which should be none the threads run on; data by first touch",
    knobs=(
        NO_BALANCING,
        tables_from("{node}"),
    ),
    requires=(COMMON,),
    params={"node": Param(NodeNumber, 1, "the node of the page tables"), **HUGE},
    options=HUGE_OPTION,
)

BOUND_TABLES = Policy(
    "bound-tables",
    "as remote-tables, but by the memory policy of the process: for kernels without patches",
    knobs=(NO_BALANCING,),
    options={"tables": "bind:{node}", **HUGE_OPTION},
    params={"node": Param(NodeNumber, 1, "the node of the page tables"), **HUGE},
)

INTERLEAVE = Policy(
    "interleave",
    "page tables and data interleaved over all nodes with memory (the papers' I)",
    knobs=(
        NO_BALANCING,
        tables_from("-1", optional=True),
    ),
    options={"memory": "interleave:{nodes}", "tables": "interleave:{nodes}", **HUGE_OPTION},
    params=HUGE,
)


def _placement(code: str, tables: str, data: str) -> Policy:
    """One of the papers' placements; `tables` and `data` name the parameter "home" or "away"."""
    words = {"home": "local", "away": "remote"}
    loaded = "I" in code
    return Policy(
        code,
        f"threads on one node, {words[tables]} page tables, {words[data]} data"
        + (", the remote node's memory under load" if loaded else ""),
        knobs=(
            NO_BALANCING,
            tables_from(f"{{{tables}}}"),
        ),
        # From the first page table on, not only once the program has pinned its threads itself.
        wrap=("taskset", "-c", "{home:cpus}"),
        requires=(COMMON,),
        options={"cpus": "{home:cpus}", "memory": f"bind:{{{data}}}", **HUGE_OPTION},
        params={
            "home": Param(NodeNumber, 0, "the node the threads run on"),
            "away": Param(NodeNumber, 1, "the remote node"),
            **HUGE,
        },
        interference=("{away}",) if loaded else (),
    )


PLACEMENTS = (
    _placement("LPLD", "home", "home"),
    _placement("LPRD", "home", "away"),
    _placement("LPRDI", "home", "away"),
    _placement("RPLD", "away", "home"),
    _placement("RPILD", "away", "home"),
    _placement("RPRD", "away", "away"),
    _placement("RPIRDI", "away", "away"),
)

POLICIES = (FIRST_TOUCH, AUTONUMA, REMOTE_TABLES, BOUND_TABLES, INTERLEAVE, *PLACEMENTS)
