"""The table of costs: ratios, bounds, what can be compared, exit statuses. No machine: the counts are made up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mitosis.cost import __main__ as cost
from mitosis.cost import measure, scenarios
from mitosis.cost.measure import TOPOLOGY, counts_in, counts_on, find_policy
from mitosis.cost.scenarios import OPS, SCENARIOS, Count, Row, Scenario, by_key, rows
from numalab.cli.main import execute
from numalab.errors import MissingError
from numalab.kernel.image import KernelImage
from numalab.run.counting import differences
from numalab.run.kept import Kept
from numalab.run.policy import Policy
from workloads import catalogue

OFF = SCENARIOS["off"]
BUILT = {"flavour": "patched", "source": {"sha256": "ab" * 32}, "compiler": "gcc 12"}
KERNELS = {
    "patched": KernelImage("patched", Path("k"), "6.12-p", provenance=BUILT),
    "patched:none": KernelImage("patched:none", Path("n"), "6.12-n", provenance=BUILT),
    "stock": KernelImage("stock", Path("s"), "6.12-s", provenance={"flavour": "stock"}),
}


def count(op: str = "mmap", low: int = 1000, *, size: str = "4K", mapping: str = "private") -> Count:
    return Count(op, size, mapping, pages=1, repeats=3, low=low, least=low - 10, median=low + 10)


def test_the_promises_of_the_issue() -> None:
    assert OFF.bounds == dict.fromkeys(("mmap", "mprotect", "munmap", "fault", "forkexit"), 1.005)
    assert (OFF.policy, OFF.touchers) == ("first-touch", "none")
    assert SCENARIOS["lazy"].bounds == {"mmap": 1.02, "mprotect": 1.1, "munmap": 1.1}
    assert SCENARIOS["lazy"].touchers == "one"
    for name in ("lazy-full", "full"):
        assert SCENARIOS[name].bounds == {"mmap": 1.1, "mprotect": 2.0, "munmap": 1.3}
        assert SCENARIOS[name].touchers == "all"


@pytest.mark.parametrize(
    ("low", "bound", "exceeded"),
    [(1005, 1.005, False), (1006, 1.005, True), (990, 1.005, False), (5000, None, False)],
)
def test_a_bound_may_be_reached_and_not_passed(low: int, bound: float | None, exceeded: bool) -> None:
    row = Row(count(low=low), count(low=1000), bound)
    assert row.ratio == low / 1000
    assert row.exceeded is exceeded


def test_rows_are_of_what_both_have() -> None:
    mine = by_key([count("munmap"), count("mmap"), count("fault"), count("mmap", mapping="shared")])
    base = by_key([count("mmap", 500), count("munmap"), count("mmap", 250, mapping="shared"), count("forkexit")])
    found = rows(replace(OFF, bounds={"mmap": 3.0}), mine, base, by_key([count("mmap", 100)]))
    assert [(row.count.op, row.count.mapping, row.ratio, row.bound) for row in found] == [
        ("mmap", "private", 2.0, 3.0),
        ("mmap", "shared", 4.0, 3.0),
        ("munmap", "private", 1.0, None),
    ]
    assert [row.exceeded for row in found] == [False, True, False]
    assert [row.debian.low if row.debian else None for row in found] == [100, None, None]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, []),
        ({"flavour": "debug"}, ["flavour: patched and debug"]),
        ({"compiler": "gcc 14"}, ["compiler: gcc 12 and gcc 14"]),
        ({"source": {"sha256": "cd" * 32}}, [f"source: {'ab' * 8} and {'cd' * 8}"]),
        ({"source": None}, [f"source: {'ab' * 8} and unknown"]),
    ],
)
def test_kernels_that_differ_in_more_than_patches(change: dict[str, Any], words: list[str]) -> None:
    assert differences(BUILT, {**BUILT, **change}) == words


def test_a_bare_image_cannot_be_compared() -> None:
    assert len(differences({}, {})) == 3


def test_counts_are_read_from_the_metrics_of_memops() -> None:
    memops = catalogue.get("memops")
    values: dict[str, Any] = {"pages": 2, "mmap_count": 3, "mmap_instructions_min": 10, "mmap_instructions_median": 12}
    values |= {"mmap_instructions_low": 10.5, "mmap_instructions_per_page_min": 5.0, "seconds": 0.5}
    line = b"words\nnumalab-result: " + json.dumps(values).encode() + b"\n"
    parsed = {sample.metric: sample.value for sample in memops.parse(line)}
    assert counts_in(parsed, "8K", "shared") == [Count("mmap", "8K", "shared", 2, 3, 10.5, 10, 12)]
    kinds = {sample["metric"]: sample["kind"] for sample in memops.samples(line, "tcg")}
    assert kinds["mmap_instructions_median"] == kinds["mmap_instructions_per_page_min"] == "counted"
    assert kinds["seconds"] == "emulation-time"


def test_the_workload_has_all_of_it() -> None:
    memops = catalogue.get("memops")
    for op in OPS:
        assert f"{op}_instructions_median" in memops.metrics
    for size, repeats in scenarios.SIZES.items():
        params = {"size": size, "ops": OPS, "iterations": repeats, "count": True, "touchers": "all"}
        assert memops.argv(params)[0] == "memops"


def test_policies() -> None:
    assert find_policy("first-touch").name == "first-touch"
    with pytest.raises(MissingError, match="no policy 'magic'"):
        find_policy("magic")
    assert len(TOPOLOGY.nodes) == 4


class Bench:
    """`python -m mitosis.cost` with kernels and counts made up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
        self.out = out
        self.booted: list[tuple[str, str, str]] = []
        self.factors: dict[tuple[str, str], float] = {}
        monkeypatch.setattr(cost, "resolve", KERNELS.__getitem__)
        monkeypatch.setattr(cost, "counts_on", self.counts_on)
        monkeypatch.setattr(cost, "find_policy", self.find_policy)
        self.policies = ["first-touch", "lazy", "eager"]

    def find_policy(self, name: str) -> Policy:
        if name not in self.policies:
            raise MissingError(f"there is no policy {name!r}")
        return Policy(name, "")

    def counts_on(
        self, kernel: KernelImage, policy: Policy, touchers: str, sizes: Mapping[str, int], **_: Any
    ) -> tuple[list[Count], dict[str, Any]]:
        self.booted.append((kernel.name, policy.name, touchers))
        facts = {"qemu_version": "7.2", "cmdline": "x", "topology": {}, "complaints": []}
        found = []
        for size in sizes:
            for op in OPS:
                factor = self.factors.get((policy.name if kernel.name == "patched" else kernel.name, op), 1.0)
                found.append(count(op, round(100_000 * factor), size=size))
        return found, facts

    def run(self, *argv: str) -> int:
        with pytest.raises(SystemExit) as caught:
            execute(cost.command, ["--out", str(self.out), *argv], name="cost")
        assert isinstance(caught.value.code, int)
        return caught.value.code

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.out / "cost.json").read_text())
        return value

    @property
    def markdown(self) -> str:
        return (self.out / "cost.md").read_text()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    return Bench(monkeypatch, tmp_path / "out")


