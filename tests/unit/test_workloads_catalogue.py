"""The catalogue: what parameters become on the command line, and what result lines become."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numalab.errors import ExperimentError, UserError
from numalab.kinds import Kind
from workloads import catalogue
from workloads.metrics import Quantity, find
from workloads.params import Param, ParamType

GUPS = catalogue.get("gups")


def test_names() -> None:
    assert catalogue.names() == ["gups", "btree", "stream", "memops", "samepage", "churn"]
    with pytest.raises(UserError, match=r"unknown workload 'gusp' \(did you mean 'gups'\?\)"):
        catalogue.get("gusp")


def test_nothing_given_is_the_bare_program() -> None:
    for name in catalogue.names():
        assert catalogue.get(name).argv({}) == [name]


@pytest.mark.parametrize(
    ("name", "params", "argv"),
    [
        ("gups", {"size": "64M"}, ["--size", "67108864"]),
        ("gups", {"size": 4096}, ["--size", "4096"]),
        ("gups", {"updates": "2M"}, ["--updates", "2000000"]),
        ("gups", {"updates": "10k"}, ["--updates", "10000"]),
        ("gups", {"verify": True}, ["--verify"]),
        ("gups", {"verify": False, "init-cpu": None}, []),
        ("gups", {"cpus": [0, 2]}, ["--cpus", "0,2"]),
        ("gups", {"cpus": "0-3,8"}, ["--cpus", "0-3,8"]),
        ("gups", {"cpus": 1}, ["--cpus", "1"]),
        ("gups", {"memory": "bind:0,2-3"}, ["--memory", "bind:0,2-3"]),
        ("gups", {"memory": "interleave:all", "tables": "local"}, ["--memory", "interleave:all", "--tables", "local"]),
        ("memops", {"ops": ["mmap", "fork"]}, ["--ops", "mmap,fork"]),
        ("memops", {"ops": "mmap,fork", "mark-ops": True}, ["--ops", "mmap,fork", "--mark-ops"]),
        ("memops", {"count": True, "touchers": "all"}, ["--count", "--touchers", "all"]),
        ("stream", {"seconds": 2}, ["--seconds", "2.0"]),
        ("stream", {"seconds": "0.5"}, ["--seconds", "0.5"]),
    ],
)
def test_argv(name: str, params: dict[str, Any], argv: list[str]) -> None:
    assert catalogue.get(name).argv(params) == [name, *argv]


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("gups", {"sise": "1M"}, "workload gups has no parameter 'sise' (did you mean 'size'?)"),
        ("gups", {"init_cpu": 1}, "(did you mean 'init-cpu'?)"),
        ("gups", {"size": "huge"}, "size: 'huge' is not a size"),
        ("gups", {"size": True}, "size: True is not a size"),
        ("gups", {"size": 1.5}, "size: 1.5 is not a size"),
        ("gups", {"size": 1}, "size: 1 is too small (at least 4096 bytes)"),
        ("gups", {"updates": "2Mi"}, "updates: '2Mi' is not a count"),
        ("gups", {"updates": 0}, "too small (at least 1)"),
        ("gups", {"updates": True}, "not a count"),
        ("gups", {"threads": 4097}, "threads: 4097 is too large (at most 4096)"),
        ("gups", {"verify": "yes"}, "verify: 'yes' is not true or false"),
        ("gups", {"verify": 1}, "not true or false"),
        ("gups", {"huge": "allways"}, "one of default, always, never (did you mean 'always'?)"),
        ("gups", {"cpus": "0-"}, "is not a list such as 0-3,8"),
        ("gups", {"cpus": []}, "is not a list"),
        ("gups", {"cpus": True}, "is not a list"),
        ("gups", {"memory": "bind"}, "memory: 'bind' is not one of first-touch, local, bind:NODES"),
        ("gups", {"memory": "interleav:0"}, "(did you mean 'interleave'?)"),
        ("gups", {"memory": "bind:x"}, "memory: 'x' is not a list"),
        ("gups", {"memory": "local:1"}, "is not one of"),
        ("btree", {"size": "1M", "keys": 5}, "size and keys exclude each other"),
        ("stream", {"node": 1, "memory": "local"}, "node and memory exclude each other"),
        ("stream", {"seconds": -1}, "seconds: -1 is not a number of seconds above 0"),
        ("stream", {"seconds": "nan"}, "not a number of seconds"),
        ("stream", {"seconds": True}, "not a number of seconds"),
        ("memops", {"ops": "mmap,mprotec"}, "(did you mean 'mprotect'?)"),
        ("memops", {"ops": 3}, "is not a list of mmap, mprotect"),
        ("memops", {"count": True, "mark-ops": True}, "mark-ops and count exclude each other"),
        ("memops", {"init": "single"}, "has no parameter 'init'"),
    ],
)
def test_bad_parameters(name: str, params: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        catalogue.get(name).argv(params)
    assert words in str(caught.value)


def test_a_parameter_alone_never_breaks_the_other_entries() -> None:
    for name in catalogue.names():
        workload = catalogue.get(name)
        for key, param in workload.params.items():
            if param.default is not None:
                words = workload.argv({key: param.default})
                assert words[1:2] == ([] if param.default is False else [f"--{key}"])


@settings(deadline=None)  # wall time says nothing on a busy machine
@given(st.integers(0, 2**50))
def test_sizes_and_counts_are_what_they_name(number: int) -> None:
    size, count = Param(ParamType.SIZE, None, "", ""), Param(ParamType.COUNT, None, "", "")
    assert size.to_word("x", f"{number}K") == str(number * 1024)
    assert count.to_word("x", f"{number}k") == str(number * 1000)
    assert size.to_word("x", number) == count.to_word("x", number) == str(number)


def line(values: str) -> bytes:
    return b"gups: some words for people\nnumalab-result: " + values.encode() + b"\n"


def test_samples_carry_their_kind() -> None:
    out = line('{"updates": 5, "updates_per_second": 2.5, "errors": null, "sampled_pages_node12": 3}')
    assert GUPS.samples(out, "tcg") == [
        {"metric": "updates", "value": 5, "unit": "", "kind": Kind.COUNTED.value},
        {"metric": "updates_per_second", "value": 2.5, "unit": "1/s", "kind": Kind.EMULATION_TIME.value},
        {"metric": "errors", "value": None, "unit": "", "kind": Kind.COUNTED.value},
        {"metric": "sampled_pages_node12", "value": 3, "unit": "", "kind": Kind.COUNTED.value},
    ]
    assert {sample["kind"] for sample in GUPS.samples(out, "kvm")} == {Kind.MEASURED.value}
    assert catalogue.samples(out, "tcg") == catalogue.samples(out, "tcg", name="gups") == GUPS.samples(out, "tcg")


def test_nothing_that_depends_on_time_is_called_a_count() -> None:
    for name in catalogue.names():
        for metric, about in catalogue.get(name).metrics.items():
            timely = about.unit in ("s", "ns") or about.unit.endswith("/s")
            assert (about.quantity is Quantity.TIME) == timely, metric
            assert (metric.endswith(("seconds", "_per_second")) or "_ns_" in metric) == timely, metric


@pytest.mark.parametrize(
    ("stdout", "words"),
    [
        (b"", "printed no result line; it printed nothing"),
        (b"\n\n", "it printed nothing"),
        (b"gups: words\n", "printed no result line; its last line: 'gups: words'"),
        (b"\xff\xfe junk\n", "no result line"),
        (line("{}") + b"more words\n", "no result line; its last line: 'more words'"),
        (line('{"updates": 5}')[:-1], "the result line is cut off"),
        (line('{"updates": 5'), "the result line is malformed"),
        (line('{"updates": \udcff}'.encode("utf-8", "surrogateescape").decode("latin-1")), "malformed"),
        (line('{"updates": NaN}'), "NaN is not a number"),
        (line('{"updates": 1, "updates": 2}'), "a metric appears twice"),
        (line("[1]"), "holds no metrics"),
        (line('{"updates": "5"}'), "updates = '5', which is not a number"),
        (line('{"updates": true}'), "updates = True, which is not a number"),
        (line('{"update": 5}'), "the metric 'update', which its catalogue entry does not have"),
        (b"x" * 10_000 + b"\n", "xxx..."),
    ],
)
def test_bad_result_lines(stdout: bytes, words: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        GUPS.parse(stdout)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


def test_output_before_the_result_line_may_be_anything() -> None:
    assert GUPS.parse(b"\xff\x00binary\n" + line('{"updates": 1}'))[0].value == 1


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(list(GUPS.metrics)[:7]),
        st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_what_is_reported_is_what_is_read(values: dict[str, float | None]) -> None:
    found = GUPS.parse(line(json.dumps(values)))
    assert {sample.metric: sample.value for sample in found} == values


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_junk_is_never_a_result(junk: bytes) -> None:
    with pytest.raises(ExperimentError):
        GUPS.parse(junk)


def test_metrics_per_node() -> None:
    assert find(GUPS.metrics, "sampled_pages_node0") is GUPS.metrics["sampled_pages_nodeN"]
    assert find(GUPS.metrics, "sampled_pages_node") is None


def test_entries_are_plain_json() -> None:
    for name in catalogue.names():
        assert json.loads(json.dumps(catalogue.get(name).to_json()))["name"] == name
