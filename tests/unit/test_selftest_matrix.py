"""The long matrix: its file, its points, what stands, the page about it; and the verb."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from numalab.cli import selftest as cli
from numalab.errors import UserError
from numalab.kernel import images
from numalab.kernel.image import KernelImage
from numalab.machine import accel
from numalab.machine.outcome import BootFailureError
from numalab.selftest import catalogue, lab, matrix, report, runner
from numalab.selftest.build import Programs
from numalab.selftest.compare import Difference, Judgement
from numalab.selftest.matrix import Matrix, Outcome, Point, Rig
from numalab.selftest.verdict import Verdict

TEXT = """\
groups = ["futex", "proc"]
baseline_repeats = 2
levels = [4, 5]
[axes.pti]
off = "pti=off"
on = "pti=on"
[own.replication]
off = ""
force = "pgtable_repl=force"
"""


@pytest.fixture
def described(tmp_path: Path) -> Matrix:
    return read(tmp_path, TEXT)


def read(tmp_path: Path, text: str) -> Matrix:
    file = tmp_path / "m.toml"
    file.write_text(text)
    return matrix.load(file)


# The file.


def test_the_matrix_of_the_tree_covers_what_it_promises() -> None:
    found = matrix.load()
    points = matrix.points(found)
    assert {"mm", "x86", "futex", "proc", "stress-ng", "pgtables", "kvm"} <= set(found.groups)
    assert set(found.groups) <= set(catalogue.groups())
    modes = ("off", "lazy", "eager")
    assert {(p.levels, *p.chosen) for p in points if p.group == "mm"} == set(
        product((4, 5), ("on", "off"), ("always", "never"), modes)
    )
    words = {p.values["replication"]: p.words(own=True).split()[2:] for p in points if p.group == "mm"}
    assert words == {"off": [], "lazy": ["pgtable_repl=force"], "eager": ["pgtable_repl=force,eager"]}
    assert not any("pgtable_repl" in p.words(own=False) for p in points)
    assert {p.group for p in points if "numa_mmu" in p.values} == {"kvm"}
    kvm = [p for p in points if p.group == "kvm"]
    assert {tuple(p.values) for p in kvm} == {("group", "levels", "threads", "numa_mmu")}
    assert {"numalab.bounce" in p.words(own=own) for p in kvm for own in (True, False)} == {True, False}
    assert not any("numalab.bounce" in p.words(own=True) for p in points if p.group != "kvm")
    guests = [p for p in kvm if p.values["threads"] == "free"]
    assert {p.values["numa_mmu"]: p.words(own=True).split() for p in guests} == {
        "off": [],
        "local": ["kvm.numa_mmu=local"],
        "replicate": ["kvm.numa_mmu=replicate"],
    }
    assert not any("numa_mmu" in p.words(own=False) for p in points)
    assert {p.group for p in points if "ksm" in p.values} == {"ksm"}
    files = {p.values["ksm"]: dict(p.files(own=True)) for p in points if p.group == "ksm"}
    ksm = "/sys/kernel/mm/ksm"
    assert files == {
        "off": {},
        "policy": {f"{ksm}/numa_policy": "fair", f"{ksm}/numa_max_copies": "2"},
        "threads": {f"{ksm}/scan_threads": "4"},
    }
    assert not any(p.files(own=False) for p in points)
    assert not any("/sys" in p.words(own=own) for p in points for own in (True, False))
    mm = {each.name for each in catalogue.group("mm").programs if each.name.startswith("ksm_")}
    assert {each.name for each in catalogue.group("ksm").programs} == mm
    assert (found.kernel, found.against) == ("patched", "stock")
    assert found.baseline_repeats > 1, "a flaky test is to be known"


def test_files_are_set_and_not_booted_with(bench: Bench, tmp_path: Path) -> None:
    text = TEXT.replace('force = "pgtable_repl=force"', 'force = "/sys/a=1 word /sys/b=x=y"')
    [point] = matrix.points(read(tmp_path, text), ["group=futex", "levels=4", "pti=on", "replication=force"])
    assert point.words(own=True) == "pti=on word"
    mine, other = bench.rig.settings(point)
    assert (mine.append, mine.files) == ("pti=on word", (("/sys/a", "1"), ("/sys/b", "x=y")))
    assert (other.append, other.files) == ("pti=on", ())
    assert mine.key() != replace(mine, files=()).key()


def test_points(described: Matrix) -> None:
    points = matrix.points(described)
    assert len(points) == len({point.name for point in points}) == 2 * 2 * 2 * 2
    last = points[-1]
    assert last.name == "proc-levels=5-pti=on-replication=force"
    assert last.values == {"group": "proc", "levels": "5", "pti": "on", "replication": "force"}
    assert last.words(own=True) == "pti=on pgtable_repl=force"
    assert last.words(own=False) == "pti=on", "the stock kernel knows no such word"


def test_an_axis_of_some_groups(tmp_path: Path) -> None:
    found = matrix.points(read(tmp_path, TEXT + '[limited]\nreplication = ["proc"]\n'))
    assert [point.name for point in found if point.group == "futex"] == [
        f"futex-levels={levels}-pti={pti}" for levels in (4, 5) for pti in ("off", "on")
    ]
    assert len([point for point in found if point.group == "proc"]) == 2 * 2 * 2
    assert {point.group for point in matrix.points(found[0].matrix, ["replication=off"])} == {"proc"}
    table = report.page(found[0].matrix, found, [])
    assert "| futex | 4 | off | – |" in table


def test_explanations_of_one_place(tmp_path: Path) -> None:
    text = '[[explained]]\ntest = "a*"\nwhy = "always"\n[[explained]]\ntest = "b"\nwhere = "pti=on"\nwhy = "pti"\n'
    known = {point.values["pti"]: point.explanations for point in matrix.points(read(tmp_path, TEXT + text))}
    assert known == {"on": {"a*": "always", "b": "pti"}, "off": {"a*": "always"}}


@pytest.mark.parametrize("where", ["pti=maybe", "numa_mmu=replicate", "pti", "group=mm", "levels=6"])
def test_an_explanation_of_a_place_that_is_none(where: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"explained\.where: no '{where}' in this matrix"):
        read(tmp_path, TEXT + f'[[explained]]\ntest = "a"\nwhere = "{where}"\nwhy = "b"\n')


@pytest.mark.parametrize("where", ["pti=on", "replication=force", "group=proc", "levels=5"])
def test_an_explanation_of_any_place_there_is(where: str, tmp_path: Path) -> None:
    found = read(tmp_path, TEXT + f'[[explained]]\ntest = "a"\nwhere = "{where}"\nwhy = "b"\n')
    assert found.explained_at == {where: {"a": "b"}}


def test_shares_are_for_processes_at_once(described: Matrix) -> None:
    points = matrix.points(described)
    for of in (1, 2, 3, 8, 40):
        shares = [matrix.share(points, which, of) for which in range(1, of + 1)]
        assert sorted(each.name for share in shares for each in share) == sorted(each.name for each in points)
        held = [{(each.group, each.levels, each.words(own=False)) for each in share} for share in shares]
        assert sum(map(len, held)) == len(set().union(*held)) == 8, "no baseline is in two shares"
    sizes = [len(matrix.share(points, which, 2)) for which in (1, 2)]
    assert sizes == [8, 8]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "/"])
def test_a_share_that_is_none(text: str, described: Matrix, tmp_path: Path) -> None:
    found = CliRunner().invoke(
        cli.command, ["matrix", "--file", str(tmp_path / "m.toml"), "--dry-run", "--share", text]
    )
    assert isinstance(found.exception, UserError)
    assert "write K/N" in str(found.exception)


def test_only(described: Matrix) -> None:
    assert len(matrix.points(described, ["group=proc", "levels=4", "replication=off"])) == 2
    assert len(matrix.points(described, ["pti=on", "pti=off"])) == 16
    for text, words in (
        ("grop=proc", "KEY one of group, levels, pti, replication (did you mean 'group'?)"),
        ("group=prok", "no group 'prok' in this matrix (did you mean 'proc'?)"),
        ("levels=3", "no levels '3' in this matrix"),
    ):
        with pytest.raises(UserError) as caught:
            matrix.points(described, [text])
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('groups = ["mmm"]', "m.toml: groups[0]: unknown group 'mmm' (did you mean 'mm'?)"),
        ("levels = [4]", "m.toml: groups: is missing"),
        ('groups = ["mm"]\nlevels = [3]', "m.toml: levels[0]: must be 4 or 5, not 3"),
        ('groups = ["mm"]\nlevels = ["4"]', "m.toml: levels[0]: must be 4 or 5, not a string"),
        ('groups = ["mm"]\nkernl = "x"', "m.toml: kernl: unknown key (did you mean 'kernel'?)"),
        ('groups = ["mm"]\n[axes.pti]', "m.toml: axes.pti: must have at least one value"),
        ('groups = ["mm"]\n[axes.pti]\non = 1', "m.toml: axes.pti.on: must be a string, not an integer (1)"),
        ('groups = ["mm"]\n[axes.levels]\non = "x"', "m.toml: axes.levels: the name is taken"),
        ('groups = ["mm"]\n[axes.a]\non = "x"\n[own.a]\non = "x"', "m.toml: own.a: the name is taken"),
        ('groups = ["mm"]\n[limited]\npt = ["mm"]', "m.toml: limited.pt: no axis of that name"),
        (
            'groups = ["mm"]\n[axes.pti]\non = "x"\n[limited]\npti = ["kvm"]',
            "m.toml: limited.pti: no group 'kvm' in this matrix",
        ),
        ('groups = ["mm"]\n[[explained]]\ntest = "x"', "each [[explained]] has a test and a why"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)


# Running.


class Bench:
    """Stands for machines: `verdicts` says what a program comes to on a kernel with these boot options."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out = tmp_path / "out"
        self.verdicts: dict[tuple[str, str], Verdict] = {}
        self.lost: set[str] = set()
        self.slow: list[str] = []
        self.runs: list[tuple[str, str, int, str]] = []
        self.rig = Rig(kernel("patched"), kernel("stock"), Programs(Path("/built"), {}, {}, "programs 1"), "tcg")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(runner, "run", self.run)
        real = lab.run

        def remember(setting: lab.Setting, *args: Any, **more: Any) -> Any:
            self.setting = setting
            return real(setting, *args, **more)

        monkeypatch.setattr(lab, "run", remember)

    def run(self, group: Any, programs: Any, opened: Any, linkage: Any, *, on_result: Any, **_: Any) -> None:
        setting = self.setting
        name = setting.kernel.name
        self.runs.append((group.name, name, setting.topology.paging_levels, setting.append))
        if name in self.lost:
            raise BootFailureError("the guest did not answer")
        if name in self.slow:
            self.slow.remove(name)
            raise BootFailureError("the guest did not answer yet")
        for program in programs:
            verdict = self.verdicts.get((name, program.name), Verdict.PASS)
            reason = "" if verdict.good else "it | broke\nbadly"
            on_result(runner.Result(program.name, verdict, reason))