def test_all_bounds_kept(bench: Bench) -> None:
    assert bench.run() == 0
    assert [each["name"] for each in bench.json["scenarios"]] == list(SCENARIOS)
    assert bench.json["number_kind"] == "counted"
    assert bench.booted.count(("patched:none", "first-touch", "all")) == 1  # counted once, used twice
    assert ("stock", "first-touch", "none") in bench.booted
    assert "**exceeded**" not in bench.markdown


def test_a_bound_exceeded(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.factors["eager", "mprotect"] = 2.01
    bench.factors["eager", "fault"] = 7.0  # nothing is promised of it
    assert bench.run("--no-debian", "--size", "8M") == 1
    assert "exceeded: full: mprotect of 8M private: 2.0100 > 2" in capsys.readouterr().err
    assert bench.markdown.count("**exceeded**") == 1
    bad = [row for each in bench.json["scenarios"] for row in each["rows"] if row["exceeded"]]
    assert [(row["op"], row["ratio"], row["bound"]) for row in bad] == [("mprotect", 2.01, 2.0)]


def test_what_cannot_be_counted_is_no_success(bench: Bench) -> None:
    bench.policies = ["first-touch"]
    assert bench.run() == 3
    assert list(bench.json["missing"]) == ["lazy", "lazy-full", "full"]
    assert [each["name"] for each in bench.json["scenarios"]] == ["off"]
    assert "## full: not counted" in bench.markdown
    assert bench.run("--scenario", "off") == 0


def test_debians_kernel_is_shown_and_never_held_against(bench: Bench) -> None:
    bench.factors["stock", "mmap"] = 0.5
    assert bench.run("--scenario", "off") == 0
    row = next(row for row in bench.json["scenarios"][0]["rows"] if row["op"] == "mmap")
    assert row["debian"]["low"] == 50_000
    assert "another configuration" in bench.markdown
    assert (
        "| mmap | private | 4K | 100,000 | 100,000 | 100,000.0 | 1.0000 | 1.005 | ok | 50,000 | 2.00 |"
        in bench.markdown
    )


def test_no_bounds_against_a_kernel_of_another_configuration(bench: Bench) -> None:
    bench.factors["first-touch", "mmap"] = 1.5
    assert bench.run("--base", "stock", "--scenario", "off", "--no-debian") == 0
    assert bench.json["differences"][0] == "flavour: patched and stock"
    assert all(row["bound"] is None for row in bench.json["scenarios"][0]["rows"])
    assert "No bound is checked" in bench.markdown


def test_scenarios_are_found_by_their_names() -> None:
    assert all(isinstance(each, Scenario) and each.name == name for name, each in SCENARIOS.items())


PAGE = "# Page\n\n<!-- mitosis.cost: begin -->\nold\n<!-- mitosis.cost: end -->\n\nmore\n"


def test_the_ratios_go_into_a_page_of_the_documentation(bench: Bench, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    bench.factors["first-touch", "fault"] = 1.006
    bench.policies = ["first-touch", "lazy"]
    assert bench.run("--table", str(page), "--size", "4K", "--size", "512M") == 1
    text = page.read_text()
    assert text.startswith("# Page\n\n<!--") and text.endswith("<!-- mitosis.cost: end -->\n\nmore\n")
    lines = text.splitlines()
    assert "| | operation | mapping | 4K | 512M | at most |" in lines
    assert "| off | mmap | private | 1.0000 | 1.0000 | 1.005 |" in lines
    assert "| off | fault | private | **1.0060** | **1.0060** | 1.005 |" in lines
    assert "| lazy | fault | private | 1.0000 | 1.0000 |  |" in lines
    assert any(line.startswith("| full | not counted: there is no policy 'eager'") for line in lines)
    before = text
    assert bench.run("--table", str(page), "--size", "4K", "--size", "512M") == 1
    assert page.read_text() == before, "the same results, the same page"


def test_a_page_says_when_no_bound_was_checked(bench: Bench, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert bench.run("--base", "stock", "--scenario", "off", "--no-debian", "--table", str(page)) == 0
    assert "No bound is checked, because the two differ in more than patches: flavour: patched and stock" in (
        page.read_text()
    )


def test_only_what_is_missing_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    booted: list[list[str]] = []

    class FakeMachine:
        complaints = ("a line",)

        def __init__(self, *_: Any, **__: Any) -> None:
            booted.append([])

        def __enter__(self) -> FakeMachine:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def facts(self) -> dict[str, Any]:
            return {"qemu_version": "7.2", "cmdline": "x", "topology": {}}

        def run(self, argv: list[str], **_: Any) -> Any:
            booted[-1].append(argv[argv.index("--size") + 1])
            if len(booted) == 1 and len(booted[-1]) == 4:
                raise KeyboardInterrupt
            line = {"pages": 1, "mmap_count": 2, "mmap_instructions_low": 3.0}
            line |= {"mmap_instructions_min": 3, "mmap_instructions_median": 3}
            return SimpleNamespace(stdout=b"numalab-result: " + json.dumps(line).encode() + b"\n")

    program = tmp_path / "memops"
    program.write_bytes(b"program")
    monkeypatch.setattr("numalab.machine.session.Machine", FakeMachine)
    monkeypatch.setattr("workloads.build.binaries", lambda: {"memops": program})
    monkeypatch.setattr(measure, "applied", lambda *_: nullcontext())

    def measured() -> tuple[list[Count], dict[str, Any]]:
        return counts_on(
            KERNELS["patched"],
            Policy("first-touch", ""),
            "none",
            {"4K": 2, "8M": 2},
            log_dir=tmp_path,
            kept=Kept(tmp_path / "counted"),
        )

    with pytest.raises(KeyboardInterrupt):
        measured()
    counts, facts = measured()
    assert [len(sizes) for sizes in booted] == [4, 1]
    assert [(each.size, each.mapping) for each in counts] == [
        ("4K", "private"),
        ("4K", "shared"),
        ("8M", "private"),
        ("8M", "shared"),
    ]
    assert facts == {"qemu_version": "7.2", "cmdline": "x", "topology": {}, "complaints": ["a line"]}
    assert measured() == (counts, facts)
    assert len(booted) == 2, "nothing was missing, nothing was booted"
    for path in (tmp_path / "counted").iterdir():
        found = json.loads(path.read_text())
        path.write_text(json.dumps({**found, "counts": [{"op": "mmap"}]}))
    assert measured() == (counts, facts), "what an older version has kept is counted again"
    assert len(booted) == 3
