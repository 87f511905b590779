"""What scanning costs: passes, ratios, and what is promised of them. No machine: the counts are made up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nuksm.cost import __main__ as cost
from nuksm.cost import scan
from nuksm.cost.growth import growth
from nuksm.cost.passes import Pass
from nuksm.cost.scan import CONTENTS, knobs
from nuksm.cost.table import OFF_BOUND, SPEEDUP, Case, Table
from nuksm.metrics import Scan, Worker
from nuksm.policies import KSM
from numalab.cli.main import execute
from numalab.errors import ExperimentError, MissingError
from numalab.kernel.image import KernelImage
from numalab.machine.outcome import Completed, GuestFileError

BUILT = {"flavour": "patched", "source": {"sha256": "ab" * 32}, "compiler": "gcc 12"}
KERNELS = {
    "patched": KernelImage("patched", Path("k"), "6.12-p", provenance=BUILT),
    "patched:none": KernelImage("patched:none", Path("n"), "6.12-n", provenance=BUILT),
    "stock": KernelImage("stock", Path("s"), "6.12-s", provenance={"flavour": "stock"}),
}


def passes(*each: tuple[int, dict[str, int]], sharing: int = 5) -> list[Pass]:
    return [Pass(number, scanned, costs, sharing) for number, (scanned, costs) in enumerate(each, 1)]


ONE = passes((1000, {"ksmd": 4000}), (1000, {"ksmd": 4000}))
SHARED = Scan(tuple(Worker(number, number, 250, 1000) for number in range(4)), 10, 500)
FOUR = [
    replace(each, workers=SHARED)
    for each in passes(*2 * [(1000, {"a": 1000, "b": 1100, "c": 900, "d": 1000, "ksmd": 500})])
]


def table(*cases: Case, base: str = "patched:none") -> Table:
    return Table(KERNELS["patched"], KERNELS[base], list(cases))


def test_the_promises_of_the_issue() -> None:
    assert OFF_BOUND == 1.005
    assert SPEEDUP == {4: 2.5}
    assert cost.THREADS == (1, 2, 4)


def test_a_pass() -> None:
    one = Pass(2, 1000, {"ksmd": 3000, "ksm_scan/0": 1500}, sharing=7)
    assert (one.instructions, one.per_page, one.longest) == (4500, 4.5, 3000)
    with_workers = replace(one, workers=Scan((Worker(0, 1, 1000, 1500),), 10, 3000))
    assert with_workers.to_json()["workers"] == {
        "nodes": [1],
        "scanned": [1000],
        "time_ns": [1500],
        "merger_ns": 3000,
        "handed": 10,
        "merger_share": pytest.approx(2 / 3),
    }
    assert one.to_json()["workers"] is None
    for each in (one, with_workers):
        assert Pass.from_json(json.loads(json.dumps(each.to_json()))) == each


@pytest.mark.parametrize(
    ("mine", "base", "broken"),
    [(1005, 1000, 0), (1006, 1000, 1), (900, 1000, 0)],
)
def test_off_is_compared_with_the_kernel_without_the_patches(mine: int, base: int, broken: int) -> None:
    case = Case("1M", "merged", 1, passes((100, {"ksmd": mine})), passes((100, {"ksmd": base})))
    assert case.ratio == mine / base
    assert len(table(case).broken) == broken
    other = table(case)
    other.differences = ["compiler: gcc 12 and gcc 13"]
    assert other.broken == [], "a base that differs in more says nothing"


def test_each_pass_is_judged_by_itself() -> None:
    """One that takes less would hide those that take more."""
    mine, base = [(100, {"ksmd": n}) for n in (1000, 500, 1006)], [(100, {"ksmd": n}) for n in (1000, 1000, 1000)]
    case = Case("1M", "merged", 1, passes(*mine), passes(*base))
    assert case.ratio is not None
    assert case.ratio < 1
    assert case.ratios == [1.0, 0.5, 1.006]
    [said] = table(case).broken
    assert said == "1M merged, 1 thread, pass 3: 1.00600 of the base's instructions, at most 1.005 were promised"
    assert "| 2 × 1M merged | 1 | 10 | 5 | 10 | 1.00000 | 0.50000 | 1.00600 | 0.8353 |" in table(case).to_markdown()
    assert table(case).to_json()["cases"][0]["ratio_by_pass"] == case.ratios
    fair = replace(case, policy="fair")
    assert table(fair).broken == [], "what is switched on may cost"
    assert "| 2 × 1M merged, fair | 1 |" in table(fair).to_markdown()
    assert table(fair, Case("1M", "merged", 4, FOUR)).one(case) is None, "nor is it what threads are compared with"


def test_several_threads_are_as_fast_as_the_longest_of_them() -> None:
    one, four = Case("1M", "merged", 1, ONE, ONE), Case("1M", "merged", 4, FOUR)
    found = table(one, four)
    assert found.speedup(four) == pytest.approx(4000 / 1100)
    assert found.speedup(one) is None
    assert found.broken == []
    assert four.ratio is None
    slow = replace(four, passes=[replace(each, cost={"a": 1000, "ksmd": 2000}) for each in FOUR])
    assert "2.00 times the pages of one, at least 2.5 were promised" in table(one, slow).broken[0]
    # Two threads have no bound; and what was not counted with one thread has no ratio.
    assert table(one, replace(slow, threads=2)).broken == []
    assert table(four).speedup(four) is None
    assert table(replace(one, content="unique"), four).speedup(four) is None


def test_a_pass_that_one_worker_had_to_itself_says_nothing_of_four() -> None:
    alone = Scan(tuple(Worker(number, number, 1000 * (number == 2), 1000) for number in range(4)), 10, 500)
    one, four = Case("1M", "merged", 1, ONE), Case("1M", "merged", 4, [FOUR[0], replace(FOUR[1], workers=alone)])
    assert [each.spread for each in four.passes] == [True, False]
    assert table(one, four).speedup(four) == pytest.approx(4000 / 1100), "of the pass that was shared"
    assert table(one, four).by_pass(four) == [pytest.approx(4000 / 1100), None]
    assert table(one, four).by_pass(one) == table(four).by_pass(four) == []
    small = replace(four, passes=four.passes[1:])
    assert table(one, small).speedup(small) is None
    assert table(one, small).broken == []
    assert "none of its passes was shared" in table(one, small).unknown[0]
    assert "* not known: 1M merged" in table(one, small).to_markdown()
    assert not replace(FOUR[0], workers=None).spread
    assert table(one, four).unknown == table(one, replace(small, threads=2)).unknown == []


def test_how_soon_it_is_found() -> None:
    found = [replace(each, sharing=saved) for each, saved in zip(ONE + ONE, (0, 95, 100, 100), strict=True)]
    found = [replace(each, number=number) for number, each in enumerate(found, 1)]
    assert Case("1M", "merged", 1, found).found_after == 2
    assert Case("1M", "unique", 1, passes((1, {"k": 1}), sharing=0)).found_after is None


def test_markdown_and_json() -> None:
    found = table(Case("1M", "merged", 1, ONE, ONE), Case("1M", "merged", 4, FOUR))
    found.missing["8M merged, 2 threads"] = "this kernel has no scan_threads"
    found.complaints.append("WARNING: at mm/ksm.c")
    text = found.to_markdown()
    assert "Counted in emulation" in text
    assert "| 2 × 1M merged | 1 | 4 | 4 | 1.00000 | 1.00000 | 1.0000 |  |  |  | 1 passes |" in text
    assert "| 2 × 1M merged | 4 | 4 | 4 |  |  |  | 3.64 | 3.64, 3.64 | 11%, 11% |" in text
    assert "* not counted: 8M merged, 2 threads: this kernel has no scan_threads" in text
    assert "WARNING" in text
    said = json.loads(json.dumps(found.to_json()))
    assert (said["number_kind"], said["broken"], len(said["cases"])) == ("counted", [], 2)
    assert said["cases"][1]["speedup"] == pytest.approx(4000 / 1100)


def test_more_memory_than_there_is_is_modelled() -> None:
    def counted(pages: int) -> list[Pass]:
        depth = pages.bit_length() - 1
        return passes((pages, {"ksmd": pages * 1000}), (pages, {"ksmd": pages * (500 + 100 * depth)}))

    assert growth({1024: counted(1024)}) == []
    first, second = growth({1024: counted(1024), 4096: counted(4096), 65536: counted(65536)})
    assert (first.number, second.number) == (1, 2)
    assert first.per_page(1 << 21) == pytest.approx(1000)
    assert second.per_page(1 << 21) == pytest.approx(500 + 2100)
    assert second.error == pytest.approx(0, abs=1e-9)
    assert growth({1024: counted(1024), 4096: counted(4096)})[0].error is None
    both = table(Case("2M", "merged", 1, counted(1024)), Case("8M", "merged", 1, counted(4096)))
    assert "* modelled: 8G merged in all, one thread: 1,000, 2,600 in passes 1 to 2" in both.to_markdown()
    assert "modelled" not in table(Case("2M", "merged", 1, counted(1024))).to_markdown()
    four = [
        Case(size, "merged", 4, [replace(each, cost={"a": each.instructions // 4, "ksmd": 5}, workers=shared)])
        for size, pages, shared in (("2M", 1024, SHARED), ("8M", 4096, SHARED))
        for each in counted(pages)[1:]
    ]
    text = table(*both.cases, *four).to_markdown()
    assert "* modelled: 8G merged in all, 4 threads: 650 in passes 1 to 1, by a line" in text
    assert "through two points; pages per time, if threads share it evenly: 15.96\n" in text
    # The merger beside them, which takes longest as soon as it has more than one of them.
    merging = [
        replace(case, passes=[replace(each, workers=replace(SHARED, merger=each.instructions // 2))])
        for case in four
        for each in case.passes
    ]
    assert "if threads share it evenly: 8.00\n" in table(*both.cases, *merging).to_markdown()


def test_a_policy_is_a_row_of_its_own(counted: list[tuple[str, str, str, int]], tmp_path: Path) -> None:
    words = ("--size", "1M", "--content", "merged", "--threads", "1", "--policy", "fair", "--out", str(tmp_path))
    assert status(*words) == 0
    said = json.loads((tmp_path / "cost.json").read_text())
    assert [(case["threads"], case["policy"]) for case in said["cases"]] == [(1, "none"), (1, "fair")]
    assert counted == [(name, "1M", "merged", 1) for name in ("patched", "patched:none") * 2]
    assert {knob.path: knob.value for knob in knobs(1, "fair")}[f"{KSM}/numa_policy"] == "fair"
    assert not any(knob.path.startswith(f"{KSM}/numa_") for knob in knobs(1)), "stock kernels have no such file"


def test_what_is_set_for_counting() -> None:
    one, four = knobs(1), knobs(4)
    assert not any("scan_threads" in knob.path for knob in one), "stock kernels have no such file"
    [several] = [knob for knob in four if "scan_threads" in knob.path]
    assert (several.value, several.optional) == ("4", False)
    for found in (one, four):
        assert [knob.value for knob in found if knob.path == f"{KSM}/run"] == ["2", "2"], "nothing runs by itself"


class Machine:
    """A kernel whose KSM makes one pass each time it is woken."""

    def __init__(self, *, leaps: int = 1, silent: bool = False, refuses: bool = False) -> None:
        self.files = {"full_scans": 3, "pages_scanned": 0, "pages_sharing": 0, "pages_shared": 0}
        self.files["sleep_millisecs"] = 3_600_000
        self.ran, self.leaps, self.silent, self.refuses = 0, leaps, silent, refuses
        self.log: list[str] = []

    def read_file(self, path: str) -> bytes:
        name = path.removeprefix(f"{KSM}/")
        if name not in self.files:
            raise GuestFileError(path, 2)
        return str(self.files[name]).encode()

    def write_file(self, path: str, data: bytes) -> None:
        self._write(path.removeprefix(f"{KSM}/"), data.decode().strip())

    def _write(self, name: str, value: str) -> None:
        self.log.append(f"{name}={value}")
        if name == "sleep_millisecs":
            assert int(value) != self.files[name], "only another value wakes it"
            self.files[name] = int(value)

    def run(self, argv: list[str], *, timeout: float | None = None) -> Completed:
        if argv[2] is not scan._PASS:
            out = b"" if self.silent else f"ksmd 65 {self.ran}\nksm_scan/1 66 7\n".encode()
            return Completed(argv, 0, None, out, b"")
        self._write(Path(argv[3]).name, argv[4])
        if self.refuses:
            return Completed(argv, 1, None, b"", b"sh: write error: Device or resource busy\n")
        self.files["full_scans"] += self.leaps
        assert self.leaps > 1 or self.files["full_scans"] == int(argv[5])
        self.files["pages_scanned"] += 100
        self.files["pages_sharing"] = 50
        self.ran += 12_345
        return Completed(argv, 0, None, b"", b"")


def test_each_pass_is_driven_and_counted_by_itself() -> None:
    machine = Machine()
    found = scan._drive(machine, 3)
    assert [(each.number, each.scanned, each.sharing) for each in found] == [(1, 100, 50), (2, 100, 50), (3, 100, 50)]
    assert [each.cost for each in found] == 3 * [{"ksmd:65": 12_345}], "a thread that did nothing is left out"
    # Woken once between the two, so that it waits for `run` and not for its hour to end.
    wakes = [line.partition("=")[0] for line in machine.log]
    assert wakes == ["run", "sleep_millisecs", "run", "sleep_millisecs", "sleep_millisecs"]
    assert [line for line in machine.log if line.startswith("run")] == ["run=2", "run=1"]


def test_the_round_that_took_fewest_stands_for_all() -> None:
    one = passes((100, {"ksmd": 50}), (100, {"ksmd": 70}))
    two = passes((100, {"ksmd": 60}), (100, {"ksmd": 65}))
    assert [each.instructions for each in scan.fewest([one, two])] == [50, 65]
    with pytest.raises(ExperimentError, match="pass 2 is not the same in all rounds: 100 scanned, 5 saved, 99 scanned"):
        scan.fewest([one, passes((100, {"ksmd": 50}), (99, {"ksmd": 70}))])


def test_two_passes_at_once_are_no_pass() -> None:
    with pytest.raises(ExperimentError, match="has made 5 passes, and was asked for 4"):
        scan._drive(Machine(leaps=2), 1)


def test_a_pass_that_cannot_be_begun() -> None:
    with pytest.raises(ExperimentError, match="pass 1 of KSM could not be begun: sh: write error"):
        scan._drive(Machine(refuses=True), 1)


def test_threads_that_cannot_be_asked_are_not_free_of_cost() -> None:
    with pytest.raises(ExperimentError, match="cannot be asked what they took"):
        scan._drive(Machine(silent=True), 1)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str, int]]:
    """The command with made-up counts; what was asked for."""
    asked = []

    def passes_on(
        image: KernelImage, size: str, content: str, threads: int, number: int, **_: Any
    ) -> tuple[list[Pass], dict[str, Any]]:
        asked.append((image.name, size, content, threads))
        if threads == 2:
            raise MissingError("this kernel has no scan_threads")
        facts = {"qemu_version": "7.2", "cmdline": "", "topology": {}, "complaints": []}
        return (ONE if threads == 1 else FOUR), facts

    monkeypatch.setattr(cost, "resolve", KERNELS.__getitem__)
    monkeypatch.setattr(cost, "passes_on", passes_on)
    return asked


def status(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        execute(cost.command, list(words), name="cost")
    return int(ended.value.code or 0)


def test_the_command(counted: list[tuple[str, str, str, int]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert status("--size", "1M", "--content", "merged", "--threads", "1", "--threads", "4", "--out", str(out)) == 0
    assert counted == [
        ("patched", "1M", "merged", 1),
        ("patched:none", "1M", "merged", 1),
        ("patched", "1M", "merged", 4),
    ]
    assert json.loads((out / "cost.json").read_text())["kind"] == "nuksm-cost"
    assert (out / "cost.md").read_text().startswith("# Instructions of KSM for each scanned page: patched")


def test_the_table_in_a_page(counted: list[tuple[str, str, str, int]], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Head\n\n<!-- nuksm.cost: begin -->\n\nold\n\n<!-- nuksm.cost: end -->\n\ntail\n")
    words = ("--size", "1M", "--content", "merged", "--threads", "1", "--out", str(tmp_path), "--table", str(page))
    assert status(*words) == 0
    text = page.read_text()
    assert text.startswith("# Head\n")
    assert text.endswith("\ntail\n")
    assert "old" not in text
    assert "| 2 × 1M merged | 1 | 4 | 4 | 1.00000 | 1.00000 | 1.0000 |" in text
    assert len(counted) == 2
    assert (Path(__file__).parents[2] / "docs" / "scan-cost.md").read_text().count("<!-- nuksm.cost: begin -->") == 1


def test_what_cannot_be_counted_is_status_3(counted: list[tuple[str, str, str, int]], tmp_path: Path) -> None:
    assert status("--size", "1M", "--content", "merged", "--threads", "2", "--out", str(tmp_path)) == 3
    assert counted == [("patched", "1M", "merged", 2)]
    assert json.loads((tmp_path / "cost.json").read_text())["missing"]


def test_another_base_checks_no_ratio(counted: list[tuple[str, str, str, int]], tmp_path: Path) -> None:
    assert status("--size", "1M", "--threads", "1", "--base", "stock", "--out", str(tmp_path)) == 0
    assert {content for _, _, content, _ in counted} == set(CONTENTS)
    assert json.loads((tmp_path / "cost.json").read_text())["differences"]
