"""The table of costs, and whether it keeps what is promised: off costs nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

from numalab.kinds import Kind
from vmitosis.cost.follow import Followed
from vmitosis.cost.measure import EXITS, MIB, NODES, PAGES, Counted

#: Instructions of a fault, and of an exit, under the mode `off`, against the kernel without patches.
OFF_BOUND = 1.01
_ABOUT = (
    f"Counted in emulation: a virtual machine of {NODES} vCPUs, each on a node of its own, touches {MIB} MiB of 4K "
    f"pages ({PAGES:,}), one vCPU after the other; then {EXITS:,} exits each. Faults on node 0 make the first tree; "
    "those on node 1 come because its tree is another one. Instructions are all that the machine executes, timer "
    "interrupts included (0.1 %). The guest has no page tables of its own, and its memory was there before."
)


@dataclass
class Table:
    """What was counted.

    Attributes:
        counted: runs, that of the kernel without patches first.
        followed: a guest moved; None: not measured.
        missing: what could not be counted → why.
        differences: of the two kernels beside the patches (`numalab.run.counting.differences`); with some, nothing is
            promised of the ratios.
        builds: name of each kernel → its build-id.
    """

    counted: list[Counted] = field(default_factory=list)
    followed: Followed | None = None
    missing: dict[str, str] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    builds: dict[str, str] = field(default_factory=dict)

    def ratio(self, run: Counted, what: str) -> float | None:
        """Instructions of a `fault` or `exit` against the kernel without patches; None: one of them has none."""
        base = next((each for each in self.counted if each.mode == "kernel"), None)
        if base is None or run is base:
            return None
        mine, theirs = (_instructions(each, what) for each in (run, base))
        return mine / theirs if mine and theirs else None

    @property
    def exceeded(self) -> list[str]:
        """What is promised and not kept."""
        found = []
        for run in self.counted:
            for what in ("fault", "exit") if run.mode == "off" and not self.differences else ():
                ratio = self.ratio(run, what)
                if ratio is not None and ratio > OFF_BOUND:
                    found.append(f"{run.kernel}, off: instructions of a {what}: {ratio:.4f} > {OFF_BOUND:g}")
        if self.followed and self.followed.old_gone > self.followed.promised:
            found.append(f"old tables gone after {self.followed.old_gone:.1f} s, not {self.followed.promised:.1f}")
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "number_kind": Kind.COUNTED.value,
            "pages": PAGES,
            "runs": [
                {
                    "kernel": run.kernel,
                    "mode": run.mode,
                    "phases": [
                        {"name": name, "vcpu": vcpu, **vars(phase)} for (name, vcpu), phase in run.phases.items()
                    ],
                    "table_bytes": _bytes(run),
                    "fault_ratio": self.ratio(run, "fault"),
                    "exit_ratio": self.ratio(run, "exit"),
                }
                for run in self.counted
            ],
            "followed": vars(self.followed) | {"clock": "of the emulated machine"} if self.followed else None,
            "missing": dict(self.missing),
            "differences": list(self.differences),
            "builds": dict(self.builds),
        }

    def to_markdown(self) -> str:
        """For a page."""
        heads = ["kernel", "mode", *(f"faults per page, node {node}" for node in range(NODES))]
        heads += [*(f"instructions per fault, node {node}" for node in range(NODES)), "against no patches"]
        heads += ["instructions per exit", "against no patches", "table bytes by tree"]
        lines = [*wrap(_ABOUT, 118), "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for run in self.counted:
            faults = [run.per_fault(node) for node in range(NODES)]
            cells = [run.kernel, "–" if run.mode == "kernel" else run.mode]
            cells += [f"{run.per_page(node):.3f}" for node in range(NODES)]
            cells += ["–" if value is None else f"{value:,.0f}" for value in faults]
            cells += [_ratio(self.ratio(run, "fault")), f"{run.per_exit(0):,.0f}", _ratio(self.ratio(run, "exit"))]
            cells.append(", ".join(f"{tree}: {size:,}" for tree, size in _bytes(run).items()) or "not told")
            lines.append(f"| {' | '.join(cells)} |")
        if self.builds:
            builds = ", ".join(f"{name} {build or 'unknown'}" for name, build in self.builds.items())
            lines += ["", f"Build-ids: {builds}."]
        lines += [f"\nNot counted: {name}: {why}" for name, why in self.missing.items()]
        if self.differences:
            lines += ["", f"The kernels differ beside the patches: {'; '.join(self.differences)}."]
        if self.followed:
            made = self.followed
            told = (
                f"A Thin guest that is moved (mode `local`, {made.entries:,} entries in {made.tables} tables, worker "
                f"each {made.interval:g} s): the old tables are gone after {made.old_gone:.1f} s (promised: "
                f"{made.promised:g} s), 9 of 10 entries are there again after {made.refilled:.1f} s. Seconds of the "
                "emulated machine's clock: how long refaults take says nothing of hardware."
            )
            lines += ["", *wrap(told, 118)]
        return "\n".join(lines) + "\n"

    def summary(self) -> str:
        """For a page of the documentation: all of it."""
        return self.to_markdown()


def _instructions(run: Counted, what: str) -> float | None:
    return run.per_exit(0) if what == "exit" else run.per_fault(0)


def _bytes(run: Counted) -> dict[str, int]:
    if run.tables is None:
        return {}
    return {"any node" if nid is None else f"node {nid}": run.tables.bytes_of(nid) for nid in run.tables.roots}


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
