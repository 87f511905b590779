"""Knobs that wait for a mark: written to a file of the program, in a real machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from numalab.errors import ExperimentError
from numalab.machine.outcome import Mark
from numalab.machine.session import Machine
from numalab.run.policy import Knob, Policy, applied

pytestmark = pytest.mark.vm

PROGRAM = b"""#!/bin/sh
mark() { echo $1 >&$NUMALAB_MARK_FD; read _ <&$NUMALAB_MARK_FD; }
mark ready
mark done
"""
SCORE = "/proc/PID/oom_score_adj"
#: The score of the process called "waiter", whoever started it.
LOOK = (
    'for each in /proc/[0-9]*; do [ "$(cat $each/comm)" = waiter ] && cat $each/oom_score_adj; done 2>/dev/null; true'
)


@pytest.fixture
def machine(stock4: Machine) -> Iterator[Machine]:
    stock4.write_file("/tmp/waiter", PROGRAM, mode=0o755)
    yield stock4


@pytest.mark.parametrize("wrap", [(), ("sh", "-c", '"$@"; exit $?', "sh")], ids=["alone", "behind a wrapper"])
def test_written_at_the_mark_and_not_before(machine: Machine, wrap: tuple[str, ...]) -> None:
    seen = {}

    def on_mark(mark: Mark, machine: Machine) -> None:
        seen[mark.name] = machine.run(["sh", "-c", LOOK]).stdout

    policy = Policy("late", "", knobs=(Knob(SCORE, "321", mark="ready"),))
    with applied(machine, policy) as settings:
        assert machine.start([*wrap, "/tmp/waiter"], on_mark=on_mark).wait(60).ok
        assert machine.run(["true"]).ok  # only the first command is the program
    # Whoever looks at the mark itself sees the state before.
    assert seen == {"ready": b"0\n", "done": b"321\n"}
    assert [(each.got, each.restored) for each in settings] == [("321", False)]


def test_a_value_the_kernel_refuses(machine: Machine) -> None:
    policy = Policy("late", "", knobs=(Knob(SCORE, "99999", mark="ready"),))
    with pytest.raises(ExperimentError, match=r"at the mark 'ready': .*Invalid argument"), applied(machine, policy):
        machine.start(["/tmp/waiter"]).wait(60)
    with applied(machine, Policy("none", "")):
        assert machine.run(["/tmp/waiter"]).ok, "nothing is left of a policy that has ended"
