"""Recorded runs, what their repeats say together, and what is blamed on the kernel under test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numalab.errors import ExperimentError, UserError
from numalab.selftest import record
from numalab.selftest.compare import Difference, Judgement, compare, read_explanations
from numalab.selftest.record import History, Run, Standing
from numalab.selftest.runner import Result
from numalab.selftest.verdict import Verdict

LETTERS = {
    "p": Verdict.PASS,
    "f": Verdict.FAIL,
    "s": Verdict.SKIP,
    "x": Verdict.XFAIL,
    "i": Verdict.INCOMPLETE,
    "t": Verdict.TIMEOUT,
    "l": Verdict.LOST,
}


def run(**programs: str | Sequence[Result]) -> Run:
    """A run in which each program came to the verdicts its letters stand for, one letter per repeat."""
    results = {
        name: [Result(name, LETTERS[letter], f"says {letter}") for letter in given] if isinstance(given, str) else given
        for name, given in programs.items()
    }
    count = max(len(given) for given in results.values())
    repeats = tuple(tuple(given[n] for given in results.values() if n < len(given)) for n in range(count))
    return Run("mm", {"name": "k", "release": "6.12"}, {}, "key", repeats)


def cow_result(verdict: Verdict, *, planned: int | None = None, **tests: str) -> Result:
    found = {name.replace("_", " "): (LETTERS[letter], "") for name, letter in tests.items()}
    return Result("cow", verdict, tests=found, planned=planned)


def judged(now: str, before: str) -> Judgement | None:
    differences = compare(run(cow=now), run(cow=before))
    assert len(differences) <= 1
    return differences[0].judgement if differences else None


@pytest.mark.parametrize(
    ("letters", "standing"),
    [
        ("ppp", Standing.STABLE_PASS),
        ("ppx", Standing.STABLE_PASS),
        ("pps", Standing.STABLE_PASS),
        ("fff", Standing.STABLE_FAIL),
        ("ftl", Standing.STABLE_FAIL),
        ("fs", Standing.STABLE_FAIL),
        ("ppf", Standing.FLAKY),
        ("pi", Standing.FLAKY),
        ("sss", Standing.SKIP),
    ],
)
def test_standing(letters: str, standing: Standing) -> None:
    assert run(cow=letters).programs()["cow"].standing is standing


def test_test_that_is_not_always_reported_is_not_stable() -> None:
    found = run(cow=[cow_result(Verdict.PASS, a="p", b="p"), cow_result(Verdict.INCOMPLETE, a="p")]).tests("cow")
    assert found["a"].standing is Standing.STABLE_PASS
    assert found["b"].standing is Standing.FLAKY
    assert str(found["b"]) == "pass 1/2, not reported 1/2"


def test_history_in_words() -> None:
    assert str(History((Verdict.PASS, Verdict.FAIL, Verdict.PASS), 3)) == "pass 2/3, fail 1/3"


@pytest.mark.parametrize(
    ("now", "before", "judgement"),
    [
        ("p", "ppp", None),
        ("f", "fff", None),
        ("s", "sss", None),
        ("ppp", "pfp", None),
        ("f", "ppp", Judgement.REGRESSION),
        ("ff", "ppp", Judgement.REGRESSION),
        ("t", "ppp", Judgement.REGRESSION),
        ("i", "ppp", Judgement.REGRESSION),
        ("f", "sss", Judgement.REGRESSION),
        ("l", "fff", Judgement.REGRESSION),  # it failed before, but the machine lived
        ("l", "pff", Judgement.REGRESSION),
        ("l", "lll", None),
        ("pf", "ppp", Judgement.SUSPECT),
        ("f", "ppf", Judgement.FLAKY),
        ("pf", "ppf", Judgement.FLAKY),
        ("s", "ppp", Judgement.SKIPPED),
        ("sx", "ppp", None),
        ("p", "fff", Judgement.FIXED),
        ("p", "sss", Judgement.RUNS),
    ],
)
def test_judgement(now: str, before: str, judgement: Judgement | None) -> None:
    assert judged(now, before) is judgement


@settings(deadline=None)  # wall time says nothing on a busy machine
@given(st.text("pfsxitl", min_size=1, max_size=4))
def test_a_run_never_differs_from_itself_in_a_way_that_blames(letters: str) -> None:
    one = run(cow=letters)
    assert not any(difference.blames for difference in compare(one, one))


@settings(deadline=None)
@given(st.text("px", min_size=1, max_size=3), st.text("fit", min_size=1, max_size=3))
def test_what_always_held_and_never_does_now_is_blamed(before: str, now: str) -> None:
    assert judged(now, before) is Judgement.REGRESSION


def test_what_does_not_run_any_more_blames_until_explained() -> None:
    now, before = run(cow="s"), run(cow="ppp")
    assert [each.blames for each in compare(now, before)] == [True]
    assert [each.blames for each in compare(now, before, {"cow": "lacks memory there"})] == [False]
    part = run(cow=[cow_result(Verdict.PASS, a="p", b="s")]), run(cow=[cow_result(Verdict.PASS, a="p", b="p")])
    assert [(each.name, each.blames) for each in compare(*part)] == [("cow: b", True)]
    assert compare(run(cow="s"), run(cow="sss")) == []


def test_program_that_the_baseline_does_not_have() -> None:
    (difference,) = compare(run(cow="p", new="f"), run(cow="p"))
    assert (difference.program, difference.judgement, difference.blames) == ("new", Judgement.NEW_FAILURE, True)
    assert compare(run(cow="p", new="p"), run(cow="p")) == []


def test_program_that_was_not_run_now_is_no_difference() -> None:
    assert compare(run(cow="p"), run(cow="p", other="p")) == []


def only(differences: list[Difference]) -> Difference:
    (difference,) = differences
    return difference


def test_failing_test_is_told_instead_of_its_program() -> None:
    now = run(cow=[cow_result(Verdict.FAIL, a="p", b="f")])
    before = run(cow=[cow_result(Verdict.PASS, a="p", b="p")])
    difference = only(compare(now, before))
    assert (difference.name, difference.judgement) == ("cow: b", Judgement.REGRESSION)
    assert "once" in difference.explanation


def test_new_failure_in_a_program_that_failed_before() -> None:
    now = run(cow=[cow_result(Verdict.FAIL, a="f", b="f")])
    before = run(cow=[cow_result(Verdict.FAIL, a="p", b="f")] * 3)
    assert only(compare(now, before)).name == "cow: a"


def test_flaky_test_is_not_blamed() -> None:
    now = run(cow=[cow_result(Verdict.FAIL, a="f", b="p")])
    before = run(cow=[cow_result(Verdict.PASS, a="p", b="p"), cow_result(Verdict.FAIL, a="f", b="p")])
    differences = compare(now, before)
    assert {difference.judgement for difference in differences} == {Judgement.FLAKY}
    assert not any(difference.blames for difference in differences)


def test_crash_of_a_program_is_told_beside_its_tests() -> None:
    now = run(cow=[Result("cow", Verdict.FAIL, "cow was killed by signal 11", {"a": (Verdict.PASS, "")})])
    before = run(cow=[cow_result(Verdict.PASS, a="p")])
    assert only(compare(now, before)).name == "cow"


def test_tests_that_vanish() -> None:
    before = run(cow=[cow_result(Verdict.PASS, a="p", b="p")] * 3)
    difference = only(compare(run(cow=[cow_result(Verdict.PASS, a="p")]), before))
    assert (difference.name, difference.judgement, difference.blames) == ("cow: b", Judgement.GONE, True)
    # A program that ended early is told once, not test by test.
    difference = only(compare(run(cow=[cow_result(Verdict.TIMEOUT, a="p")]), before))
    assert (difference.name, difference.judgement) == ("cow", Judgement.REGRESSION)


def test_tests_worded_by_their_outcome_are_known_by_their_place() -> None:
    held = cow_result(Verdict.PASS, planned=2, a="p", wake_succeeds="p")
    failed = cow_result(Verdict.FAIL, planned=2, a="p", wake_returned_0="f")
    difference = only(compare(run(cow=[failed]), run(cow=[held] * 3)))
    assert (difference.name, difference.judgement) == ("cow: wake succeeds", Judgement.REGRESSION)
    assert difference.explanation.endswith("wake returned 0")
    differences = compare(run(cow=[failed]), run(cow=[held, failed, held]))
    assert {(each.name, each.judgement) for each in differences} == {
        ("cow", Judgement.FLAKY),
        ("cow: wake succeeds", Judgement.FLAKY),
    }
    # Cut off: the places it did not come to are missing.
    cut = cow_result(Verdict.INCOMPLETE, planned=2, a="p")
    assert only(compare(run(cow=[cut]), run(cow=[held] * 3))).name == "cow"


def test_words_that_vary_from_repeat_to_repeat_are_no_failure() -> None:
    """As pgtable_alloc_node reports "full node: 0 tables there, 10016 elsewhere"."""
    now = [cow_result(Verdict.PASS, planned=2, a="p", **{f"tables_{count}": "p"}) for count in (10016, 10177)]
    skipped = [Result("cow", Verdict.SKIP, planned=0)] * 2
    assert [each.name for each in compare(run(cow=now), run(cow=skipped))] == ["cow"]
    before = [cow_result(Verdict.PASS, planned=2, a="p", **{f"tables_{count}": "p"}) for count in (1, 2, 3)]
    assert compare(run(cow=now), run(cow=before)) == []
    unplanned = [Result("cow", each.verdict, tests=each.tests) for each in (*now, *before)]
    assert compare(run(cow=unplanned[:2]), run(cow=unplanned[2:])) == []


def test_complaints_of_the_kernel() -> None:
    def complaining(*lines: str) -> Run:
        return run(cow=[Result("cow", Verdict.PASS, complaints=lines)])

    old = "WARNING: CPU: 0 PID: 77 at mm/rmap.c:1 f+0x10/0x20"
    same = "WARNING: CPU: 3 PID: 12 at mm/rmap.c:1 f+0x11/0x20"
    new = "BUG: KASAN: use-after-free in g+0x1/0x2"
    assert compare(complaining(same), complaining(old)) == []
    difference = only(compare(complaining(same, new, new), complaining(old)))
    assert (difference.judgement, difference.blames) == (Judgement.COMPLAINT, True)
    assert difference.explanation == f"the kernel said: {new}"


def test_explained_differences_are_not_blamed(tmp_path: Path) -> None:
    file = tmp_path / "why.toml"
    file.write_text('[[explained]]\ntest = "cow: b*"\nwhy = "counts faults, of which there are more now"\n')
    now, before = run(cow=[cow_result(Verdict.FAIL, a="p", b1="f")]), run(cow=[cow_result(Verdict.PASS, a="p", b1="p")])
    difference = only(compare(now, before, read_explanations(file)))
    assert difference.explained == "counts faults, of which there are more now"
    assert not difference.blames
    assert difference.to_json()["judgement"] == "regression"


@pytest.mark.parametrize("text", ["[[explained]]\ntest = 'a'\n", "explained = 3", "[[", "explained = [3]"])
def test_bad_explanations(tmp_path: Path, text: str) -> None:
    file = tmp_path / "why.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"why\.toml"):
        read_explanations(file)
    with pytest.raises(UserError, match="No such file"):
        read_explanations(tmp_path / "none.toml")


def test_worst_first() -> None:
    now = run(a="p", b="f", c="s", d="f")
    before = run(a="f", b="p", c="p", d="pf")
    assert [difference.program for difference in compare(now, before)] == ["b", "c", "d", "a"]


def test_other_group() -> None:
    other = Run("x86", {}, {}, "key", ())
    with pytest.raises(UserError, match="group mm cannot be compared with those of group x86"):
        compare(run(cow="p"), other)


def test_saved_and_loaded(tmp_path: Path) -> None:
    one = run(cow=[cow_result(Verdict.FAIL, planned=3, a="p", b="f")], mremap="t")
    one.save(tmp_path / "results.json")
    assert record.load(tmp_path) == record.load(tmp_path / "results.json") == one


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"schema": 99}, ExperimentError, "schema 99"),
        ({"kind": "numalab-result"}, UserError, "holds no results of kernel test programs"),
        ({"repeats": [[{"program": "cow"}]]}, ExperimentError, "is damaged"),
        ({"repeats": 3}, ExperimentError, "is damaged"),
        (
            {"repeats": [[{**Result("a", Verdict.PASS).to_json(), "verdict": "great"}]]},
            ExperimentError,
            "'great' is not a valid Verdict",
        ),
    ],
)
def test_bad_files(tmp_path: Path, change: dict[str, object], error: type[Exception], words: str) -> None:
    file = tmp_path / "results.json"
    run(cow="p").save(file)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(error, match=words):
        record.load(tmp_path)


def test_cut_off_and_absent_files(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    with pytest.raises(UserError, match="No such file"):
        record.load(tmp_path)
    run(cow="p").save(file)
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ExperimentError, match="is damaged"):
        record.load(tmp_path)
