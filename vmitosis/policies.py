"""Policies for both levels of a guest's page tables, under the paper's codes.

Files of three machines are set, told apart by what their path begins with (`vmitosis.lab` knows them): `vm:/` is the
virtual machine itself (its shape, the second level of its page tables, where it runs), `host:/` the machine it runs in,
and anything else the guest. What a kernel lacks is refused as for any policy.

Codes: the first letter is the guest's table, the second the second level's, Local or Remote as seen from the node the
threads run on; I: STREAM loads the remote node. +E migrates the second level (the paper's ePT), +G the guest's tables,
+M both. F first touch, FA with automatic NUMA balancing, I interleaved; an M behind: both levels replicated. O: the
guest sees no nodes; MP learns them from the host (NO-P), MF finds them itself (NO-F). The codes' T (huge pages) is the
parameter `huge`, TF a policy ending in -fragmented.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mitosis.policies import COMMON, HUGE, HUGE_OPTION, tables_from
from mitosis.replication import MITOSIS, MODE, OF_PROCESS, REPLICATION, fragmented
from numalab.errors import UserError
from numalab.run.policy import BALANCING, NO_BALANCING, Knob, NodeNumber, Param, Policy

VMITOSIS = "vmitosis"
VM, HOST = "vm:", "host:"
#: The shape of the guest (`vmitosis.provision.parse_shape`); writing it boots it.
SHAPE = f"{VM}/shape"
#: Mode of the second level: off, local or replicate.
SECOND = f"{VM}/numa_mmu"
#: The node whose tables every vCPU walks; -1: that of the node it runs on.
NID = f"{VM}/mmu_nid"
#: Groups of vCPUs of a NUMA-oblivious guest: "native", "pv", "probe" (found by latency) or "told" (as they are pinned).
DOMAINS = f"{VM}/domains"
#: Pages of the guest set aside in each group, on its node; a guest that sees no nodes cannot ask for a node's.
POOL = f"{VM}/pool"
#: Seconds between two looks whether groups found by latency still hold (NO-F); 0: only after the machine was moved.
REPROBE = f"{VM}/reprobe"
#: "program NODE DELAY" or "vm NODE DELAY": move the threads, or all vCPUs, to a node, after so many seconds;
#: `WITH_SECOND` behind it: and have all vCPUs walk that node's second-level tables from then on.
MOVE = f"{VM}/move"
WITH_SECOND = "second-level"
FOLLOW = f"{HOST}/sys/module/kvm/parameters/numa_mmu_follow_ms"
SWITCH = f"{HOST}/sys/module/kvm/parameters/numa_mmu_switch_ms"
#: Whether the host offers its guests a map of their vCPUs' nodes (NO-P); asked for when a guest is made.
HOST_MAP = f"{HOST}/sys/module/kvm/parameters/numa_pv"
HOST_BALANCING = Knob(f"{HOST}{BALANCING}", "0", optional=True)

_SHAPE: Mapping[str, Param] = {
    "vcpus": Param(int, 1, "vCPUs of the guest on each node it lies on"),
    "memory": Param(str, "96M", "memory of the guest on each node it lies on"),
    "backing": Param(str, "4K", "pages of the host behind the guest's memory", choices=("4K", "huge")),
}
_WHERE: Mapping[str, Param] = {
    "home": Param(NodeNumber, 0, "the node the threads run on"),
    "away": Param(NodeNumber, 1, "the remote node"),
}
_FOLLOW: Mapping[str, Param] = {
    "interval": Param(int, 1000, "ms between two looks of the host's kernel at a machine whose tables may follow it")
}


@dataclass(frozen=True)
class Second:
    """What becomes of the second level: its mode, which node's tables vCPUs walk, and whether tables follow."""

    mode: str
    nid: str = "-1"
    follow: bool = False

    def knobs(self) -> tuple[Knob, ...]:
        """As knobs; the stock behaviour needs none, and a kernel without the feature is fine for it."""
        if self.mode == "off":
            return (Knob(SECOND, "off", optional=True),)
        interval = "{interval}" if self.follow else "0"
        # Where first: a tree that is made before a vCPU is told its node lies where it happens to run.
        return (Knob(FOLLOW, interval), Knob(NID, self.nid), Knob(SECOND, self.mode))


def _shape(words: str) -> Knob:
    return Knob(SHAPE, f"{words} vcpus={{vcpus}} memory={{memory}} backing={{backing}}")


