"""What was counted, as JSON and as markdown, and what was promised of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from nuksm.cost.growth import ASKED, Growth, growth
from nuksm.cost.passes import Pass
from nuksm.cost.scan import NO_POLICY
from nuksm.metrics import FOUND, passes_to
from numalab.kernel.image import KernelImage
from numalab.kinds import Kind
from numalab.units import parse_size

SCHEMA = 2
#: Instructions of each pass on the kernel under test with everything off, as a ratio to the kernel it is compared with.
OFF_BOUND = 1.005
#: Pages per unit of time that several workers scan, as a ratio to one, by their number.
SPEEDUP: Mapping[int, float] = {4: 2.5}
_FRONT, _MERGER = attrgetter("front_per_page"), attrgetter("merger_per_page")


@dataclass(frozen=True)
class Case:
    """Passes over one memory.

    Attributes:
        size: of each of the two processes.
        content: a name in `nuksm.cost.scan.CONTENTS`.
        threads: that scan.
        passes: on the kernel under test.
        base: on the one it is compared with, empty: not counted there (it has one thread only).
        policy: that places pages meanwhile.
    """

    size: str
    content: str
    threads: int
    passes: Sequence[Pass]
    base: Sequence[Pass] = ()
    policy: str = NO_POLICY

    @property
    def off(self) -> bool:
        """Whether everything is off that the base does not have."""
        return self.threads == 1 and self.policy == NO_POLICY

    @property
    def title(self) -> str:
        """For messages."""
        policy = "" if self.policy == NO_POLICY else f", {self.policy}"
        return f"{self.size} {self.content}, {self.threads} thread{'s' if self.threads > 1 else ''}{policy}"

    @property
    def ratios(self) -> list[float]:
        """Instructions of each pass, as a ratio to the same pass of the base; empty: not counted there."""
        return [
            mine.instructions / its.instructions for mine, its in zip(self.passes, self.base, strict=bool(self.base))
        ]

    @property
    def ratio(self) -> float | None:
        """Instructions of all passes together, as a ratio to the base."""
        base = sum(each.instructions for each in self.base)
        return sum(each.instructions for each in self.passes) / base if base else None

    @property
    def found_after(self) -> float | None:
        """Passes until 90 % of the final savings were there."""
        return passes_to([(float(each.number), float(each.sharing)) for each in self.passes], FOUND)

    def per_time(self, numbers: Collection[int]) -> float:
        """Pages of the passes of these numbers for each instruction of the thread that took longest in each."""
        chosen = [each for each in self.passes if each.number in numbers]
        return sum(each.scanned for each in chosen) / sum(each.longest for each in chosen)


@dataclass
class Table:
    """Everything one run of `python -m nuksm.cost` has found.

    Attributes:
        kernel, base: the kernel under test, and the one it is compared with.
        cases: what was counted.
        missing: what was not → why.
        differences: why ratios to the base say nothing; empty: they do.
        complaints: lines in which a guest's kernel warned about itself.
    """

    kernel: KernelImage
    base: KernelImage
    cases: list[Case] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    machine: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def one(self, case: Case) -> Case | None:
        """The same memory, scanned by one thread."""
        same = (each for each in self.cases if (each.size, each.content) == (case.size, case.content))
        return next((each for each in same if each.off), None)

    def speedup(self, case: Case) -> float | None:
        """Pages per unit of time, as a ratio to one thread, over the passes that the threads have shared.

        None for one thread, when that was not counted, or when no pass was shared: memory was too small.
        """
        one = self.one(case)
        shared = {each.number for each in case.passes if each.spread}
        if one is None or case.threads == 1 or not shared:
            return None
        return case.per_time(shared) / one.per_time(shared)

    def by_pass(self, case: Case) -> list[float | None]:
        """The same for each pass; None: nobody can tell of this one."""
        one = self.one(case)
        if one is None or case.threads == 1:
            return []
        there = {each.number for each in one.passes}
        return [
            case.per_time({each.number}) / one.per_time({each.number}) if each.spread and each.number in there else None
            for each in case.passes
        ]

    @property
    def unknown(self) -> list[str]:
        """What was promised and cannot be told from these counts."""
        return [
            f"{case.size} {case.content}: how much faster {case.threads} threads are: too small, "
            "none of its passes was shared between them"
            for case in self.cases
            if case.threads in SPEEDUP and self.one(case) and self.speedup(case) is None
        ]

    @property
    def broken(self) -> list[str]:
        """What was promised and is not kept."""
        found = []
        for case in self.cases:
            what = case.title
            # Each by itself: a pass that takes less would hide those that take more.
            for number, ratio in enumerate(case.ratios, 1):
                if case.off and not self.differences and ratio > OFF_BOUND:
                    found.append(
                        f"{what}, pass {number}: {ratio:.5f} of the base's instructions, "
                        f"at most {OFF_BOUND} were promised"
                    )
            speedup = self.speedup(case)
            least = SPEEDUP.get(case.threads)
            if least and speedup is not None and speedup < least:
                found.append(f"{what}: {speedup:.2f} times the pages of one, at least {least} were promised")
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; all costs are instructions."""
        return {
            "schema": SCHEMA,
            "kind": "nuksm-cost",
            "number_kind": Kind.COUNTED.value,
            "kernel": {**self.kernel.provenance, "name": self.kernel.name, "release": self.kernel.release},
            "base": {**self.base.provenance, "name": self.base.name, "release": self.base.release},
            "cases": [
                {
                    "size": case.size,
                    "content": case.content,
                    "threads": case.threads,
                    "policy": case.policy,
                    "ratio": case.ratio,
                    "ratio_by_pass": case.ratios,
                    "speedup": self.speedup(case),
                    "speedup_by_pass": self.by_pass(case),
                    "passes_to_90_percent": case.found_after,
                    "passes": [each.to_json() for each in case.passes],
                    "base": [each.to_json() for each in case.base],
                }
                for case in self.cases
            ],
            "missing": self.missing,
            "differences": self.differences,
            "broken": self.broken,
            "unknown": self.unknown,
            "complaints": self.complaints,
            "machine": dict(self.machine),
            "seconds": round(self.seconds, 1),
        }

    def to_markdown(self) -> str:
        """The table as people read it, with a title."""
        title = f"# Instructions of KSM for each scanned page: {_title(self.kernel)} against {_title(self.base)}"
        return f"{title}\n\n{self.summary()}"

    def summary(self) -> str:
        """The table as a page of the documentation has it."""
        most = max((len(case.passes) for case in self.cases), default=0)
        heads = ["memory", "threads", *(f"pass {number}" for number in range(1, most + 1))]
        heads += [
            *(f"{number} to base" for number in range(1, most + 1)),
            "all to base",
            "pages per time",
            "by pass",
            "merger",
            "90 % after",
        ]
        lines = [
            f"{_title(self.kernel)}, build-id `{self.kernel.build_id[:16]}`, and as the base {_title(self.base)}, "
            f"build-id `{self.base.build_id[:16]}`; QEMU {self.machine.get('qemu_version', '–')}.",
            "",
            f"{Kind.COUNTED.label.capitalize()}: instructions of all threads that scan, for each page of a pass, over "
            "two processes of the size given. Pages per time: of several threads, each on a CPU of its own, as a "
            "ratio to one, by the instructions of the one that takes longest, over the passes that they have shared.",
            "",
        ]
        if self.differences:
            lines += ["**The ratio to the base says nothing**, because the two differ in more than patches:", ""]
            lines += [*(f"* {line}" for line in self.differences), ""]
        lines += [f"| {' | '.join(heads)} |", f"|---|--:|{'--:|' * (2 * most + 5)}"]
        for case in self.cases:
            speedup = self.speedup(case)
            shares = [each.workers.merger_share or 0 for each in case.passes if each.workers and each.workers.workers]
            cells = [
                f"2 × {case.size} {case.content}{'' if case.policy == NO_POLICY else f', {case.policy}'}",
                str(case.threads),
                *(f"{each.per_page:,.0f}" for each in case.passes),
                *([""] * (most - len(case.passes))),
                *(f"{ratio:.5f}" for ratio in case.ratios),
                *([""] * (most - len(case.ratios))),
                f"{case.ratio:.4f}" if case.ratio is not None else "",
                f"{speedup:.2f}" if speedup is not None else "",
                ", ".join("–" if each is None else f"{each:.2f}" for each in self.by_pass(case)),
                ", ".join(f"{share:.0%}" for share in shares),
                f"{case.found_after:g} passes" if case.found_after is not None else "nothing to save",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", *self._modelled(), *(f"* not counted: {what}: {why}" for what, why in self.missing.items())]
        lines += [f"* not known: {line}" for line in self.unknown]
        lines += [f"* **not kept**: {line}" for line in self.broken]
        lines += [f"* the guest's kernel complained: {line}" for line in self.complaints]
        return "\n".join(lines).rstrip() + "\n"

    def _modelled(self) -> list[str]:
        """What more memory would take, where several sizes were counted, by content and number of threads."""
        lines = []
        for content, threads in dict.fromkeys((case.content, case.threads) for case in self.cases):
            grown = growth(self._by_size(content, threads))
            for asked in ASKED if grown else ():
                pages = parse_size(asked) // 4096
                what = f"{asked} {content} in all, {f'{threads} threads' if threads > 1 else 'one thread'}"
                lines.append(
                    f"* {Kind.MODELLED.label}: {what}: {_line(grown, pages)}{self._faster(content, threads, pages)}"
                )
        return [*lines, ""] if lines else []

    def _by_size(self, content: str, threads: int) -> dict[int, Sequence[Pass]]:
        same = (
            case for case in self.cases if (case.content, case.threads, case.policy) == (content, threads, NO_POLICY)
        )
        return {case.passes[0].scanned: case.passes for case in same if case.passes}

    def _faster(self, content: str, threads: int, pages: int) -> str:
        """Pages per time as a ratio to one thread: all but the merger's work in even parts, the merger beside it."""
        several = self._by_size(content, threads)
        one = {grown.number: grown.per_page(pages) for grown in growth(self._by_size(content, 1))}
        if threads == 1 or not one:
            return ""
        both = zip(growth(several, _FRONT), growth(several, _MERGER), strict=True)
        ratios = [
            one[front.number] / max(front.per_page(pages) / threads, merger.per_page(pages))
            for front, merger in both
            if front.number in one
        ]
        return f"; pages per time, if threads share it evenly: {', '.join(f'{ratio:.2f}' for ratio in ratios)}"


def _line(grown: Sequence[Growth], pages: int) -> str:
    each = ", ".join(f"{one.per_page(pages):,.0f}" for one in grown)
    errors = [one.error for one in grown if one.error is not None]
    tested = f"which misses what was counted by {max(errors):.1%} at most" if errors else "through two points"
    return f"{each} in passes 1 to {len(grown)}, by a line over log2 of the pages, {tested}"


def _title(kernel: KernelImage) -> str:
    return f"{kernel.name} ({kernel.release})"
