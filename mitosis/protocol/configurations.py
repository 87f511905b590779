"""What is checked: the models as they should be, each seeded bug, and each place a model must be able to reach."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Expect(Enum):
    """What the checker has to say of a configuration."""

    HOLDS = "holds"
    VIOLATED = "violated"
    REACHED = "reached"


@dataclass(frozen=True)
class Configuration:
    """One model with one set of switches.

    `property_` is the claim that has to fail, for a seeded bug; the place that has to be reached, for coverage.
    `slow` ones take more than a few seconds.
    """

    name: str
    model: str
    defines: tuple[str, ...]
    expect: Expect
    says: str
    property_: str = ""
    slow: bool = False


USE_AFTER_FLUSH = "no CPU uses a page after the flush that promised its end"
WRITE_AFTER_FLUSH = "no CPU writes after the flush that promised the end of writing"
WALK_AFTER_FREE = "no CPU walks through a table after it was freed"
TABLE_AFTER_FREE = "nobody uses a table after it was freed"
LINK_TO_FREE = "nothing in memory leads to a page that is freed"
FREED_ROOT = "no CPU has a freed root loaded"
LOST_DIRTY = "no dirty bit lost"
MORE_PERMISSIVE = "after a flush no replica is more permissive than the primary"
FAULT_LOOP = "no endless fault loop"
OTHER_ROOT = "after enable or disable no CPU has the other root loaded"
STARTS_EMPTY = "roots in use again start empty: nothing was filled while disabled"
SPURIOUS_EFAULT = "no -EFAULT for what the primary permits"
STILL_MAPPED = "truncate leaves no mapping behind"
EAGER_WHOLE = "an eager replica that is linked has all the primary has"

_UNMAP = ("OPS=2", "OP_UNMAP")
_SECTION = ("OPS=1", "OP_SECTION", "WRITES", "SWITCHERS=0")
_MUNMAP = ("OPS=2", "OP_MUNMAP")
_RETRACT = ("OPS=2", "OP_RETRACT", "SWITCHERS=0")
_SHRINK = ("OPS=2",)
_WRITES = ("WRITES", "OP_WRPROTECT", "OP_CLEAN", "OP_AGE", "SWITCHERS=1")


def _good(name: str, model: str, defines: tuple[str, ...], says: str, *, slow: bool = False) -> Configuration:
    return Configuration(name, model, defines, Expect.HOLDS, says, slow=slow)


GOOD = (
    _good("native", "shootdown", ("NATIVE", "OPS=3", "OP_UNMAP", "OP_BATCH"), "Linux without replicas: the yardstick"),
    _good("unmap", "shootdown", ("OPS=3", "OP_UNMAP"), "unmap, fill, flush: two CPUs share a replica"),
    _good("unmap-2-domains", "shootdown", ("OPS=3", "OP_UNMAP", "DOMAINS=2"), "a replica for each CPU"),
    _good("unmap-mixed", "shootdown", ("OPS=3", "OP_UNMAP", "MIXED"), "one CPU on the primary root"),
    _good("unmap-batched", "shootdown", ("OPS=3", "OP_UNMAP", "OP_BATCH"), "unmap with the flush batched by reclaim"),
    _good("unmap-2-kernels", "shootdown", (*_UNMAP, "KERNELS=2"), "two CPUs unmap at a time"),
    _good("section", "shootdown", ("OPS=2", "OP_SECTION", "WRITES", "SWITCHERS=1"), "flush inside the lock"),
    _good("write", "shootdown", ("OPS=2", *_WRITES), "fork, mprotect, write-back, aging under writes"),
    _good("write-2-domains", "shootdown", ("OPS=1", "DOMAINS=2", "OP_UNMAP", *_WRITES), "a replica for each CPU"),
    _good("write-mixed", "shootdown", ("OPS=1", "MIXED", "OP_UNMAP", *_WRITES), "one CPU on the primary root"),
    _good("munmap", "tables", ("OPS=3", "OP_MUNMAP"), "tables freed through mmu_gather"),
    _good("munmap-pass-through", "tables", ("OPS=3", "OP_MUNMAP", "PASS_THROUGH"), "with pass-through links"),
    _good("munmap-mixed", "tables", ("OPS=3", "OP_MUNMAP", "MIXED", "PASS_THROUGH"), "one CPU on the primary root"),
    _good("retract", "tables", _RETRACT, "khugepaged frees a table under the fill's nose"),
    _good(
        "retract-munmap",
        "tables",
        ("OPS=2", "OP_RETRACT", "OP_MUNMAP", "SWITCHERS=1"),
        "... against munmap, with context switches",
        slow=True,
    ),
    _good("relocate", "tables", ("OPS=2", "OP_MIGRATE"), "M2 against fills, paging-structure caches, RCU"),
    _good("enable-disable", "roots", ("OPS=3", "OP_AGE"), "roots, reload by IPI, context switches, lazy CPUs"),
    _good("atomic", "roots", ("OPS=2", "OP_AGE", "ATOMIC", "SWITCHERS=1"), "fallback to the primary root"),
    _good("atomic-switch", "roots", ("OPS=2", "OP_AGE", "ATOMIC"), "with more context switches", slow=True),
    _good("exit", "roots", ("OPS=2", "EXIT"), "roots until pgd_free()"),
    _good("ring", "ring", (), "the hook without a lock against the first replica of its table"),
    _good("ring-bulk", "ring", ("BULK",), "... against a builder that copies links, with all its barriers"),
    _good("ring-remove", "ring", ("REMOVE",), "... against a replica that is taken out of the ring"),
    _good("shrink", "shrink", ("OPS=2", "SWITCHERS=1"), "replicas taken back without the mmap lock or a VMA lock"),
    _good("shrink-eager", "shrink", ("OPS=1", "EAGER"), "... and built again, with fills by other domains"),
    _good("migrate", "migrate", (), "M2 with rmap locks against truncate and the hardware's D bits"),
    _good("migrate-mixed", "migrate", ("MIXED",), "... with the CPU on the primary root"),
    _good("migrate-pass-through", "migrate", ("PASS_THROUGH",), "... with a pass-through link"),
    _good("migrate-never-none", "migrate", ("NEVER_NONE",), "M2 without rmap locks: the slot is never empty"),
    _good("migrate-never-none-mixed", "migrate", ("NEVER_NONE", "MIXED"), "... with the CPU on the primary root"),
)


def _bug(
    switch: str, model: str, defines: tuple[str, ...], property_: str, says: str, suffix: str = ""
) -> Configuration:
    name = "bug-" + switch.removeprefix("BUG_").lower().replace("_", "-") + suffix
    return Configuration(name, model, (*defines, switch), Expect.VIOLATED, says, property_)


BUGS = (
    _bug("BUG_NO_TLB_GEN", "shootdown", _UNMAP, USE_AFTER_FLUSH, "flush without raising tlb_gen: a page"),
    _bug("BUG_NO_TLB_GEN", "tables", _MUNMAP, WALK_AFTER_FREE, "flush without raising tlb_gen: a table", "-table"),
    _bug(
        "BUG_NO_TLB_GEN",
        "roots",
        ("OPS=2", "BUG_ROOT_CHANGE_NOFLUSH"),
        WALK_AFTER_FREE,
        "disable without raising tlb_gen",
        "-disable",
    ),
    _bug("BUG_STALE_READ", "shootdown", _UNMAP, USE_AFTER_FLUSH, "fill from a value read before the lock"),
    _bug("BUG_LINK_WITHOUT_REREAD", "tables", _RETRACT, LINK_TO_FREE, "link without reading the parent again"),
    _bug("BUG_NO_RCU_OVER_LINK", "tables", _RETRACT, LINK_TO_FREE, "table freed and used anew between leaf and link"),
    _bug("BUG_NO_VMA_LOCK", "tables", _MUNMAP, LINK_TO_FREE, "fill without the VMA lock, against free_pgtables()"),
    _bug("BUG_HOOK_AFTER_FLUSH", "shootdown", _UNMAP, USE_AFTER_FLUSH, "replica's leaf zapped after the flush"),
    _bug("BUG_HOOK_AFTER_FLUSH", "tables", _MUNMAP, WALK_AFTER_FREE, "replica's link zapped after the flush", "-table"),
    _bug(
        "BUG_HOOK_STOPS_EARLY",
        "shootdown",
        (*_UNMAP, "DOMAINS=2"),
        MORE_PERMISSIVE,
        "hook forgets the last replica of the ring",
    ),
    _bug(
        "BUG_W_WITHOUT_D", "shootdown", ("OPS=1", "WRITES", "OP_CLEAN", "SWITCHERS=0"), LOST_DIRTY, "W copied with D=0"
    ),
    _bug(
        "BUG_HOOK_AFTER_UNLOCK",
        "shootdown",
        (*_UNMAP, "KERNELS=2", "SWITCHERS=0"),
        MORE_PERMISSIVE,
        "delayed stores after the unlock, before the flush",
    ),
    _bug(
        "BUG_LAZY_MMU_FLUSH_INSIDE",
        "shootdown",
        _SECTION,
        WRITE_AFTER_FLUSH,
        "stores delayed to the leave of migrate_vma_collect_pmd(): flush, leave, unlock",
    ),
    _bug(
        "BUG_LAZY_MMU_UNLOCK_INSIDE",
        "shootdown",
        _SECTION,
        WRITE_AFTER_FLUSH,
        "stores delayed to the leave of pagemap_scan_pmd_entry(): flush, unlock, leave",
    ),
    _bug("BUG_WRONG_DOMAIN", "shootdown", (*_UNMAP, "DOMAINS=2"), FAULT_LOOP, "fill by CPU map, not by loaded root"),
    _bug("BUG_FREED_TABLES_NOT_SET", "tables", _MUNMAP, WALK_AFTER_FREE, "flush that passes lazy CPUs by"),
    _bug("BUG_REPLICA_FREED_AT_ONCE", "tables", _MUNMAP, WALK_AFTER_FREE, "replica freed before the flush"),
    _bug("BUG_ROOT_FREED_AT_DISABLE", "roots", ("OPS=2",), FREED_ROOT, "root freed while a CPU is inside switch_mm"),
    _bug("BUG_ROOT_FREED_AT_EXIT", "roots", ("OPS=1", "EXIT"), FREED_ROOT, "root freed at exit_mmap()"),
    _bug("BUG_NO_RELOAD", "roots", ("OPS=2",), OTHER_ROOT, "enable and disable without the IPI"),
    _bug("BUG_NO_BARRIER", "roots", ("OPS=2",), OTHER_ROOT, "mm_cpumask read before `active` is written"),
    _bug("BUG_ROOT_BEFORE_CPUMASK", "roots", ("OPS=2",), OTHER_ROOT, "switch_mm reads the root before it sets its bit"),
    _bug("BUG_ROOT_EMPTIED_LATE", "roots", ("OPS=2",), LINK_TO_FREE, "user half of the root emptied after the free"),
    _bug(
        "BUG_TEST_BEFORE_VMA_LOCK", "roots", ("OPS=3",), STARTS_EMPTY, "fill tests the root before it has the VMA lock"
    ),
    _bug(
        "BUG_ROOT_CHANGE_NOFLUSH",
        "roots",
        ("OPS=1", "OP_AGE", "ATOMIC", "SWITCHERS=1"),
        SPURIOUS_EFAULT,
        "primary root loaded with CR3_NOFLUSH over a replica's paging-structure cache",
    ),
    _bug("BUG_COPY_BEFORE_RING", "ring", ("BULK",), LINK_TO_FREE, "links copied before the replica is on the ring"),
    _bug("BUG_NO_RECHECK", "ring", ("BULK",), LINK_TO_FREE, "links copied and not read again"),
    _bug("BUG_NO_BARRIER_IN_HOOK", "ring", ("BULK",), LINK_TO_FREE, "hook reads the ring before its store is out"),
    _bug("BUG_TAKEN_FORGETS_THE_RING", "ring", ("REMOVE",), LINK_TO_FREE, "a replica taken out forgets the next one"),
    _bug("BUG_PLAIN_STORE", "shrink", _SHRINK, LINK_TO_FREE, "pass-through stored over the zero of a hook"),
    _bug("BUG_NO_WALK_LOCK", "shrink", _SHRINK, TABLE_AFTER_FREE, "tables freed while the shrinker looks at them"),
    _bug("BUG_NO_RING_RECHECK", "shrink", _SHRINK, LINK_TO_FREE, "link to a replica that was taken out meanwhile"),
    _bug("BUG_NO_FLUSH", "shrink", _SHRINK, WALK_AFTER_FREE, "replica taken back and freed without a flush"),
    _bug("BUG_TAKEN_FREED_AT_ONCE", "shrink", _SHRINK, TABLE_AFTER_FREE, "... without a grace period"),
    _bug(
        "BUG_FILL_BEHIND_PASS_THROUGH",
        "shrink",
        ("OPS=1", "EAGER"),
        EAGER_WHOLE,
        "fill puts a new replica over the pass-through in a PUD table",
    ),
    _bug("BUG_NO_RMAP_LOCK", "migrate", (), STILL_MAPPED, "M2 without rmap locks leaves the PMD empty for a while"),
    _bug("BUG_COPY_BEFORE_FLUSH", "migrate", ("MIXED",), LOST_DIRTY, "M2 copies before the flush"),
    _bug("BUG_NO_MERGE", "migrate", ("NEVER_NONE", "MIXED"), LOST_DIRTY, "D bits set in the old table not merged"),
    _bug("BUG_FREE_WITHOUT_RCU", "migrate", ("NEVER_NONE",), TABLE_AFTER_FREE, "old table freed under an rmap walk"),
)


def _reach(place: str, model: str, defines: tuple[str, ...], says: str) -> Configuration:
    name = "reach-" + place.removeprefix("COVER_").lower().replace("_", "-")
    return Configuration(name, model, (*defines, f"COVERAGE={place}"), Expect.REACHED, says, place)


COVERAGE = (
    _reach("COVER_INACTIVE_PCID", "shootdown", _UNMAP, "a CPU comes back and finds its ASID behind"),
    _reach("COVER_LAZY_FLUSH", "shootdown", _UNMAP, "a lazy CPU comes back and finds that a flush passed it by"),
    _reach("COVER_LAZY_IPI", "tables", _MUNMAP, "a lazy CPU is told that tables are freed"),
    _reach("COVER_IPI_WHILE_SWITCHING", "roots", ("OPS=2",), "an IPI to a CPU inside switch_mm"),
    _reach("COVER_CHANGED_BEFORE_FILL", "shootdown", _UNMAP, "the primary changed between fault and fill"),
    _reach("COVER_REWRITE", "shootdown", ("OPS=1", *_WRITES), "the hook rewrites a slot"),
    _reach("COVER_OLD_VALUE", "shootdown", _UNMAP, "a TLB filled from a replica after the primary changed"),
    _reach("COVER_UPGRADED", "shootdown", ("OPS=1", *_WRITES), "write permission back before the flush returned"),
    _reach("COVER_LINK_REFUSED", "tables", _RETRACT, "the table was retracted between leaf and link"),
    _reach("COVER_DANGLING", "tables", _MUNMAP, "a freed table is still in a paging-structure cache"),
    _reach("COVER_WALK_IN_WINDOW", "tables", _MUNMAP, "... and is walked inside switch_mm, as in Linux"),
    _reach("COVER_REUSED_WHILE_CACHED", "tables", _MUNMAP, "... and its page is a table again"),
    _reach("COVER_RCU_WAITS", "tables", _RETRACT, "the free waits for a fill"),
    _reach("COVER_TABLE_FREED", "roots", ("OPS=2",), "disable frees a replica table"),
    _reach(
        "COVER_FALLBACK", "roots", ("OPS=1", "OP_AGE", "ATOMIC", "SWITCHERS=1"), "an atomic access on the primary root"
    ),
    _reach("COVER_PGD_FREE", "roots", ("OPS=1", "EXIT"), "the roots are freed"),
    _reach("COVER_PASS_THROUGH_PMD", "shrink", _SHRINK, "a walk passes through to a PMD table"),
    _reach("COVER_TAKEN_BEFORE_LINK", "shrink", _SHRINK, "the replica was taken out between leaf and link"),
    _reach("COVER_HOOK_WAS_FASTER", "shrink", _SHRINK, "the slot was zeroed before it became a pass-through"),
    _reach("COVER_MIGRATED", "migrate", ("NEVER_NONE",), "truncate waits for the old table and finds the new one"),
)

ALL = (*GOOD, *BUGS, *COVERAGE)