def two_level(
    name: str,
    summary: str,
    *,
    shape: str,
    second: Second,
    guest: tuple[Knob, ...] = (),
    late: tuple[Knob, ...] = (),
    thin: bool = False,
    balancing: str = "",
    interference: bool = False,
    options: Mapping[str, str] | None = None,
) -> Policy:
    """A policy for both levels.

    Args:
        name, summary: for people.
        shape: words of the guest's shape: thin or wide, NV or NO.
        second: the second level.
        guest: knobs of the guest.
        late: what is written at a mark.
        thin: the program runs on the node `home`, its memory there.
        balancing: "guest" or "host": where automatic NUMA balancing is on.
        interference: STREAM on the node `away`.
        options: of the workload.
    """
    told = any(knob.path == DOMAINS and knob.value == "pv" for knob in guest)
    knobs = (
        replace(HOST_BALANCING, value="1", optional=False) if balancing == "host" else HOST_BALANCING,
        *([Knob(HOST_MAP, "Y")] if told else []),
        _shape(f"{shape} told" if told else shape),
        Knob(BALANCING, "1") if balancing == "guest" else NO_BALANCING,
        *second.knobs(),
        *guest,
        *late,
    )
    paths = [knob.path for knob in knobs if not knob.optional]
    requires = [
        *([COMMON] if any("pgtable_alloc_node" in path for path in paths) else []),
        *([MITOSIS] if any("pgtable_repl" in path for path in paths) else []),
        *([VMITOSIS] if second.mode != "off" or DOMAINS in paths else []),
    ]
    placed = {"cpus": "{home:cpus}", "memory": "bind:{home}"} if thin else {}
    moves = any("{home" in knob.value or "{away" in knob.value for knob in knobs)
    return Policy(
        name,
        summary,
        knobs=knobs,
        wrap=("taskset", "-c", "{home:cpus}") if thin else (),
        requires=tuple(requires),
        params={
            **_SHAPE,
            **(_WHERE if thin or interference or moves else {}),
            **(_FOLLOW if second.follow else {}),
            **HUGE,
        },
        options={**placed, **HUGE_OPTION, **(options or {})},
        interference=("{away}",) if interference else (),
    )


def _thin(code: str, suffix: str = "") -> Policy:
    """Figures 1 and 3: a Thin program in a Wide NUMA-visible guest, each level local or remote."""
    where = {"L": "{home}", "R": "{away}"}
    words = {"L": "local", "R": "remote"}
    late: list[Knob] = []
    moved = []
    if suffix in ("E", "M"):
        # Not -1: STREAM's vCPU is on the remote node, and where any vCPU runs is no wrong place (mode local).
        late.append(Knob(NID, "{home}", mark="ready"))
        moved.append("the second level")
    if suffix in ("G", "M"):
        late.append(Knob(OF_PROCESS, "migrate {home}", mark="ready"))
        moved.append("the guest's tables")
    summary = f"one node's program; guest tables {words[code[0]]}, second level {words[code[1]]}"
    summary += ", the remote node under load" if code.endswith("I") else ""
    summary += f"; {' and '.join(moved)} migrated at the measured phase" if moved else ""
    return two_level(
        f"{code}+{suffix}" if suffix else code,
        summary,
        shape="wide NV",
        second=Second("local", where[code[1]], follow=suffix in ("E", "M")),
        guest=(tables_from(where[code[0]]),),
        late=tuple(late),
        thin=True,
        interference=code.endswith("I"),
    )


THIN = tuple(_thin(code) for code in ("LL", "LR", "RL", "RR", "LRI", "RLI", "RRI"))
MIGRATED = tuple(_thin(code, suffix) for code in ("RR", "RRI") for suffix in ("E", "G", "M"))
FRAGMENTED = tuple(fragmented(each) for each in (*THIN, *MIGRATED) if each.name in ("LL", "RRI", "RRI+E", "RRI+M"))

_REPLICAS = (Knob(MODE, "eager"), Knob(REPLICATION, "2"))
_DATA: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "F": ("first touch", "", {}),
    "FA": ("first touch, and automatic NUMA balancing in the guest", "guest", {}),
    "I": ("interleaved over the guest's nodes", "", {"memory": "interleave:{nodes}", "tables": "interleave:{nodes}"}),
}


def _wide(code: str, replicated: bool) -> Policy:
    """Figure 4: a Wide program in a Wide NUMA-visible guest."""
    words, balancing, options = _DATA[code]
    return two_level(
        f"{code}M" if replicated else code,
        f"wide, NUMA-visible: {words}" + ("; both levels replicated" if replicated else ""),
        shape="wide NV",
        second=Second("replicate" if replicated else "off"),
        guest=_REPLICAS if replicated else (),
        balancing=balancing,
        options=options,
    )


WIDE = tuple(_wide(code, replicated) for code in _DATA for replicated in (False, True))


_POOL: Mapping[str, Param] = {
    "pool": Param(int, 512, "pages of 4K set aside in each group for page tables; whole blocks of 2M")
}


def _oblivious(
    name: str, summary: str, domains: str, late: tuple[Knob, ...] = (), params: Mapping[str, Param] | None = None
) -> Policy:
    """Figure 5: a Wide program in a Wide NUMA-oblivious guest."""
    made = two_level(
        name,
        f"wide, NUMA-oblivious: {summary}",
        shape="wide NO",
        second=Second("replicate" if domains else "off"),
        guest=(Knob(DOMAINS, domains), Knob(POOL, "{pool}"), *_REPLICAS) if domains else (),
        late=late,
    )
    return replace(made, params={**made.params, **_POOL, **(params or {})}) if domains else made


