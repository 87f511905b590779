"""Build the verifier of one configuration with Spin and a C compiler, run it, and say what it found."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from mitosis.protocol.configurations import Configuration, Expect
from numalab.errors import ExperimentError, MissingError

MODELS = Path(__file__).parent
#: A search that needs more is not exhaustive, and says so.
MEMORY_MB = 1900
DEPTH = 1_000_000


class Verdict(Enum):
    """What a search said."""

    HOLDS = "holds"
    VIOLATED = "violated"
    #: Depth or memory ran out: nothing is proved.
    TRUNCATED = "truncated"


@dataclass(frozen=True)
class Result:
    """One search; `seconds` are of the processor, for building and searching.

    `violated` is the claim that failed, in the model's words; for coverage the place that was reached.
    `unreached` are the statements no run came by: (process, file and line, statement).
    """

    configuration: Configuration
    verdict: Verdict
    states: int
    depth: int
    seconds: float
    violated: str = ""
    unreached: frozenset[tuple[str, str, str]] = frozenset()

    @property
    def as_expected(self) -> bool:
        """Whether the search said what it has to say of this configuration."""
        wanted = self.configuration
        if wanted.expect is Expect.HOLDS:
            return self.verdict is Verdict.HOLDS
        return self.verdict is Verdict.VIOLATED and self.violated == wanted.property_


def tools() -> tuple[str, str]:
    """Return Spin and the C compiler, or say what is missing."""
    spin, compiler = shutil.which("spin"), shutil.which("gcc") or shutil.which("cc")
    if spin is None:
        raise MissingError("spin is missing: it checks the models of mitosis/protocol", remedy="apt-get install spin")
    if compiler is None:
        raise MissingError("no C compiler: Spin's verifiers are C programs", remedy="apt-get install gcc libc6-dev")
    return spin, compiler


def check(configuration: Configuration, *, depth: int = DEPTH, memory_mb: int = MEMORY_MB) -> Result:
    """Search all states of `configuration`, or up to the first error."""
    started = _processor_seconds()
    with _verifier(configuration, f"-DMEMLIM={memory_mb}") as directory:
        verdict, output = _search(directory, depth)
        violated = _failure(configuration, directory) if verdict is Verdict.VIOLATED else ""
        return Result(
            configuration,
            verdict,
            states=_number(r"(\d+) states, stored", output),
            depth=_number(r"depth reached (\d+)", output),
            seconds=_processor_seconds() - started,
            violated=violated,
            unreached=frozenset(_unreached(output)),
        )


def counterexample(configuration: Configuration) -> list[str]:
    """Return the steps of a shortest run into the error, then the values of the variables; none if it holds."""
    with _verifier(configuration, "-DBFS", f"-DMEMLIM={8 * MEMORY_MB}") as directory:
        verdict, _output = _search(directory, DEPTH)
        return _replay(configuration, directory, "-p") if verdict is Verdict.VIOLATED else []


@contextmanager
def _verifier(configuration: Configuration, *options: str) -> Iterator[Path]:
    """Yield a directory with the compiled verifier in it."""
    spin, compiler = tools()
    with tempfile.TemporaryDirectory(prefix="mitosis-protocol-") as name:
        directory = Path(name)
        for source in MODELS.glob("*.pml"):
            shutil.copy(source, directory)
        _run([spin, "-a", *_defines(configuration), f"{configuration.model}.pml"], directory)
        optimise = "-O1" if configuration.expect is Expect.HOLDS else "-O0"  # an error is found sooner than compiled
        search = ["-DSAFETY", "-DCOLLAPSE", *options]
        _run([compiler, "-w", optimise, *search, "-o", "pan", "pan.c"], directory)
        yield directory


def _defines(configuration: Configuration) -> list[str]:
    return [f"-D{define}" for define in configuration.defines]


def _run(command: list[str], directory: Path) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if done.returncode != 0:
        raise ExperimentError(f"{' '.join(command)} failed ({done.returncode}):\n{output}")
    return output


def _search(directory: Path, depth: int) -> tuple[Verdict, str]:
    command = ["./pan", f"-m{depth}"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if re.search(r"errors: [1-9]", output):
        return Verdict.VIOLATED, output
    exhaustive = (
        done.returncode == 0
        and "Full statespace search" in output
        and re.search(r"assertion violations\s+\+", output)
        and re.search(r"invalid end states\s+\+", output)
        and "errors: 0" in output
        and "Search not completed" not in output
        and "max search depth too small" not in output
    )
    return (Verdict.HOLDS if exhaustive else Verdict.TRUNCATED), output


def _replay(configuration: Configuration, directory: Path, *options: str) -> list[str]:
    spin, _compiler = tools()
    command = [spin, "-t", *options, *_defines(configuration), f"{configuration.model}.pml"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).splitlines()


def _failure(configuration: Configuration, directory: Path) -> str:
    """Return the claim that failed; the models print it, and nothing else, on the way into the error."""
    said = "deadlock: a process waits for ever"
    for line in _replay(configuration, directory, "-T"):
        if line.startswith("spin: trail ends"):
            break
        if line.strip() and not line.startswith("spin:"):
            said = line.strip().partition("spin:")[0]
    return said


def _unreached(output: str) -> Iterator[tuple[str, str, str]]:
    process = ""
    for line in output.splitlines():
        if found := re.match(r"unreached in (?:proctype )?(\S+)", line):
            process = found[1]
        elif found := re.match(r'\t(\S+\.pml:\d+), state \d+, "(.*)"', line):
            yield process, found[1], found[2]


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _number(pattern: str, output: str) -> int:
    found = re.search(pattern, output)
    return int(found[1]) if found else 0