def kernel(name: str, build: str = "1") -> KernelImage:
    series = {"series": {"sets": ["common"]}} if name == "patched" else {}
    return KernelImage(name, Path(f"/boot/{name}"), f"6.12-{name}", build_id=f"{name}{build}" * 4, provenance=series)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def one(described: Matrix, *only: str) -> Point:
    return matrix.points(described, ["group=futex", *only])[0]


def test_both_kernels_boot_with_what_they_understand(bench: Bench, described: Matrix) -> None:
    point = one(described, "levels=5", "pti=on", "replication=force")
    told = []
    outcome = matrix.run(
        point, bench.rig, bench.out, on_result=lambda name: lambda n, of, r: told.append((name, n, of))
    )
    assert bench.runs == [
        ("futex", "stock", 5, "pti=on"),
        ("futex", "stock", 5, "pti=on"),
        ("futex", "patched", 5, "pti=on pgtable_repl=force"),
    ]
    assert not outcome.blames
    assert list(dict.fromkeys(told)) == [("stock (baseline)", 1, 2), ("stock (baseline)", 2, 2), ("patched", 1, 1)]


def test_what_stands_is_not_run_again(bench: Bench, described: Matrix) -> None:
    point = one(described)
    first = matrix.run(point, bench.rig, bench.out)
    bench.runs.clear()
    assert matrix.standing(point, bench.rig, bench.out) == matrix.run(point, bench.rig, bench.out)
    assert bench.runs == []
    assert first.found is not None
    # Another value of an axis of our own: the baseline is known already.
    matrix.run(one(described, "replication=force"), bench.rig, bench.out)
    assert [name for _, name, _, _ in bench.runs] == ["patched"]


