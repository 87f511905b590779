"""Counts the tests that booted a machine, so that a run in which none did cannot look green."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

BOOTS = {"tests": 0, "boots": 0, "seconds": 0.0}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-boots", action="store_true", help="fail unless at least one test booted a machine")


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


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    wanted = session.config.getoption("--require-boots")
    if wanted and exitstatus == 0 and not (BOOTS["boots"] and BOOTS["tests"]):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.get_terminal_writer().line("no test booted a machine: that is a failure", red=True)
