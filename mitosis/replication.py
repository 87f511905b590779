"""Policies that replicate page tables or move them (patch set "mitosis").

Replication is switched on for every new process (`vm.pgtable_replication` = 2), so that a program needs no
wrapper and no change; `replicas-on` asks for it in the process itself, because only there nodes can be chosen.
A replica is filled when a CPU of its node first needs an entry (*lazy*), or at once (*eager*, as in the paper).

A name with +M is the policy before the plus with replicas: in the paper's figures 6, 9, 10 and 11 that is
replication from the start, with the primary where the code says.
"""

from __future__ import annotations

from dataclasses import replace

from mitosis.policies import (
    AUTONUMA,
    COMMON,
    FIRST_TOUCH,
    HUGE,
    HUGE_OPTION,
    INTERLEAVE,
    PLACEMENTS,
    tables_from,
)
from numalab.features import Feature
from numalab.run.policy import NO_BALANCING, Knob, NodeList, NodeNumber, Param, Policy

REPLICATION = "/proc/sys/vm/pgtable_replication"
MODE = "/proc/sys/vm/pgtable_replication_mode"
FOLLOW_MS = "/proc/sys/vm/pgtable_replication_follow_ms"
#: A process's own file; PID is put in when it is written.
OF_PROCESS = "/proc/PID/pgtable_repl"
#: The patch set that brings all of them.
MITOSIS = "mitosis"

FEATURES = (
    Feature("replication of page tables", REPLICATION, "patch set mitosis"),
    Feature("replication and migration by process", "/proc/self/pgtable_repl", "patch set mitosis"),
)

_MODE = {
    "mode": Param(
        str,
        "eager",
        'when replicas are filled: "lazy" at first use, "eager" at once',
        choices=("lazy", "eager"),
    )
}


def replicated(base: Policy, name: str, summary: str, mode: str) -> Policy:
    """The policy `base` with replicas on all nodes, for every process that starts under it.

    Args:
        base: where page tables and data go.
        name, summary: of the new policy.
        mode: "lazy", "eager", or "{mode}" for a parameter of that name.
    """
    return replace(
        base,
        name=name,
        summary=summary,
        # The mode first: processes of the machine's own may start at any time.
        knobs=(*base.knobs, Knob(MODE, mode), Knob(REPLICATION, "2")),
        requires=(*base.requires, MITOSIS),
        params={**base.params, **(_MODE if mode == "{mode}" else {})},
    )


def _with_replicas(base: Policy) -> Policy:
    return replicated(base, f"{base.name}+M", f"{base.summary}; replicas of page tables on all nodes", "{mode}")


OFF = replace(
    FIRST_TOUCH,
    name="off",
    summary="first touch, and no replicas even for a process that asks",
    knobs=(*FIRST_TOUCH.knobs, Knob(REPLICATION, "0", optional=True)),
)
LAZY = replicated(
    FIRST_TOUCH, "lazy", "first touch; replicas of page tables on all nodes, filled at first use (F+M)", "lazy"
)
EAGER = replicated(
    FIRST_TOUCH, "eager", "first touch; replicas of page tables on all nodes, filled at once (F+M)", "eager"
)

REPLICAS_ON = replace(
    FIRST_TOUCH,
    name="replicas-on",
    summary="first touch; replicas of page tables on chosen nodes",
    # The shell asks for itself and becomes the program: replication is to outlive that, and forks.
    wrap=("sh", "-c", 'echo {mode} {on} fork exec > /proc/$$/pgtable_repl && exec "$@"', "sh"),
    requires=(MITOSIS,),
    params={**FIRST_TOUCH.params, **_MODE, "on": Param(NodeList, "all", "nodes that get a replica, such as 0-2,5")},
)

_AWAY_AND_HOME = {
    "node": Param(NodeNumber, 0, "the node the threads run on (the experiment says so: cpus)"),
    "away": Param(NodeNumber, 1, "the node the page tables are on at first"),
    **HUGE,
}

MIGRATE = Policy(
    "migrate",
    "page tables on a remote node, moved to the node of the threads when the measured phase begins",
    knobs=(NO_BALANCING, tables_from("{away}"), Knob(OF_PROCESS, "migrate {node}", mark="ready")),
    requires=(COMMON, MITOSIS),
    params=_AWAY_AND_HOME,
    options=HUGE_OPTION,
)

FOLLOW = Policy(
    "follow",
    "page tables on a remote node at first, and the kernel lets them follow the threads",
    knobs=(
        NO_BALANCING,
        tables_from("{away}"),
        Knob(FOLLOW_MS, "{interval}"),
        Knob(OF_PROCESS, "follow on", mark="init"),
    ),
    requires=(COMMON, MITOSIS),
    params={
        **{key: param for key, param in _AWAY_AND_HOME.items() if key != "node"},
        "interval": Param(int, 100, "ms between two looks of the kernel at a process that is followed"),
    },
    options=HUGE_OPTION,
)

#: The paper replicates where page tables are remote, and where many nodes share them.
WITH_REPLICAS = tuple(
    _with_replicas(base)
    for base in (AUTONUMA, INTERLEAVE, *(each for each in PLACEMENTS if each.name in ("RPLD", "RPILD")))
)

_FAIL = "/sys/kernel/debug/fail_page_alloc"
_DEBUG = "the flavour debug (CONFIG_FAIL_PAGE_ALLOC)"


def fragmented(base: Policy) -> Policy:
    """The policy `base` on a machine whose memory has hardly a free block of 2 MiB left (the paper's figure 11).

    Fault injection of a debug kernel stands in for memory that is fragmented: of the allocations of a huge page the
    share `failing` fails, whatever is free, and nothing else does.
    """
    values = {
        "verbose": "0",  # else each failure is a warning on the console
        "task-filter": "N",
        "ignore-gfp-wait": "N",
        "ignore-gfp-highmem": "N",  # all pages of programs are such
        "min-order": "9",
        "interval": "1",
        "space": "0",
        "times": "-1",
        "probability": "{failing}",
    }
    knobs = (Knob(f"{_FAIL}/{name}", value, brought_by=_DEBUG) for name, value in values.items())
    return replace(
        base,
        name=f"{base.name}-fragmented",
        summary=f"{base.summary}; memory fragmented",
        knobs=(*base.knobs, *knobs),
        params={**base.params, "failing": Param(int, 90, "per cent of the allocations of a huge page that fail")},
    )


_IN_FIGURE_11 = ("LPLD", "RPLD", "RPILD", "RPLD+M", "RPILD+M")
FRAGMENTED = tuple(fragmented(each) for each in (*PLACEMENTS, *WITH_REPLICAS) if each.name in _IN_FIGURE_11)

POLICIES = (OFF, LAZY, EAGER, REPLICAS_ON, MIGRATE, FOLLOW, *WITH_REPLICAS, *FRAGMENTED)
