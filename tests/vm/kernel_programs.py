"""The kernel's own tests in one machine: programs of a group, and what KUnit has found at boot."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

from numalab.machine.session import Machine
from numalab.selftest import runner, tap
from numalab.selftest.build import Programs
from numalab.selftest.catalogue import Group, Program

_KUNIT = "/sys/kernel/debug/kunit"


def run_in(
    machine: Machine, group: Group, programs: Sequence[Program], built: Programs, patience: float = 3.0
) -> list[runner.Result]:
    """What `programs` of `group` came to in a machine, which has those that are built at /share."""
    opened = partial(nullcontext, machine)
    return runner.run(group, programs, opened, built.linkage, patience=patience)  # type: ignore[arg-type]


def kunit_results(machine: Machine) -> dict[str, tap.Output]:
    """What each suite of KUnit has said, by its name."""
    suites = machine.run(["ls", _KUNIT], check=True).stdout.decode().split()
    files = {suite: machine.read_file(f"{_KUNIT}/{suite}/results") for suite in suites}
    return {suite: tap.parse(text, kernel_log=True) for suite, text in files.items()}
