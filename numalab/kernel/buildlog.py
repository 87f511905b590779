"""What went wrong in a build: the first real error in the output of make, gcc, ld and kbuild's scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from numalab.errors import ExperimentError


@dataclass(frozen=True)
class BuildFailure:
    """The first error of a log.

    Attributes:
        kind: "compile", "link", "modpost", "config", "rule" (no rule to make a target), "killed"
            (out of memory), "disk" (full), "make" (a recipe failed and said nothing we know) or
            "unknown".
        text: the line of the log, without build-directory noise.
        file, line: where, when the message says so ("" and 0 otherwise).
    """

    kind: str
    text: str
    file: str = ""
    line: int = 0


#: In order of precedence: the cause of a failure, whatever else it made fail.
_CAUSES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("disk", re.compile(r".*No space left on device.*")),
    ("killed", re.compile(r".*(?:Killed signal terminated program|virtual memory exhausted|out of memory).*")),
)

_ERRORS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("compile", re.compile(r"(?P<file>[^\s:][^:]*):(?P<line>\d+)(?::\d+)?: (?:fatal )?error: .*")),
    ("compile", re.compile(r"(?P<file>[^\s:][^:]*\.[sS]):(?P<line>\d+): Error: .*")),
    ("link", re.compile(r".*(?:undefined reference to|multiple definition of) .*")),
    ("link", re.compile(r"(?:\S*/)?ld(?:\.\w+)?: (?!warning: ).*(?:cannot find|error|failed|overlaps|will not fit).*")),
    ("modpost", re.compile(r"ERROR: modpost: .*")),
    ("config", re.compile(r"(?P<file>[^\s:]*Kconfig[^\s:]*):(?P<line>\d+): (?!warning).*")),
    ("compile", re.compile(r"(?:BTF|FAILED|Error): .*|.*: error: .*|error: .*")),
    ("rule", re.compile(r"make(?:\[\d+\])?: \*\*\* (?P<what>No rule to make target .*)")),
    ("make", re.compile(r"/bin/\w*sh: .*: (?:not found|Permission denied|No such file or directory)")),
)

_LAST_RESORT = re.compile(r"make(?:\[\d+\])?: \*\*\* \[(?:(?P<file>[^\s:\]]+):(?P<line>\d+): )?.*\] .*")


def _lines(log: str) -> Iterator[str]:
    for line in log.splitlines():
        text = line.strip()
        if text:
            yield text


def first_error(log: str) -> BuildFailure:
    """Return the first error in a build's output, whatever is interleaved with it.

    A full disk or a compiler killed for want of memory is named before the errors it caused.
    """
    for kind, pattern in _CAUSES:
        for line in _lines(log):
            if pattern.fullmatch(line):
                return BuildFailure(kind, line)
    for line in _lines(log):
        for kind, pattern in _ERRORS:
            if found := pattern.fullmatch(line):
                parts = found.groupdict()
                return BuildFailure(
                    kind, parts.get("what") or line, parts.get("file") or "", int(parts.get("line") or 0)
                )
    for line in _lines(log):
        if found := _LAST_RESORT.fullmatch(line):
            return BuildFailure("make", line, found["file"] or "", int(found["line"] or 0))
    last = list(_lines(log))[-3:]
    return BuildFailure("unknown", "\n".join(last) or "the build wrote nothing")


_REMEDIES = {
    "disk": "free some space (`numalab cache prune`, or XDG_CACHE_HOME on a bigger disk); the build resumes",
    "killed": "not enough memory: build with fewer --jobs; the build resumes",
}


def failure(what: str, log: str, path: str, *, strip: str = "") -> ExperimentError:
    """Return the error for a failed build step; ends with the first error and the path of the log.

    `strip` is the source directory, taken out of file names.
    """
    found = first_error(log)
    text = found.text.replace(f"{strip}/", "") if strip else found.text
    return ExperimentError(f"{what} failed:\n  {text}\nfull log: {path}", remedy=_REMEDIES.get(found.kind, ""))