@pytest.mark.parametrize(
    ("change", "kernels"),
    [
        ({"kernel": kernel("patched", "2")}, ["patched"]),
        ({"against": kernel("stock", "2")}, ["stock", "stock", "patched"]),
        ({"built": Programs(Path("/built"), {}, {}, "programs 2")}, ["stock", "stock", "patched"]),
    ],
)
def test_what_decides_a_result_is_run_anew_when_it_changes(
    bench: Bench, described: Matrix, change: dict[str, Any], kernels: list[str]
) -> None:
    point = one(described)
    matrix.run(point, bench.rig, bench.out)
    bench.runs.clear()
    rig = Rig(**{**vars(bench.rig), **change})
    assert matrix.standing(point, rig, bench.out) is None
    matrix.run(point, rig, bench.out)
    assert [name for _, name, _, _ in bench.runs] == kernels


def test_a_regression_blames_until_it_is_explained(bench: Bench, tmp_path: Path, described: Matrix) -> None:
    bench.verdicts["patched", "futex_wait"] = Verdict.FAIL
    assert matrix.run(one(described), bench.rig, bench.out).blames
    bench.runs.clear()
    explained = read(tmp_path, TEXT + '[[explained]]\ntest = "futex_wait"\nwhy = "meant"\n')
    outcome = matrix.run(one(explained), bench.rig, bench.out)
    assert bench.runs == [], "an explanation is no reason to run anything"
    assert not outcome.blames
    assert outcome.differences[0].explained == "meant"


