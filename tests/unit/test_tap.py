"""Reading TAP and KTAP: recorded output of real selftests, the forms of the specification, and what goes wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numalab.selftest import legacy, tap
from numalab.selftest.tap import Output, Test
from numalab.selftest.verdict import Verdict, worst

Test.__test__ = False  # type: ignore[attr-defined]  # pytest takes it for a class of tests

RECORDED = Path(__file__).parent.parent / "fixtures" / "tap"
PASS, FAIL, SKIP, XFAIL, INCOMPLETE = (
    Verdict.PASS,
    Verdict.FAIL,
    Verdict.SKIP,
    Verdict.XFAIL,
    Verdict.INCOMPLETE,
)


def recorded(name: str) -> Output:
    return tap.parse((RECORDED / f"{name}.out").read_bytes())


def read(*lines: str) -> Output:
    return tap.parse("".join(f"{line}\n" for line in lines).encode())


def counts(output: Output) -> dict[Verdict, int]:
    return dict(Counter(verdict for verdict, _ in output.leaves().values()))


# Recorded from programs of Linux 6.12.117 on Debian's kernel in an emulated machine.


@pytest.mark.parametrize(
    ("name", "verdict", "planned", "expected"),
    [
        ("madv_populate", PASS, 21, {PASS: 21}),
        ("mdwe_test", PASS, 36, {PASS: 32, SKIP: 4}),
        ("gup_longterm", PASS, 50, {PASS: 8, SKIP: 42}),
        ("mremap_test", FAIL, 19, {PASS: 12, FAIL: 4, XFAIL: 3}),
        ("futex_wait", FAIL, 3, {PASS: 2, FAIL: 1}),
        ("futex_waitv", PASS, 7, {PASS: 7}),
        ("test_vsyscall_64", PASS, 13, {PASS: 8, SKIP: 5}),
        ("on-fault-limit", SKIP, 1, {SKIP: 1}),
    ],
)
def test_recorded(name: str, verdict: Verdict, planned: int, expected: dict[Verdict, int]) -> None:
    output = recorded(name)
    assert (output.verdict, output.planned, counts(output)) == (verdict, planned, expected)
    assert output.problems == ()


def test_recorded_names() -> None:
    assert list(recorded("futex_wait").leaves()) == [
        "futex_wake private succeeds",
        "futex_wake shared (page anon) returned: 0 Success",
        "futex_wake shared (file backed) succeeds",
    ]
    # Several results behind one "[RUN]" line, or one each.
    assert "test_holes: MADV_POPULATE_READ with holes at the end" in recorded("madv_populate").leaves()
    names = recorded("gup_longterm").leaves()
    assert "R/W longterm GUP pin in MAP_SHARED file mapping ... with tmpfile" in names
    assert names["R/W longterm GUP pin in MAP_SHARED file mapping ... with tmpfile"] == (SKIP, "gup_test not available")


def test_recorded_of_a_program_whose_child_prints_too() -> None:
    """ksm_functional_tests executes itself: two number eights, two totals; every test held."""
    output = recorded("ksm_functional_tests")
    assert output.verdict is PASS
    assert "number 8 is used twice" in output.notes
    assert len(output.leaves()) == 10


def test_recorded_without_a_single_test() -> None:
    output = recorded("thuge-gen")
    assert output.verdict is INCOMPLETE
    assert output.problems == ("no test reported",)


def test_recorded_and_cut_off() -> None:
    output = recorded("cow-cut")
    assert output.verdict is INCOMPLETE
    assert output.planned == 778
    assert output.problems == ("tests: 778 planned, 154 reported",)
    assert "the last line is cut off" in output.notes[0]


@pytest.mark.parametrize("name", ["amx_64", "sigreturn_64", "test_shadow_stack_64", "uffd-unit-tests"])
def test_recorded_without_tap(name: str) -> None:
    output = recorded(name)
    assert not output.is_tap
    assert output.verdict is None
    assert output.tests == ()


def test_recorded_older_forms() -> None:
    sigreturn = legacy.parse((RECORDED / "sigreturn_64.out").read_bytes())
    assert counts(sigreturn) == {PASS: 19}
    assert sigreturn.tests[2].name == "Valid sigreturn: 64-bit CS (33), 32-bit SS (2b, GDT)"
    shadow = legacy.parse((RECORDED / "test_shadow_stack_64.out").read_bytes())
    assert counts(shadow) == {SKIP: 1}
    uffd = legacy.parse((RECORDED / "uffd-unit-tests.out").read_bytes())
    assert counts(uffd) == {PASS: 29, SKIP: 24, INCOMPLETE: 1}
    assert uffd.leaves()["events on shmem-private"] == (INCOMPLETE, "its end was never printed")
    assert uffd.leaves()["minor on hugetlb"] == (SKIP, "memory allocation failed")
    khugepaged = legacy.parse((RECORDED / "khugepaged.out").read_bytes())
    assert counts(khugepaged) == {PASS: 7, FAIL: 4}
    assert khugepaged.leaves()["collapse_max_ptes_swap (madvise:anon)"] == (FAIL, "Swapout 65 of 512 pages: Fail")
    assert legacy.parse((RECORDED / "amx_64.out").read_bytes()).tests == ()


def test_steps_of_a_test_together() -> None:
    output = legacy.parse(
        b"Run test: a\none... \x1b[32mOK\x1b[0m\ntwo.... \x1b[31mTimeout\x1b[0m\nthree... \x1b[32mOK\x1b[0m\n"
        b"Run test: b\none... \x1b[33mSkip\x1b[0m\nRun test: c\none... \x1b[33mSkip\x1b[0m\n"
        b"two... \x1b[32mOK\x1b[0m\nRun test: d\n"
    )
    assert [(test.name, test.verdict, test.reason) for test in output.tests] == [
        ("a", FAIL, "two: Timeout"),
        ("b", SKIP, "one: Skip"),
        ("c", PASS, ""),
        ("d", INCOMPLETE, "no step reported"),
    ]


def test_older_forms_that_fail() -> None:
    output = legacy.parse(
        b"[RUN]\tone\n\tsome detail\n[FAIL]\twrong value\n[SKIP]\tnot here\n"
        b"Testing x on y... failed [reason: z]\n\xff\n"
    )
    assert [(test.name, test.verdict, test.reason) for test in output.tests] == [
        ("one", FAIL, "wrong value"),
        ("one", SKIP, "not here"),
        ("x on y", FAIL, "z"),
    ]
    assert set(output.leaves()) == {"one", "one (2)", "x on y"}


# The forms of the specification.


def test_nested() -> None:
    output = read(
        "KTAP version 1",
        "1..2",
        "  KTAP version 1",
        "  # Subtest: inner",
        "  1..2",
        "    KTAP version 1",
        "    1..1",
        "    not ok 1 deepest",
        "  not ok 1 deep",
        "  ok 2 second",
        "not ok 1 inner",
        "ok 2 outer",
    )
    assert output.verdict is FAIL
    assert output.problems == ()
    assert output.leaves() == {
        "inner/deep/deepest": (FAIL, ""),
        "inner/second": (PASS, ""),
        "outer": (PASS, ""),
    }


def test_parent_that_says_ok_over_a_failed_subtest() -> None:
    output = read("TAP version 14", "1..1", "    1..2", "    ok 1 a", "    not ok 2 b", "ok 1 parent")
    assert output.verdict is FAIL
    assert output.tests[0].reason == "says ok, but a subtest does not"


def test_parent_that_fails_by_itself() -> None:
    output = read("TAP version 14", "1..1", "    1..1", "    ok 1 a", "not ok 1 parent")
    assert output.leaves() == {"parent/a": (PASS, ""), "parent": (FAIL, "")}


def test_subtests_without_a_parent() -> None:
    output = read("KTAP version 1", "1..1", "    # Subtest: suite", "    1..3", "    ok 1 a", "    ok 2 b")
    assert output.verdict is INCOMPLETE
    assert output.tests[0].name == "suite"
    assert any("3 planned, 2 reported" in problem for problem in output.problems)


def test_subtests_that_miss_their_plan_spoil_a_parent_that_says_ok() -> None:
    output = read("KTAP version 1", "1..1", "    1..3", "    ok 1 a", "ok 1 parent")
    assert output.verdict is INCOMPLETE


@pytest.mark.parametrize(
    ("line", "name", "verdict", "reason"),
    [
        ("ok 1 name", "name", PASS, ""),
        ("ok 1 - name with - dash", "name with - dash", PASS, ""),
        ("not ok 1 name", "name", FAIL, ""),
        ("ok 1", "", PASS, ""),
        ("ok 1 # SKIP name told as a reason", "name told as a reason", SKIP, "name told as a reason"),
        ("ok 1 name # SKIP no hardware", "name", SKIP, "no hardware"),
        ("ok 1 name # skipped: no hardware", "name", SKIP, "no hardware"),
        ("not ok 1 name # SKIP even so", "name", SKIP, "even so"),
        ("not ok 1 name # TODO later", "name", XFAIL, "later"),
        ("ok 1 name # TODO works already", "name", PASS, "works already"),
        ("ok 1 # XFAIL name", "name", XFAIL, "name"),
        ("not ok 1 name # XFAIL known", "name", XFAIL, "known"),
        ("ok 1 name # TIMEOUT 45 seconds", "name", FAIL, "45 seconds"),
        ("not ok 1 name # exit=1", "name # exit=1", FAIL, ""),
        ("ok 1 issue #12 is fixed", "issue #12 is fixed", PASS, ""),
        ("ok 1 a # b", "a # b", PASS, ""),
    ],
)
def test_directives(line: str, name: str, verdict: Verdict, reason: str) -> None:
    output = read("TAP version 13", "1..1", line)
    assert output.tests == (Test(name, verdict, 1, reason),)
    assert output.verdict is verdict


def test_skip_all() -> None:
    for line in ("1..0 # SKIP no KVM here", "1..0 # skip: no KVM here", "1..0 # SKIP - no KVM here"):
        output = read("TAP version 13", line)
        assert (output.verdict, output.skip_all, output.problems) == (SKIP, "no KVM here", ())


def test_bail_out() -> None:
    output = read("TAP version 13", "1..3", "ok 1 a", "Bail out! no memory")
    assert (output.verdict, output.bail) == (FAIL, "no memory")
    assert read("TAP version 13", "Bail out!").verdict is FAIL
    assert read("TAP version 13", "1..1", "ok 1 a", "Bail out!").verdict is FAIL


def test_plan_behind_the_tests() -> None:
    assert read("TAP version 13", "ok 1 a", "ok 2 b", "1..2").verdict is PASS
    assert read("TAP version 13", "ok 1 a", "ok 2 b", "1..3").verdict is INCOMPLETE


def test_no_plan() -> None:
    output = read("TAP version 13", "ok 1 a")
    assert output.verdict is PASS
    assert output.planned is None
    assert output.notes == ("no plan: whether all tests reported is unknown",)


def test_only_a_plan_is_no_pass() -> None:
    assert read("TAP version 13", "1..3").verdict is INCOMPLETE
    assert read("1..3").verdict is INCOMPLETE
    assert read("TAP version 13").verdict is INCOMPLETE


def test_more_than_planned_is_noted() -> None:
    output = read("1..1", "ok 1 a", "ok 2 b")
    assert (output.verdict, output.problems) == (PASS, ())
    assert output.notes == ("tests: 1 planned, 2 reported",)


def test_all_skipped_is_skip_and_one_pass_is_pass() -> None:
    assert read("1..2", "ok 1 a # SKIP", "ok 2 b # SKIP").verdict is SKIP
    assert read("1..2", "ok 1 a # SKIP", "ok 2 b").verdict is PASS
    assert read("1..2", "ok 1 a # SKIP", "not ok 2 b").verdict is FAIL


def test_totals_that_tell_of_a_failure_no_line_has() -> None:
    output = read("1..1", "ok 1 a", "# Totals: pass:1 fail:1 xfail:0 xpass:0 skip:0 error:0")
    assert output.verdict is INCOMPLETE


def test_several_documents() -> None:
    output = read("TAP version 13", "1..1", "ok 1 a", "TAP version 13", "1..2", "ok 1 b", "not ok 2 c")
    assert output.planned == 3
    assert list(output.leaves()) == ["a", "b", "c"]
    output = read("TAP version 13", "1..2", "ok 1 a", "TAP version 13", "1..1", "ok 1 b")
    assert output.verdict is INCOMPLETE  # the first never finished


def test_beginning_printed_twice_by_a_forked_child() -> None:
    output = read("TAP version 13", "1..2", "ok 1 a", "TAP version 13", "1..2", "ok 1 a", "ok 2 b")
    assert (output.verdict, output.planned, len(output.tests)) == (PASS, 2, 2)
    assert "printed twice" in output.notes[0]


def test_result_printed_twice() -> None:
    output = read("1..2", "ok 1 a", "ok 1 a", "ok 2 b")
    assert (output.verdict, len(output.tests)) == (PASS, 2)
    output = read("1..2", "ok 1 a", "not ok 1 a")
    assert output.verdict is FAIL  # a result that changes is not the same twice
    assert output.notes == ("number 1 is used twice",)


def test_same_name_twice() -> None:
    assert list(read("1..3", "ok 1 a", "not ok 2 a", "ok 3 a").leaves()) == ["a", "a (2)", "a (3)"]


def test_words_that_look_like_results() -> None:
    output = read("ok so this is no TAP", "okay 1 either", "ok", "not ok", "1..x", "nok 1", "ok,1")
    assert not output.is_tap


# Kernel messages, junk, and ends in the middle.


def test_kernel_messages_between_and_within_lines() -> None:
    output = read(
        "TAP version 13",
        "[   12.345678] usb 1-1: new device",
        "1..3",
        "ok 1 a[   12.345678] mm: something happened",
        "[   12.345679][  T123] ok 2 not one of ours",
        "ok 2 b",
        "<4>[   13.000000] ------------[ cut here ]------------",
        "ok 3 c",
    )
    assert (output.verdict, list(output.leaves())) == (PASS, ["a", "b", "c"])


def test_kernel_log_of_kunit() -> None:
    log = "\n".join(
        [
            "[    0.512345] KTAP version 1",
            "[    0.512346] 1..1",
            "[    0.512347]     KTAP version 1",
            "[    0.512348]     # Subtest: pgtable",
            "[    0.512349]     # module: pgtable_test",
            "[    0.512350]     1..2",
            "[    0.512351] random: crng init done",
            "<6>[    0.512352]     ok 1 leaf_value",
            "[    0.512353][    T1]     ok 2 ring # SKIP one node only",
            "[    0.512354] # pgtable: pass:1 fail:0 skip:1 total:2",
            "[    0.512355] # Totals: pass:1 fail:0 skip:1 total:2",
            "[    0.512356] ok 1 pgtable",
            "",
        ]
    ).encode()
    output = tap.parse(log, kernel_log=True)
    assert output.problems == ()
    assert output.leaves() == {"pgtable/leaf_value": (PASS, ""), "pgtable/ring": (SKIP, "one node only")}
    assert not tap.parse(log).is_tap  # for a program's output these are messages of the kernel


def test_bytes_that_are_no_text_and_colours() -> None:
    output = tap.parse(b"TAP version 13\r\n1..2\r\n\x1b[32mok 1 \xff\xfename\x1b[0m\r\nok 2 b\r\n")
    assert (output.verdict, list(output.leaves())) == (PASS, ["\\xff\\xfename", "b"])


def test_nothing() -> None:
    assert tap.parse(b"") == Output()
    assert tap.parse(b"").verdict is None


NAMES = st.text("abcxyz AZ()_.:'", min_size=1, max_size=12).map(str.strip).filter(lambda name: name not in ("", "-"))


def _tests(children: st.SearchStrategy[tuple[Test, ...]]) -> st.SearchStrategy[tuple[Test, ...]]:
    def number(tests: list[Test]) -> tuple[Test, ...]:
        return tuple(replace(test, number=place) for place, test in enumerate(tests, 1))

    def parent(name: str, below: tuple[Test, ...]) -> Test:
        verdict = worst(test.verdict for test in below)
        assert verdict is not None
        return Test(name, verdict, tests=below, reason="none here" if verdict is SKIP else "")

    def leaf(name: str, verdict: Verdict) -> Test:
        return Test(name, verdict, reason="" if verdict in (PASS, FAIL) else "none here")

    leaves = st.builds(leaf, NAMES, st.sampled_from([PASS, FAIL, SKIP, XFAIL]))
    return st.lists(leaves | st.builds(parent, NAMES, children), min_size=1, max_size=4).map(number)


TREES = st.recursive(_tests(st.nothing()), _tests, max_leaves=12)


def render(tests: tuple[Test, ...], indent: str = "") -> list[str]:
    lines = [f"{indent}KTAP version 1", f"{indent}1..{len(tests)}"]
    for test in tests:
        lines += render(test.tests, indent + "    ") if test.tests else []
        ok = "not ok" if test.verdict is FAIL else "ok"
        word = {SKIP: f" # SKIP {test.reason}", XFAIL: f" # XFAIL {test.reason}"}.get(test.verdict, "")
        lines.append(f"{indent}{ok} {test.number} {test.name}{word}")
    return lines


@settings(deadline=None)  # wall time says nothing on a busy machine
@given(TREES)
def test_what_is_printed_is_what_is_read(tests: tuple[Test, ...]) -> None:
    output = read(*render(tests))
    assert output.tests == tests
    assert (output.problems, output.notes) == ((), ())
    assert output.verdict is worst(test.verdict for test in tests)


@settings(deadline=None)
@given(TREES, st.data())
def test_noise_between_the_lines_changes_nothing(tests: tuple[Test, ...], data: st.DataObject) -> None:
    noise = st.sampled_from(["[   12.345678] printk", "# a diagnostic", "   some words", "", "[RUN]\tx", "okay"])
    lines = [line for line in render(tests) for line in (*data.draw(st.lists(noise, max_size=2)), line)]
    assert read(*lines).tests == tests


@settings(deadline=None)
@given(TREES, st.data())
def test_output_cut_off_anywhere_is_never_a_pass(tests: tuple[Test, ...], data: st.DataObject) -> None:
    whole = "".join(f"{line}\n" for line in render(tests)).encode()
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    verdict = tap.parse(cut).verdict
    assert verdict is None or verdict.bad
    if verdict is None:
        assert cut.count(b"\n") == 0  # nothing of TAP was printed yet


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_junk_never_raises(junk: bytes) -> None:
    output = tap.parse(junk)
    assert output.verdict is None or output.is_tap
    legacy.parse(junk)
    tap.parse(junk, kernel_log=True)


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([b"ok 1 a", b"not ok 2 b", b"1..2", b"  ok 1 c", b"TAP version 13", b"Bail out!", b"    1..3"])
    )
)
def test_any_order_of_lines_is_read(lines: list[bytes]) -> None:
    output = tap.parse(b"\n".join([*lines, b""]))
    failed = b"not ok 2 b" in lines or b"Bail out!" in lines
    assert not failed or (output.verdict is not None and output.verdict.bad)
