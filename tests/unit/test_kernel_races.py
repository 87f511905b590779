"""Reports of KCSAN: which there are, and whose."""

from __future__ import annotations

import subprocess
from pathlib import Path

from numalab.kernel.races import Race, of_files, reported

# As kernel/kcsan/report.c prints them.
CONSOLE = """\
[   41.120532] ==================================================================
[   41.121817] BUG: KCSAN: data-race in scan_one / run_store

[   41.123000] write to 0xffffffff83c0a1b8 of 8 bytes by task 87 on cpu 0:
[   41.124000]  scan_one+0x1b2/0x1c00
[   44.120532] BUG: KCSAN: data-race in scan_one / run_store
[   45.000000] BUG: KCSAN: data-race in refresh.constprop.0+0x12/0x40
[   46.000000] BUG: KCSAN: assert: race in of_others.part.3 / with_others
[   47.000000] BUG: unable to handle page fault
"""


def test_each_race_once() -> None:
    assert reported(CONSOLE.splitlines()) == [
        Race("data-race", "scan_one", "run_store"),
        Race("data-race", "refresh"),
        Race("assert: race", "of_others", "with_others"),
    ]
    assert [str(each) for each in reported(CONSOLE.splitlines())][:2] == [
        "data-race in scan_one / run_store",
        "data-race in refresh",
    ]


def test_whose_it_is(tmp_path: Path) -> None:
    (tmp_path / "mm").mkdir()
    (tmp_path / "mm/ksm.c").write_text("static int x;\nint __attribute__((noinline)) scan_one(void) { return x++; }\n")
    (tmp_path / "main.c").write_text(
        "int scan_one(void);\nint of_others(void) { return scan_one(); }\nint main(void) { return of_others(); }\n"
    )
    command = ["gcc", "-g", "-O1", "-o", "image", "mm/ksm.c", "main.c"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    races = [
        Race("data-race", "scan_one", "run_store"),
        Race("data-race", "run_store", "scan_one"),
        Race("data-race", "refresh"),
        Race("assert: race", "of_others", "with_others"),
    ]
    image = tmp_path / "image"
    assert of_files(races, image, ["mm/ksm.c", "mm/ksm_scan.c"]) == races[:2]
    assert of_files(races, image, ["main.c"]) == races[3:]
    assert of_files(races, image, ["kernel/ksm.c"]) == []
