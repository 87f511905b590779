"""The C library under the workloads, through a driver (test_workloads_driver.c), with the sanitizers on."""

from __future__ import annotations

import subprocess
from pathlib import Path

from workloads.build import SOURCES

DRIVER = Path(__file__).with_name("test_workloads_driver.c")
UNITS = (
    *(
        "common/fail.c",
        "common/ksm.c",
        "common/marks.c",
        "common/options.c",
        "common/policy.c",
        "common/result.c",
        "common/setup.c",
    ),
    *("common/team.c", "gups/table.c", "btree/tree.c", "stream/kernels.c", "memops/samples.c", "memops/touch.c"),
)


def test_library(tmp_path: Path) -> None:
    program = tmp_path / "driver"
    flags = ["-O1", "-g", "-std=gnu11", "-pthread", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    command = ["gcc", *flags, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{SOURCES}"]
    units = [str(SOURCES / unit) for unit in UNITS]
    built = subprocess.run(
        [*command, "-o", program, DRIVER, *units, "-lm"], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = [line for line in DRIVER.read_text().splitlines() if line.startswith("\t\t{ ")]
    assert len(checks) == len(done.stdout.splitlines()) >= 10