OF = _oblivious("OF", "first touch", "")
OFMP = _oblivious("OFMP", "both levels replicated, the host tells nodes (NO-P)", "pv")
OFMF = _oblivious(
    "OFMF",
    "both levels replicated, nodes found by latency (NO-F)",
    "probe",
    late=(Knob(REPROBE, "{reprobe}", mark="ready"),),
    params={"reprobe": Param(int, 0, "seconds between two looks whether groups still hold; 0: none")},
)
OFMT = _oblivious("OFMT", "as OFMF, with the groups the laboratory knows: where every latency is equal", "told")
OBLIVIOUS = (OF, OFMP, OFMF, OFMT)

_MOVE: Mapping[str, Param] = {"after": Param(int, 10, "seconds of the measured phase before the move")}


def _moved(visible: bool, suffix: str) -> Policy:
    """Figure 6: everything local on `home`, then the program (NV) or its machine (NO) moves to `away`, under load."""
    second = suffix in ("E", "M")
    guest: tuple[Knob, ...] = (Knob(OF_PROCESS, "follow on", mark="init"),) if suffix in ("G", "M") else ()
    if suffix == "ideal":
        level = Second("replicate")
        guest = _REPLICAS if visible else ()
    else:
        # A machine that moves is followed by itself. When a program moves, vCPUs stay: the move says where tables go.
        level = Second("local", "-1" if second and not visible else "{home}", follow=second)
    follows = {
        "": "no table follows",
        "E": "the second level follows",
        "G": "the guest's tables follow",
        "M": "both levels follow",
        "ideal": "tables are on both nodes from the start",
    }[suffix]
    who, words = ("the program", "program") if visible else ("the virtual machine", "vm")
    also = f" {WITH_SECOND}" if visible and second else ""
    made = two_level(
        f"move-{'NV' if visible else 'NO'}" + (f"+{suffix}" if suffix else ""),
        f"{who} moves to a loaded node in the measured phase; {follows}",
        shape="wide NV" if visible else "thin NO home={home}",
        second=level,
        guest=guest,
        late=(Knob(MOVE, f"{words} {{away}} {{after}}{also}", mark="ready"),),
        thin=visible,
        balancing="guest" if visible else "host",
    )
    # The program may use both nodes: what it is held to at first is lifted by the move. Its data follows by balancing.
    options = {key: text for key, text in made.options.items() if key not in ("cpus", "memory")}
    return replace(made, params={**made.params, **_MOVE}, options=options)


MOVED = (
    *(_moved(True, suffix) for suffix in ("", "E", "G", "M", "ideal")),
    *(_moved(False, suffix) for suffix in ("", "E", "ideal")),
)

SECONDS: Mapping[str, Second] = {
    "off": Second("off"),
    "local": Second("local"),
    "replicated": Second("replicate"),
    "migrating": Second("local", follow=True),
}
GUESTS: Mapping[str, tuple[Knob, ...]] = {
    "off": (),
    "replicated": _REPLICAS,
    "migrating": (Knob(OF_PROCESS, "follow on", mark="init"),),
}
SIGHTS: Mapping[str, str] = {"NV": "", "NO-P": "pv", "NO-F": "probe"}


def combined(second: str, guest: str, sight: str) -> Policy:
    """Any second level with any guest's tables, for what the guest sees: "NV-migrating-replicated", say.

    Args:
        second, guest, sight: of `SECONDS`, `GUESTS`, `SIGHTS`.

    Raises:
        UserError: the guest's tables cannot migrate in a guest that sees no nodes; the kernel says EOPNOTSUPP.
    """
    if guest == "migrating" and sight != "NV":
        raise UserError(
            f"{sight}: the tables of a guest that sees no nodes cannot migrate (EOPNOTSUPP): its kernel does not know "
            "where they are. They are memory of the machine's, which moves them with the rest"
        )
    domains = SIGHTS[sight]
    pooled = bool(domains) and guest == "replicated"
    made = two_level(
        f"{sight}-{second}-{guest}",
        f"wide, {sight}: second level {second}, guest's tables {guest}",
        shape="wide NO" if domains else "wide NV",
        second=SECONDS[second],
        guest=(
            *([Knob(DOMAINS, domains)] if domains else []),
            *([Knob(POOL, "{pool}")] if pooled else []),
            *GUESTS[guest],
        ),
    )
    return replace(made, params={**made.params, **_POOL}) if pooled else made


COMBINED = tuple(
    combined(second, guest, sight)
    for sight in SIGHTS
    for second in SECONDS
    for guest in GUESTS
    if guest != "migrating" or sight == "NV"
)

POLICIES = (*THIN, *MIGRATED, *FRAGMENTED, *WIDE, *OBLIVIOUS, *MOVED, *COMBINED)
