"""A guest of a machine stands still before its machine does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from numalab.machine.outcome import QemuDiedError
from numalab.machine.process_qmp import ProcessQmp
from numalab.machine.second import SecondLevel
from numalab.machine.session import Machine
from numalab.machine.topology import uniform


class Events(list[str]):
    """What the machine and the guest's monitor were asked for, in order; also both of them."""

    accel = "tcg"
    topology = uniform(2, 1, "1G")
    running = True

    class spec:  # noqa: N801
        inner_channels = (Path("/a"),)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.append("pause")
        yield
        self.append("resume")

    def execute(self, command: str) -> Any:
        self.append(command)
        return {"running": self.running}


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def guest(events: Events) -> SecondLevel:
    kernel: Any = None
    made = SecondLevel(cast(Machine, events), kernel, uniform(1, 1, "128M"), cpus=[[0]])
    made._qmp = cast(ProcessQmp, events)
    return made


def test_stopped_before_the_machine_and_continued_after_it(events: Events, guest: SecondLevel) -> None:
    """A thread of the emulator that stops inside a guest may deliver an interrupt to it twice."""
    with pytest.raises(RuntimeError), guest.paused():
        assert events == ["query-status", "stop", "pause"]
        raise RuntimeError
    assert events[-1] == "cont"


def test_one_that_waits_goes_on_waiting(events: Events, guest: SecondLevel) -> None:
    events.running = False
    with guest.paused():
        pass
    assert events == ["query-status", "pause", "resume"]


def test_one_that_has_ended_is_lost(events: Events, guest: SecondLevel, monkeypatch: pytest.MonkeyPatch) -> None:
    guest._qmp = None
    monkeypatch.setattr(SecondLevel, "why_lost", lambda _: QemuDiedError("panicked"))
    with pytest.raises(QemuDiedError, match="panicked"), guest.paused():
        pass
    assert events == []
