"""How many NOPs of hooks a function has, and how many it may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mitosis.nops.sites import KEY, NOPS, Site

#: Function → how many NOPs it may have at most, with all that the compiler put into it. Where it put the function
#: itself into another one, those of the piece that is this function count. Not each is passed for each page: the two
#: of a lazy-MMU section stand outside the loop, others in branches that exclude each other.
HOT: Mapping[str, int] = {
    # mprotect: one for all present entries of the table; sections; swap, migration and uffd entries
    "change_pte_range": 6,
    # munmap: for single pages and for batches of them; exit asks nothing
    "zap_pte_range": 13,
    # fork: one for all of the parent's table and one for the child's; sections; a copied page, swap entries
    "copy_pte_range": 9,
    # mremap
    "move_ptes": 5,
    # page faults: before and after handle_mm_fault, under the VMA lock or the mmap lock
    "do_user_addr_fault": 5,
    # the copy, and the entry that is made writable in place of one
    "do_wp_page": 2,
    "set_pte_range": 1,
    "ptep_set_access_flags": 1,
    "pmd_install": 1,
    # reclaim; the compiler has made two paths of one test
    "ptep_test_and_clear_young": 2,
    "ptep_clear_flush": 1,
    "try_to_unmap_one": 9,
    # a process gets its CPU, gives it back, flushes its TLB, returns to user mode, begins and ends
    "switch_mm_irqs_off": 2,
    "flush_tlb_mm_range": 1,
    "native_flush_tlb_local": 1,
    "arch_exit_to_user_mode_prepare": 1,
    "mm_init": 1,
    "exit_mmap": 1,
    "free_pgd_range": 4,
}


@dataclass(frozen=True)
class Row:
    """A function with its NOPs; `most`: how many it may have, None when nothing is said."""

    function: str
    sites: tuple[Site, ...]
    most: int | None

    @property
    def exceeded(self) -> bool:
        """Whether it has more than it may."""
        return self.most is not None and len(self.sites) > self.most

    @property
    def hooks(self) -> str:
        """The hooks in it, as people read them."""
        counts = Counter(site.hook for site in self.sites)
        return ", ".join(hook if count == 1 else f"{hook} ×{count}" for hook, count in counts.items())


def hot_rows(found: Sequence[Site], hot: Mapping[str, int]) -> list[Row]:
    """Return a row per function of `hot`."""
    return [Row(name, tuple(site for site in found if site.is_in(name)), most) for name, most in hot.items()]


def problems(found: Sequence[Site], rows: Sequence[Row]) -> list[str]:
    """Return what is not as promised, a line each."""
    said = [
        f"{site.symbol or hex(site.address)} has no NOP at {site.address:#x} but {site.code.hex(' ')}"
        for site in found
        if not site.is_nop
    ]
    said += [f"{row.function} has {len(row.sites)} NOPs, at most {row.most}" for row in rows if row.exceeded]
    # A function that lost its hooks is not cheaper but unguarded, or has another name now.
    return said + [f"{row.function} has no hook" for row in rows if not row.sites]


def to_markdown(found: Sequence[Site], rows: Sequence[Row], name: str) -> str:
    """The table as people read it."""
    sizes = Counter(len(next(nop for nop in NOPS if site.code.startswith(nop))) for site in found if site.is_nop)
    kinds = ", ".join(f"{count} of {size} bytes" for size, count in sorted(sizes.items()))
    lines = [
        f"{name}: {len(found)} places ask `{KEY}`, in {len({site.symbol for site in found})} functions; "
        f"{sum(sizes.values())} of them hold a NOP ({kinds}).",
        "",
        "| function | NOPs | at most | hooks |",
        "|---|--:|--:|---|",
    ]
    for row in rows:
        most = "" if row.most is None else row.most
        lines.append(f"| {row.function} | {len(row.sites)} | {most} | {row.hooks} |")
    return "\n".join(lines) + "\n"
