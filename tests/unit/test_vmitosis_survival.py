"""What survival is judged by: memories compared, tables of KVM read. No machine."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from numalab.errors import ExperimentError
from vmitosis.second_level import DebugFiles, Tables, parse
from vmitosis.survival import keeper
from vmitosis.survival.memory import Memory, compare, is_wall_clock

TEXT = """\
root 0 as 0 guest_mode 0 invalid 0 level 4 node 0 tables 1
root 0 as 0 guest_mode 0 invalid 0 level 1 node 0 tables 7
root 0 as 0 guest_mode 0 invalid 0 level 1 node 1 tables 2
leaf 0 level 1 node 0 entries 900
leaf 0 level 1 node -1 entries 3
root 1 as 0 guest_mode 0 invalid 1 level 4 node 1 tables 1
leaf 1 level 1 node 0 entries 5
root 1 as 0 guest_mode 0 invalid 0 level 4 node 1 tables 1
root 1 as 1 guest_mode 0 invalid 0 level 4 node 1 tables 1
leaf 1 level 1 node 1 entries 8
"""


def test_tables() -> None:
    found = parse(TEXT)
    assert found == Tables({(0, 4, 0): 1, (0, 1, 0): 7, (0, 1, 1): 2, (1, 4, 1): 1}, {(0, 1, 0): 900, (0, 1, -1): 3})
    assert found.roots == (0, 1)
    assert found.bytes_of(0) == 10 * 4096
    assert found.misplaced() == 2
    one = parse("root -1 as 0 guest_mode 0 invalid 0 level 4 node 1 tables 1\n")
    assert (one.roots, one.misplaced()) == ((None,), 0)


def test_a_broken_rule_is_told() -> None:
    broken = "violation role root 0 times 1 gfn 0 level 1 found 2 expected 1\n"

    class Fake:
        def run(self, argv: list[str]) -> Any:
            listed = b"1-2\n77-12\nvm_list\n" if argv[0] == "ls" else (TEXT + broken).encode()
            return SimpleNamespace(stdout=listed, stderr=b"cat: read error: Input/output error\n", ok=argv[0] == "ls")

    files = DebugFiles(cast(Any, Fake()), 77)
    assert files.directory.endswith("/77-12")
    with pytest.raises(ExperimentError, match="violation role root 0"):
        files.tables()
    with pytest.raises(ExperimentError, match="no directory for the guest"):
        DebugFiles(cast(Any, Fake()), 7)


class FakeMemory:
    def __init__(self, pages: list[np.ndarray[Any, np.dtype[np.uint32]]]) -> None:
        self.pages = pages
        self.sums = np.array([hash(page.tobytes()) & (1 << 63) - 1 for page in pages], np.uint64)

    def page(self, frame: int) -> Any:
        return self.pages[frame - 256]


def memory(**changes: int) -> Memory:
    """Three pages; `p1_5=7` sets number 5 of page 1."""
    pages = [np.arange(1024, dtype=np.uint32) + 1000 * number for number in range(3)]
    pages[1][4:7] = (2, 1_000_000, 5)
    for where, value in changes.items():
        page, place = where.removeprefix("p").split("_")
        pages[int(page)][int(place)] = value
    return cast(Memory, FakeMemory(pages))


def test_memory_that_is_the_same() -> None:
    assert compare(memory(), memory()) == 3 * 4096


def test_a_later_wall_clock_is_no_difference() -> None:
    assert compare(memory(), memory(p1_4=6, p1_5=1_000_030, p1_6=7)) == 3 * 4096


@pytest.mark.parametrize(
    "changes",
    [
        {"p0_3": 1},  # a word
        {"p1_5": 1_000_001},  # no new version
        {"p1_4": 3, "p1_5": 1_000_001},  # being written
        {"p1_4": 4, "p1_5": 999_999},  # an earlier time
        {"p1_4": 4, "p1_5": 1_000_001, "p1_9": 0},  # something else on the clock's page
        {"p1_4": 4, "p1_5": 1_000_001, "p2_0": 0},  # another page
        {"p2_1023": 5000},  # too near to the end
    ],
)
def test_memory_that_differs(changes: dict[str, int]) -> None:
    with pytest.raises(ExperimentError, match="1 pages differ: frame 0x10"):
        compare(memory(), memory(**changes))


def test_a_second_clock_is_a_difference() -> None:
    one, two = memory(), memory(p1_4=4, p1_5=1_000_001)
    for made in (one, two):
        cast(Any, made).pages[2] = cast(Any, made).pages[1]
        cast(Any, made).sums[2] = cast(Any, made).sums[1]
    assert is_wall_clock(cast(Any, one).page(257), cast(Any, two).page(257))
    with pytest.raises(ExperimentError, match="1 pages differ"):
        compare(one, two)


# The program that holds memory, on this host.


def started(tmp_path: Path) -> tuple[subprocess.Popen[bytes], Path]:
    said = tmp_path / "status"
    words = [str(keeper.guest_files()[keeper.KEEPER]), "4", "1", "2", str(said)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not said.exists() or " rounds 0 " in said.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process, said


def test_the_keeper_finds_nothing_wrong(tmp_path: Path) -> None:
    process, said = started(tmp_path)
    process.terminate()
    assert process.wait(60) == 0
    assert re.fullmatch(r"checked \d+ changed [1-9]\d* rounds [1-9]\d* wrong 0 state done\n", said.read_text())
    assert process.communicate()[1] == b""


def test_the_keeper_finds_what_somebody_else_has_written(tmp_path: Path) -> None:
    process, said = started(tmp_path)
    assert process.stdout
    low = int(process.stdout.readline().split()[1], 16)
    with Path(f"/proc/{process.pid}/mem").open("r+b", buffering=0) as memory:
        for page in range(16):  # one may be rewritten before it is looked at
            memory.seek(low + (1 << 20) + 4096 * page + 800)
            memory.write(b"not mine")
    process.terminate()
    assert process.wait(60) == 1
    assert int(said.read_text().split(" wrong ")[1].split()[0]) > 0
    assert b"not " in process.communicate()[1]


def test_results_are_kept_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What survived on this kernel is left out by --resume, what was lost is not; other modes' results stay."""
    from click.testing import CliRunner

    from vmitosis.survival.__main__ import command

    ran: list[str] = []
    lost = ["ksm"]

    def scenario(name: str) -> Callable[[Any], dict[str, int]]:
        def run(rig: Any) -> dict[str, int]:
            ran.append(f"{rig.mode} {name}")
            if name in lost:
                raise ExperimentError("gone")
            return {"bytes_taken": 5}

        return run

    monkeypatch.setattr("numalab.kernel.images.resolve", lambda _: SimpleNamespace(build_id="b1", release="r"))
    monkeypatch.setattr("vmitosis.survival.rig.machine_for", lambda *_, **__: nullcontext())
    monkeypatch.setattr(
        "vmitosis.survival.rig.Rig", lambda _, __, mode: SimpleNamespace(mode=mode, prepare=lambda: None)
    )
    monkeypatch.setattr("vmitosis.survival.scenarios.SCENARIOS", {name: scenario(name) for name in ("kill", "ksm")})
    page = tmp_path / "page.md"
    page.write_text("<!-- vmitosis.survival: begin -->\n<!-- vmitosis.survival: end -->\n")

    def call(*words: str) -> int:
        done = CliRunner().invoke(command, [*words, "--out", str(tmp_path)], standalone_mode=False)
        assert done.exception is None, done.exception
        return int(done.return_value)

    assert call("--mode", "local") == 1
    assert call("--mode", "replicate", "kill") == 0
    lost.clear()
    ran.clear()
    assert call("--mode", "local", "--resume", "--table", str(page)) == 0
    assert ran == ["local ksm"]
    runs = json.loads((tmp_path / "survival.json").read_text())["runs"]
    assert sorted((each["mode"], each["scenario"]) for each in runs) == [
        ("local", "kill"),
        ("local", "ksm"),
        ("replicate", "kill"),
    ]
    assert all(each["survived"] for each in runs)
    assert "| `ksm` | local | survived | bytes taken: 5 |" in page.read_text()
    assert "b1" in page.read_text()
