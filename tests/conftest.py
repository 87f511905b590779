"""Counts the tests that booted a machine, so that a run in which none did cannot look green.

Tests marked `patch_set(name)` are about a patch set that has to be in linux-patches/series; how many wait for one is
said at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

BOOTS = {"tests": 0, "boots": 0, "seconds": 0.0}
WAITING: Counter[str] = Counter()


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(
        f"{BOOTS['tests']} tests ran in a booted machine; {BOOTS['boots']} boots, {BOOTS['seconds']:.0f} s of booting"
    )
    for name, count in WAITING.items():
        terminalreporter.write_line(f"{count} tests wait for the patch set {name}: not in linux-patches/series yet")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    wanted = session.config.getoption("--require-boots")
    if wanted and exitstatus == 0 and not (BOOTS["boots"] and BOOTS["tests"]):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.get_terminal_writer().line("no test booted a machine: that is a failure", red=True)
