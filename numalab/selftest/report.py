"""The table of the long matrix, as a page of Markdown: what was run, what differs, what fails on either kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap

from numalab.selftest.compare import Difference
from numalab.selftest.matrix import Matrix, Outcome, Point
from numalab.selftest.record import History, Run, Standing

_ABOUT = (
    "Written by `numalab selftest matrix --table docs/selftests.md`, a part of `make test-full`. The programs of the "
    "kernel's tools/testing/selftests, built from the patched source, are run on the kernel under test and, {times}, "
    "on the one it is compared with. A cell counts programs: *ok* in every repeat, *skipped* in every repeat, "
    "*failing*, or *flaky* (now this, now that). Counts are exact; machines are emulated unless the table says KVM."
)
_WORDS = {
    Standing.STABLE_PASS: "ok",
    Standing.SKIP: "skipped",
    Standing.STABLE_FAIL: "failing",
    Standing.FLAKY: "flaky",
}


def page(matrix: Matrix, points: Sequence[Point], outcomes: Iterable[Outcome]) -> str:
    """Return the page about those of `points` that have an outcome."""
    done = {outcome.point.name: outcome for outcome in outcomes}
    ran = [outcome for outcome in done.values() if outcome.found is not None and outcome.before is not None]
    blamed = [outcome for outcome in done.values() if outcome.blames]
    lines = [
        "# The kernel's own tests, with the patches and without",
        "",
        *wrap(_ABOUT.format(times=_times(matrix.baseline_repeats)), width=118),
        "",
        f"{len(done)} of {len(points)} points are done; {len(blamed)} of them blame the kernel under test.",
        "",
        *_kernels(matrix, ran),
        "",
        *_table(matrix, points, done),
    ]
    for title, rows in (
        ("Differences", _differences(done.values())),
        (f"What does not hold on {matrix.against} either", _before(ran)),
    ):
        lines += ["", f"## {title}", "", *(rows or ["None." if ran else "Nothing has been run yet."])]
    return "\n".join(lines) + "\n"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _kernels(matrix: Matrix, ran: Sequence[Outcome]) -> list[str]:
    lines = ["| | kernel | build-id | patch sets | machines | latest result |", "|---|---|---|---|---|---|"]
    for role, name, runs in (
        ("under test", matrix.kernel, [outcome.found for outcome in ran]),
        ("compared with", matrix.against, [outcome.before for outcome in ran]),
    ):
        told = {_kernel(run): None for run in runs if run is not None}
        for release, build_id, sets in told or {("–", "–", "–"): None}:
            same = [run for run in runs if run is not None and _kernel(run) == (release, build_id, sets)]
            accels = " / ".join(dict.fromkeys(_accel(run) for run in same)) or "–"
            latest = max((run.started for run in same), default="–")[:10]
            lines.append(f"| {role} | {name} {release} | `{build_id[:16]}` | {sets} | {accels} | {latest} |")
    return lines


def _kernel(run: Run) -> tuple[str, str, str]:
    series = run.kernel.get("series") or {}
    return (
        str(run.kernel.get("release", "–")),
        str(run.kernel.get("build_id") or "–"),
        ", ".join(series.get("sets", [])) or "none",
    )


def _accel(run: Run) -> str:
    accel = {"tcg": "emulated", "kvm": "KVM"}.get(str(run.machine.get("accel")), "?")
    version = run.machine.get("qemu_version")
    return f"{accel}, QEMU {version}" if version else accel


def _table(matrix: Matrix, points: Sequence[Point], done: Mapping[str, Outcome]) -> list[str]:
    axes = ["group", "levels", *(axis.name for axis in matrix.axes)]
    heads = [*axes, matrix.against, matrix.kernel, "differences"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for point in points:
        outcome = done.get(point.name)
        cells = [point.values.get(axis, "–") for axis in axes]
        if outcome is None:
            cells += ["–", "–", "not run yet"]
        elif outcome.found is None or outcome.before is None:
            cells += ["–", "–", f"**machine lost: {_plain(outcome.lost)}**"]
        else:
            cells += [_counts(outcome.before), _counts(outcome.found), _verdict(outcome)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _counts(run: Run) -> str:
    counts = Counter(history.standing for history in run.programs().values())
    return ", ".join(f"{counts[standing]} {word}" for standing, word in _WORDS.items() if counts[standing])


def _verdict(outcome: Outcome) -> str:
    counts = Counter(map(_counted, outcome.differences))
    return ", ".join(f"{count} {word}" for word, count in counts.items()) or "none"


def _counted(difference: Difference) -> str:
    if difference.blames:
        return f"**{_said(difference)}**"
    return f"{_said(difference)} (explained)" if difference.explained else _said(difference)


def _said(difference: Difference) -> str:
    word = difference.judgement.value
    return {"runs": "runs only now", "skipped": "skipped now"}.get(word, word)


@dataclass
class _Entry:
    """One line about differences: of one program or test, or of tests of one program that differ for one reason."""

    tests: dict[str, None] = field(default_factory=dict)
    points: dict[str, None] = field(default_factory=dict)

    def line(self, judgement: str, program: str, why: str, *, blames: bool) -> str:
        mark = "**" if blames else ""
        tests = [test for test in self.tests if test]
        name = f"`{program}: {tests[0]}`" if len(tests) == 1 else f"`{program}`"
        if len(tests) > 1:
            name += f" ({len(tests)} tests, such as `{tests[0]}`)"
        return f"* {mark}{judgement}{mark} {name}: {_plain(why)} ({_where(list(self.points))})"


def _differences(outcomes: Iterable[Outcome]) -> list[str]:
    """Each difference once, with the points where it was seen; what blames test by test, the rest by its reason."""
    entries: dict[tuple[bool, str, str, str, str], _Entry] = {}
    for outcome in outcomes:
        for each in outcome.differences:
            alone = each.test if each.blames else ""
            key = (not each.blames, _said(each), each.program, alone, each.explained or each.explanation)
            entry = entries.setdefault(key, _Entry())
            entry.tests[each.test] = entry.points[outcome.point.name] = None
        if outcome.lost:
            entry = entries.setdefault((False, "machine lost", outcome.point.group, "", outcome.lost), _Entry())
            entry.tests[""] = entry.points[outcome.point.name] = None
    return [
        entry.line(judgement, program, why, blames=not harmless)
        for (harmless, judgement, program, _, why), entry in sorted(entries.items(), key=lambda each: each[0])
    ]


def _before(ran: Sequence[Outcome]) -> list[str]:
    """Programs that fail, or sometimes do, or cannot run without the patches: nobody's fault here, and good to know."""
    where: dict[tuple[str, str], list[str]] = {}
    reasons: dict[tuple[str, str], History] = {}
    for outcome in ran:
        assert outcome.before is not None
        for name, history in outcome.before.programs().items():
            if history.standing is not Standing.STABLE_PASS:
                key = (f"{outcome.point.group}: {name}", _WORDS[history.standing])
                where.setdefault(key, []).append(outcome.point.name)
                reasons.setdefault(key, history)
    return [
        f"* `{name}` {word}: {_plain(reasons[name, word].reason) or 'no reason given'} ({_where(names)})"
        for (name, word), names in sorted(where.items())
    ]


def _where(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _plain(text: str, limit: int = 160) -> str:
    """Text of a program on one line, harmless in a Markdown table."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
