"""Memory for KSM to merge: the workload samepage, and what the others have for it. On this host, merged or not."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from nuksm import kernel, points
from tests.unit.test_workloads_programs import marked, peek, poke, region_of, result, run
from workloads import catalogue
from workloads.build import compile_command

PAGE = 4096
SIZE = 64 * PAGE
#: At an address that is known.
MERGED = ("--mergeable", "region")
SMALL = ("--size", str(SIZE), "--seconds", "0.1")
KSM = Path("/sys/kernel/mm/ksm/run")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import subprocess

    found = {}
    for name in ("samepage", "btree"):
        found[name] = tmp_path_factory.mktemp("programs") / name
        subprocess.run(compile_command(name, found[name], "-Werror"), check=True)
    return found


def content(program: Path, *options: str) -> bytes:
    """The region of a samepage that is ready."""
    with marked(program, *SMALL, *MERGED, *options) as one:
        one.run_to("ready")
        return peek(one.process.pid, kernel.REGION, SIZE)


def pages_of(memory: bytes) -> list[bytes]:
    return [memory[at : at + PAGE] for at in range(0, len(memory), PAGE)]


def test_it_reads_and_reports(programs: dict[str, Path]) -> None:
    values = result(programs["samepage"], *SMALL, "--same", "75", "--threads", "2")
    assert (values["pages"], values["same_pages"], values["errors"]) == (64, 48, 0)
    assert values["reads"] > 0
    assert values["reads"] % 1024 == 0
    assert values["local_pages"] + values["remote_pages"] == 48
    assert values["local_share"] == values["local_pages"] / 48
    nodes = sum(count for metric, count in values.items() if metric.startswith("same_pages_node"))
    own = sum(count for metric, count in values.items() if metric.startswith("own_pages_node"))
    assert (nodes, own) == (48, 16)
    assert values["numa_local"] is None or values["numa_local"] >= 0


def test_all_processes_have_the_same_pages_and_each_its_own(programs: dict[str, Path]) -> None:
    first, second = (pages_of(content(programs["samepage"], "--same", "50")) for _ in range(2))
    assert first[:32] == second[:32]
    assert not set(first[32:]) & set(second)
    # No page is there twice, and none is empty: each is merged with the one of the other process, or not at all.
    assert len(set(first)) == 64
    assert bytes(PAGE) not in first
    assert not set(pages_of(content(programs["samepage"], "--seed", "2"))) & set(first)


@pytest.mark.parametrize("name", ["samepage", "btree"])
def test_what_may_be_merged_is_at_the_same_address_everywhere(programs: dict[str, Path], name: str) -> None:
    options = ("--size", "1M", "--mergeable", "region")
    seen = []
    for _ in range(2):
        with marked(programs[name], *options) as one:
            one.run_to("ready")
            start = region_of(one.process.pid, 1 << 20)
            seen.append(peek(one.process.pid, start, 1 << 20))
        assert start == kernel.REGION
    assert seen[0] == seen[1], "pointers into the region are equal too"


def test_a_tree_that_may_not_is_where_the_kernel_puts_it(programs: dict[str, Path]) -> None:
    with marked(programs["btree"], "--size", "1M") as one:
        one.run_to("ready")
        assert region_of(one.process.pid, 1 << 20) != kernel.REGION


@pytest.mark.skipif(not KSM.exists(), reason="this host's kernel has no KSM")
def test_the_region_is_advised(programs: dict[str, Path]) -> None:
    with marked(programs["samepage"], *SMALL, "--mergeable", "region") as one:
        one.run_to("ready")
        smaps = Path(f"/proc/{one.process.pid}/smaps").read_text()
        region = smaps.partition(f"{kernel.REGION:x}-")[2]
        flags = next(line for line in region.splitlines() if line.startswith("VmFlags"))
        assert " mg" in flags
        one.answer()
        assert one.finish()[0] == 0


def test_only_hot_pages_are_read(programs: dict[str, Path]) -> None:
    """A wrong word in a page that is not read shows in the end only: one error, and not one for each read."""
    options = ("--size", str(100 * PAGE), "--seconds", "0.2", "--hot", "30")
    with marked(programs["samepage"], *options, *MERGED) as one:
        one.run_to("ready")
        poke(one.process.pid, kernel.REGION + 50 * PAGE, b"\xff" * 8)
        one.answer()
        status, out, err = one.finish()
    assert status == 1
    assert "1 values are wrong" in err
    assert '"errors": 1}' in out


def test_a_wrong_word_in_a_hot_page_is_noticed_at_once(programs: dict[str, Path]) -> None:
    with marked(programs["samepage"], "--size", str(PAGE), "--seconds", "0.2", *MERGED) as one:
        one.run_to("ready")
        poke(one.process.pid, kernel.REGION, b"\xff" * PAGE)
        one.answer()
        status, out, _ = one.finish()
    assert status == 1
    errors = next(s.value for s in catalogue.get("samepage").parse(out.encode()) if s.metric == "errors")
    assert errors is not None
    assert errors > 512 + 1000


def test_one_that_reads_nothing_sleeps(programs: dict[str, Path]) -> None:
    began = time.monotonic()
    values = result(programs["samepage"], *SMALL, "--hot", "0")
    assert (values["reads"], values["errors"]) == (0, 0)
    assert time.monotonic() - began >= 0.1


def test_rest_between_reads(programs: dict[str, Path]) -> None:
    values = result(programs["samepage"], "--size", str(SIZE), "--seconds", "0.3", "--rest", "50")
    assert 1 <= values["reads"] / 1024 <= 7


def test_until_it_is_told_to_stop(programs: dict[str, Path]) -> None:
    with marked(programs["samepage"], "--size", str(SIZE), "--forever", "--rest", "1") as one:
        one.run_to("ready")
        one.answer()
        time.sleep(0.1)
        one.process.send_signal(signal.SIGTERM)
        status, out, _ = one.finish()
    assert status == 0
    assert "(ended by a signal)" in out


@pytest.mark.skipif(KSM.exists() and KSM.read_text().strip() == "1", reason="KSM runs on this host")
def test_passes_end_it_only_where_there_are_passes(programs: dict[str, Path]) -> None:
    values = result(programs["samepage"], *SMALL, "--passes", "1000000")
    assert values["passes"] == 0
    assert result(programs["btree"], "--size", "1M", "--lookups", "1k", "--settle", "5")["errors"] == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [("samepage", (*SMALL, "--rest", "1")), ("btree", ("--size", "1M", "--lookups", "3M", "--mergeable", "region"))],
)
def test_a_line_each_interval(programs: dict[str, Path], name: str, options: tuple[str, ...]) -> None:
    done = run(programs[name], *options, "--interval", "0.02")
    assert done.returncode == 0, done.stderr
    found = points.parse(done.stdout)
    assert len(found) >= 2
    assert [point["seconds"] for point in found] == sorted(point["seconds"] for point in found)
    assert [point["work"] for point in found] == sorted(point["work"] for point in found)
    assert found[-1]["work"] > 0
    assert sum(count for key, count in found[0].items() if key.startswith("node")) > 0
    catalogue.get(name).parse(done.stdout.encode())
    quiet = run(programs[name], *options)
    assert points.parse(quiet.stdout) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--same", "101"), "too large (at most 100)"),
        (("--hot", "101"), "too large (at most 100)"),
        (("--passes", "0"), "too small (at least 1)"),
        (("--forever", "--passes", "3"), "--forever has no end"),
        (("--forever", "--seconds", "3"), "--forever has no end"),
        (("--mergeable", "yes"), "not one of no|region|process"),
    ],
)
def test_bad_usage(programs: dict[str, Path], options: tuple[str, ...], words: str) -> None:
    done = run(programs["samepage"], *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_the_catalogue_says_so_too() -> None:
    samepage = catalogue.get("samepage")
    assert samepage.argv({"passes": 5, "same": 50, "mergeable": "region"})[1:] == [
        *("--passes", "5", "--same", "50", "--mergeable", "region"),
    ]
    for name in ("gups", "btree", "stream", "samepage"):
        assert "mergeable" in catalogue.get(name).params
    assert "mergeable" not in catalogue.get("memops").params


@pytest.mark.parametrize("options", [("--move-to", "0"), ("--move-after", "3")])
def test_where_to_and_when_go_together(programs: dict[str, Path], options: tuple[str, str]) -> None:
    done = run(programs["samepage"], *SMALL, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--move-to and --move-after go together" in done.stderr
    both = run(programs["samepage"], *SMALL, "--threads", "2", "--move-to", "0", "--move-after", "3")
    assert "one thread moves, not 2" in both.stderr


def test_one_that_did_not_move_says_so(programs: dict[str, Path]) -> None:
    values = result(programs["samepage"], *SMALL, "--move-to", "0", "--move-after", "1000000")
    assert (values["follow_seconds"], values["follow_passes"]) == (None, None)
