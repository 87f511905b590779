"""The workload churn: what it does to memory, and that it notices what is wrong. On this host, merged or not."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from nuksm.kernel import REGION
from tests.unit.test_workloads_programs import Marked, marked, poke, result
from workloads.build import compile_command

#: Without swap: that is reclaim of the whole machine.
WAYS = ("merge", "unmerge", "fork", "exit", "migrate")
SMALL = ("--size", "256K", "--processes", "3", "--mergeable", "region")


@pytest.fixture(scope="module")
def churn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("programs") / "churn"
    subprocess.run(compile_command("churn", program, "-Werror"), check=True)
    return program


def test_every_way_is_gone(churn: Path) -> None:
    values = result(churn, *SMALL, "--seconds", "1.5", "--ways", ",".join(WAYS))
    assert all(values[f"{way}_count"] > 0 for way in WAYS)
    assert values["swap_count"] == 0
    assert values["checked_pages"] > 3 * 64
    assert values["init_seconds"] is None


@pytest.mark.parametrize("way", WAYS)
def test_one_way_alone(churn: Path, way: str) -> None:
    values = result(churn, *SMALL, "--seconds", "0.3", "--ways", way)
    assert [other for other in WAYS if values[f"{other}_count"]] == [way]


def processes_of(one: Marked) -> list[int]:
    """Those that have their region by now."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        children = Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children").read_text().split()
        if len(children) == 3:
            return [int(pid) for pid in children]
        time.sleep(0.01)
    raise AssertionError("it has not started its processes")


def test_a_wrong_word_is_named(churn: Path) -> None:
    """Changed from outside, while all stand still: the check after that finds it."""
    with marked(churn, *SMALL, "--seconds", "0.2", "--ways", "migrate") as one:
        one.run_to("done")
        poke(processes_of(one)[1], REGION + 5 * 4096 + 24, b"\xff" * 8)
        one.answer()
        status, out, err = one.finish()
    assert status == 1
    assert "word 3 of page 5 " in err
    assert "is 0xffffffffffffffff and not 0x" in err
    assert "numalab-result" not in out


def test_a_process_that_is_killed_is_no_success(churn: Path) -> None:
    with marked(churn, *SMALL, "--seconds", "20", "--ways", "merge") as one:
        one.run_to("ready")
        one.answer()
        os.kill(processes_of(one)[0], 9)
        status, _, err = one.finish()
    assert status == 1
    assert "process 0 was ended by signal 9" in err


def test_it_stands_still_now_and_then(churn: Path) -> None:
    with marked(churn, *SMALL, "--seconds", "1", "--quiet", "0.2", "--ways", "merge,fork") as one:
        one.run_to("ready")
        one.answer()
        marks: list[str] = []
        while not marks or marks[-1] != "done":
            marks.append(one.next_mark())
            for pid in processes_of(one):
                assert not Path(f"/proc/{pid}/task/{pid}/children").read_text(), "no child is left"
            one.answer()
        status, _, err = one.finish()
    assert (status, err) == (0, "")
    assert 1 <= marks.count("quiet") <= 5
