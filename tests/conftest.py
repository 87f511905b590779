"""Counts the tests that booted a machine, so that a run in which none did cannot look green.

Tests marked `patch_set(name)` are about a patch set that has to be in linux-patches/series; how many wait for one is
said at the end. Both also when the tests are shared out to several processes (pytest-xdist; the Makefile):
each counts its own boots and tells the one that started it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

BOOTS = {"tests": 0, "boots": 0, "seconds": 0.0}
WAITING: Counter[str] = Counter()
#: Files that take minutes go first, the longest foremost: two processes then end at about the same time.
LONGEST = ("test_patches", "test_replicas", "test_nuksm", "test_run", "test_selftest_machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-boots", action="store_true", help="fail unless at least one test booted a machine")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from numalab.kernel import series

    listed = series.read().sets
    waiting = []
    for item in items:
        wanted = next((mark.args[0] for mark in item.iter_markers("patch_set") if mark.args[0] not in listed), None)
        if wanted:
            WAITING[wanted] += 1
            waiting.append(item)
    if waiting:
        config.hook.pytest_deselected(items=waiting)
        items[:] = [item for item in items if item not in waiting]
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> tuple[bool, int]:
    """Place of a test in the order; the sort keeps what is equal as it was."""
    name = item.path.stem
    return item.get_closest_marker("vm") is None, LONGEST.index(name) if name in LONGEST else len(LONGEST)


@pytest.fixture(autouse=True, scope="session")
def count_boots() -> Iterator[None]:
    """Every machine that answered counts as a boot, whoever asked for it."""
    from numalab.machine.session import Machine

    boot = Machine.boot

    def counted(self: Machine) -> None:
        boot(self)
        BOOTS["boots"] += 1
        BOOTS["seconds"] += self.boot_seconds or 0

    Machine.boot = counted  # type: ignore[method-assign]
    yield
    Machine.boot = boot  # type: ignore[method-assign]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed and "vm" in report.keywords:
        BOOTS["tests"] += 1


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """In the process that shares out the tests: one of the others has ended, and tells what it counted."""
    told = getattr(node, "workeroutput", {}).get("numalab")
    if told is None:
        return
    for key in ("boots", "seconds"):
        BOOTS[key] += told["boots"][key]
    # Each of them collects all tests.
    WAITING.update({name: count for name, count in told["waiting"].items() if name not in WAITING})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(
        f"{BOOTS['tests']} tests ran in a booted machine; {BOOTS['boots']} boots, {BOOTS['seconds']:.0f} s of booting"
    )
    for name, count in WAITING.items():
        terminalreporter.write_line(f"{count} tests wait for the patch set {name}: not in linux-patches/series yet")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    told = getattr(session.config, "workeroutput", None)
    if told is not None:
        told["numalab"] = {"boots": BOOTS, "waiting": dict(WAITING)}
        return
    wanted = session.config.getoption("--require-boots")
    if wanted and exitstatus == 0 and not (BOOTS["boots"] and BOOTS["tests"]):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.get_terminal_writer().line("no test booted a machine: that is a failure", red=True)
