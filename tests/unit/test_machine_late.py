"""Actions that wait for a mark of the next command."""

from __future__ import annotations

from numalab.machine.late import LateActions
from numalab.machine.outcome import Mark


def test_the_next_command_takes_all_that_waits() -> None:
    late = LateActions()
    said: list[str] = []
    with (
        late.at_mark("ready", lambda pid: said.append(f"ready {pid}")),
        late.at_mark("done", lambda pid: said.append("done")),
    ):
        serve, known_as = late.serving(lambda mark, machine: said.append(f"{mark.name} of {machine}"))
        known_as(77)
        other, _ = late.serving(None)
        assert other is None, "a later command has none of it"
        assert serve
        for name in ("init", "ready"):
            serve(Mark(name, 0.5), "m")
    # The command's own handler comes first, and `done` never came.
    assert said == ["init of m", "ready of m", "ready 77"]


def test_what_prepares_is_not_the_next_command() -> None:
    late = LateActions()
    said: list[str] = []
    with late.at_mark("ready", lambda pid: said.append(f"ready {pid}")):
        with late.aside():
            assert late.serving(None)[0] is None
        serve, known_as = late.serving(None)
        assert serve
        known_as(5)
        serve(Mark("ready", 0.5), "m")
    assert said == ["ready 5"]
    with late.at_mark("ready", lambda pid: None), late.aside():
        pass
    assert late.serving(None)[0] is None


def test_what_found_no_command_is_gone() -> None:
    late = LateActions()
    with late.at_mark("ready", lambda pid: None):
        pass
    serve, _ = late.serving(None)
    assert serve is None