def test_a_kernel_that_does_not_boot_is_an_outcome_that_does_not_stand(bench: Bench, described: Matrix) -> None:
    bench.lost = {"patched"}
    outcome = matrix.run(one(described), bench.rig, bench.out)
    assert (outcome.blames, outcome.lost) == (True, "the guest did not answer")
    bench.lost = set()
    assert not matrix.run(one(described), bench.rig, bench.out).blames


def test_a_boot_that_took_too_long_is_tried_once_more(bench: Bench, described: Matrix) -> None:
    bench.slow = ["patched"]
    assert matrix.run(one(described), bench.rig, bench.out).lost == ""
    assert [name for _, name, _, _ in bench.runs] == ["stock", "stock", "patched", "patched"]
    bench.slow = ["patched", "patched"]
    outcome = matrix.run(one(described, "pti=on"), bench.rig, bench.out)
    assert outcome.lost == "the guest did not answer yet"


def test_an_interrupted_point_does_not_stand(bench: Bench, described: Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    matrix.run(one(described), bench.rig, bench.out)
    newer = Rig(**{**vars(bench.rig), "kernel": kernel("patched", "2")})
    with monkeypatch.context() as patch:
        patch.setattr(runner, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            matrix.run(one(described), newer, bench.out)
    for rig in (newer, bench.rig):
        assert matrix.standing(one(described), rig, bench.out) is None


def test_an_interrupted_point_goes_on_with_the_next_program(bench: Bench, described: Matrix) -> None:
    def count(verdicts: dict[str, int]) -> Any:
        def told(name: str) -> Any:
            def one_more(*_: Any) -> None:
                verdicts[name] = verdicts.get(name, 0) + 1
                if verdicts[name] == 3:
                    raise KeyboardInterrupt

            return one_more

        return told

    first: dict[str, int] = {}
    with pytest.raises(KeyboardInterrupt):
        matrix.run(one(described), bench.rig, bench.out, on_result=count(first))
    assert first == {"stock (baseline)": 3}
    first["stock (baseline)"] = 100
    with pytest.raises(KeyboardInterrupt):
        matrix.run(one(described), bench.rig, bench.out, on_result=count(first))
    programs = len(catalogue.group("futex").programs)
    assert first == {"stock (baseline)": 100 + 2 * programs - 3, "patched": 3}
    last = {"patched": 100}
    outcome = matrix.run(one(described), bench.rig, bench.out, on_result=count(last))
    assert last == {"patched": 100 + programs - 3}
    assert outcome.found is not None
    assert len(outcome.found.programs()) == programs
    # Not with what another kernel had done.
    bench.lost = {"patched"}
    matrix.run(one(described), bench.rig, bench.out)
    newer = Rig(**{**vars(bench.rig), "kernel": kernel("patched", "2")})
    bench.lost = set()
    last = {"patched": 100}
    matrix.run(one(described), newer, bench.out, on_result=count(last))
    assert last == {"patched": 100 + programs}


# The page.


def test_the_page(bench: Bench, described: Matrix) -> None:
    bench.verdicts = {
        ("patched", "futex_wait"): Verdict.FAIL,
        ("stock", "futex_waitv"): Verdict.SKIP,
        ("stock", "futex_requeue"): Verdict.FAIL,
        ("patched", "futex_requeue"): Verdict.FAIL,
    }
    points = matrix.points(described)
    outcomes = [matrix.run(point, bench.rig, bench.out) for point in points[:2]]
    bench.lost = {"patched"}
    outcomes.append(matrix.run(points[2], bench.rig, bench.out))
    text = report.page(described, points, outcomes)
    lines = text.splitlines()
    assert max(map(len, lines[:8])) <= 120
    assert "3 of 16 points are done; 3 of them blame the kernel under test." in text
    assert "| under test | patched 6.12-patched | `patched1patched1` | common | emulated | " in text
    assert "| compared with | stock 6.12-stock | `stock1stock1stoc` | none | emulated | " in text
    assert "| group | levels | pti | replication | stock | patched | differences |" in lines
    row = "| futex | 4 | off | off | 9 ok, 1 skipped, 1 failing | 9 ok, 2 failing | 1 **regression**, 1 runs only now |"
    assert row in lines
    assert "| futex | 4 | on | off | – | – | **machine lost: the guest did not answer** |" in lines
    assert "| proc | 5 | on | force | – | – | not run yet |" in lines
    differences = lines[lines.index("## Differences") :]
    assert differences[2].startswith("* **machine lost** `futex`: the guest did not answer (futex-levels=4-pti=on")
    assert differences[3].startswith("* **regression** `futex_wait`: ")
    assert "it \\| broke badly (futex-levels=4-pti=off-replication=off and 1 more)" in differences[3]
    assert differences[4].startswith("* runs only now `futex_waitv`: was skipped in the baseline")
    before = lines[lines.index("## What does not hold on stock either") :]
    assert before[2].startswith("* `futex: futex_requeue` failing: it \\| broke badly (")
    assert before[3].startswith("* `futex: futex_waitv` skipped: ")


def test_the_page_tells_harmless_differences_by_their_reason(described: Matrix) -> None:
    def found(test: str, judgement: Judgement, why: str) -> Difference:
        return Difference("cow", test, judgement, "skip 1/1", "pass 1/1", why)

    points = matrix.points(described)
    runs = [found(f"with THP {size}", Judgement.RUNS, "was skipped in the baseline: no gup_test") for size in range(99)]
    bad = [found(f"pin {number}", Judgement.REGRESSION, "held in the baseline") for number in range(3)]
    lines = report.page(described, points, [Outcome(points[0], differences=(*runs, *bad))]).splitlines()
    told = lines[lines.index("## Differences") + 2 : lines.index("## What does not hold on stock either") - 1]
    assert [line.partition("(")[0] for line in told[:3]] == [
        f"* **regression** `cow: pin {number}`: held in the baseline " for number in range(3)
    ]
    where = f"({points[0].name})"
    assert told[3:] == [
        "* runs only now `cow` (99 tests, such as `with THP 0`): was skipped in the baseline: no gup_test " + where
    ]


def test_the_page_before_anything_was_run(described: Matrix) -> None:
    text = report.page(described, matrix.points(described), [])
    assert "0 of 16 points are done; 0 of them blame" in text
    assert "| under test | patched – | `–` | – | – | – |" in text
    assert text.count("Nothing has been run yet.") == 2


# The verb.


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli.command, ["matrix", *words], standalone_mode=False, catch_exceptions=False)


@pytest.fixture
def verb(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(images, "resolve", lambda name, **_: kernel(name))
    monkeypatch.setattr(accel, "choose", lambda wanted: "tcg")
    monkeypatch.setattr(cli, "built_programs", lambda source: bench.rig.built)
    (tmp_path / "m.toml").write_text(TEXT)
    return bench


def test_the_verb(verb: Bench, tmp_path: Path) -> None:
    verb.verdicts["patched", "futex_wait"] = Verdict.FAIL
    only = ["--file", "m.toml", "--only", "group=futex", "--only", "levels=4", "--only", "replication=off"]
    done = invoke(*only, "--table", "docs/t.md")
    assert done.return_value == 1
    assert "1/2 futex-levels=4-pti=off-replication=off" in done.stderr
    assert "patched: fail       futex_wait" in done.stderr
    assert done.stdout.splitlines()[-1] == "2 of 2 points are done; 2 of them blame the kernel under test"
    page = (tmp_path / "docs/t.md").read_text()
    assert "2 of 16 points are done" in page
    verb.runs.clear()
    again = invoke("--file", "m.toml", "--no-run", "--json", "--table", "docs/t.md")
    assert verb.runs == []
    value = json.loads(again.stdout)
    assert (again.return_value, value["points"], len(value["done"])) == (1, 16, 2)
    assert value["done"][0]["differences"][0]["program"] == "futex_wait"
    assert (tmp_path / "docs/t.md").read_text() == page, "the same results, the same page"


def test_the_verb_says_what_it_would_run(verb: Bench) -> None:
    lines = invoke("--file", "m.toml", "--dry-run").stdout.splitlines()
    assert lines[-1] == "16 points"
    assert lines[-2] == "proc-levels=5-pti=on-replication=force: pti=on pgtable_repl=force"
    rows = json.loads(invoke("--file", "m.toml", "--dry-run", "--json").stdout)
    assert (rows[-1]["append"], rows[-1]["against"]) == ("pti=on pgtable_repl=force", "pti=on")
    assert verb.runs == []
