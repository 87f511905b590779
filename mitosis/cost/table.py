"""What was counted, as JSON and as a markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mitosis.cost.scenarios import Row, Scenario
from numalab.kernel.image import KernelImage
from numalab.kinds import Kind

SCHEMA = 1

_WHY_NOT_DEBIAN = """\
Debian's kernel is here for the size of things only. It is built from the same source with another configuration
(cgroup accounting, security modules, mitigations, tracing ...), which changes the instructions of these operations by
more than the patches do; a ratio to it would measure that. The bounds are held against a kernel of the same source,
configuration and compiler without the patches.
"""


@dataclass
class Table:
    """Everything one run of `python -m mitosis.cost` has found.

    Attributes:
        kernel, base, debian: the kernel under test, the one it is compared with, Debian's (None: left out).
        scenarios: each scenario with its rows.
        missing: scenario → why it was not counted.
        differences: why the bounds say nothing, because base differs in more than patches; empty: they do.
        complaints: lines in which a guest's kernel warned about itself.
        seconds: wall time of it all.
    """

    kernel: KernelImage
    base: KernelImage
    debian: KernelImage | None = None
    scenarios: list[tuple[Scenario, list[Row]]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    machine: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def exceeded(self) -> list[tuple[Scenario, Row]]:
        """The rows that cost more than was promised."""
        return [(scenario, row) for scenario, rows in self.scenarios for row in rows if row.exceeded]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; all counts are instructions of one operation."""
        return {
            "schema": SCHEMA,
            "kind": "mitosis-cost",
            "number_kind": Kind.COUNTED.value,
            "kernel": _kernel(self.kernel),
            "base": _kernel(self.base),
            "debian": _kernel(self.debian) if self.debian else None,
            "scenarios": [
                {
                    "name": scenario.name,
                    "summary": scenario.summary,
                    "policy": scenario.policy,
                    "touchers": scenario.touchers,
                    "rows": [row.to_json() for row in rows],
                }
                for scenario, rows in self.scenarios
            ],
            "missing": self.missing,
            "differences": self.differences,
            "complaints": self.complaints,
            "machine": dict(self.machine),
            "seconds": round(self.seconds, 1),
        }

    def to_markdown(self) -> str:
        """The tables as people read them."""
        lines = [
            f"# Instructions of memory operations: {_title(self.kernel)} against {_title(self.base)}",
            "",
            f"{Kind.COUNTED.label.capitalize()}: instructions of one operation (mean of the lower half of its "
            "repeats), and their ratio.",
            "",
        ]
        if self.differences:
            lines += ["**No bound is checked**, because the two differ in more than patches:", ""]
            lines += [*(f"* {line}" for line in self.differences), ""]
        for scenario, rows in self.scenarios:
            lines += [*_scenario(scenario, rows), ""]
        for name, why in self.missing.items():
            lines += [f"## {name}: not counted", "", why, ""]
        if any(row.debian for _, rows in self.scenarios for row in rows):
            lines += [_WHY_NOT_DEBIAN]
        lines += [f"* the guest's kernel complained: {line}" for line in self.complaints]
        return "\n".join(lines).rstrip() + "\n"

    def summary(self) -> str:
        """The ratios alone, a line per operation and mapping: what the documentation shows."""
        lines = [
            f"{Kind.COUNTED.label.capitalize()}: instructions on {_title(self.kernel)}, build-id "
            f"`{self.kernel.build_id[:16]}`, as a ratio to {_title(self.base)}, build-id `{self.base.build_id[:16]}`; "
            f"QEMU {self.machine.get('qemu_version', '–')}. **Bold**: more than was promised.",
            "",
        ]
        if self.differences:
            lines += [
                f"No bound is checked, because the two differ in more than patches: {'; '.join(self.differences)}."
            ]
            lines += [""]
        sizes = list(dict.fromkeys(row.count.size for _, rows in self.scenarios for row in rows))
        lines += [
            f"| | operation | mapping | {' | '.join(sizes)} | at most |",
            f"|---|---|---|{'--:|' * len(sizes)}---|",
        ]
        for scenario, rows in self.scenarios:
            ratios: dict[tuple[str, str], dict[str, Row]] = {}
            for row in rows:
                ratios.setdefault((row.count.op, row.count.mapping), {})[row.count.size] = row
            for (op, mapping), by_size in ratios.items():
                cells = [_ratio(by_size[size]) if size in by_size else "–" for size in sizes]
                bound = next(iter(by_size.values())).bound
                end = "" if bound is None else f"{bound:g}"
                lines.append(f"| {scenario.name} | {op} | {mapping} | {' | '.join(cells)} | {end} |")
        lines += [f"| {name} | not counted: {why} |" for name, why in self.missing.items()]
        return "\n".join(lines) + "\n"


def _ratio(row: Row) -> str:
    return f"**{row.ratio:.4f}**" if row.exceeded else f"{row.ratio:.4f}"


def _scenario(scenario: Scenario, rows: Sequence[Row]) -> list[str]:
    debian = any(row.debian for row in rows)
    head = ["operation", "mapping", "size", "base", "kernel", "per page", "ratio", "at most", ""]
    head += ["Debian's", "ratio to it"] if debian else []
    lines = [
        f"## {scenario.name}: {scenario.summary}",
        "",
        f"| {' | '.join(head)} |",
        f"|---|---|---|{'--:|' * 5}---|{'--:|--:|' if debian else ''}",
    ]
    for row in rows:
        count = row.count
        cells = [
            count.op,
            count.mapping,
            count.size,
            f"{row.base.low:,.0f}",
            f"{count.low:,.0f}",
            f"{count.low / count.pages:,.1f}",
            f"{row.ratio:.4f}",
            "" if row.bound is None else f"{row.bound:g}",
            "" if row.bound is None else "**exceeded**" if row.exceeded else "ok",
        ]
        if debian and row.debian:
            cells += [f"{row.debian.low:,.0f}", f"{count.low / row.debian.low:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _title(kernel: KernelImage) -> str:
    return f"{kernel.name} ({kernel.release})"


def _kernel(kernel: KernelImage) -> dict[str, Any]:
    return {**kernel.provenance, "name": kernel.name, "release": kernel.release, "build_id": kernel.build_id}
