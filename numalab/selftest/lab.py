"""A group of test programs on a kernel, repeated and recorded; and the baseline for it, kept in the cache."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numalab.paths import cache_dir
from numalab.selftest import record, runner
from numalab.selftest.build import Programs
from numalab.selftest.catalogue import Group, Program
from numalab.selftest.record import Run
from numalab.selftest.runner import Result

if TYPE_CHECKING:
    from numalab.kernel.image import KernelImage
    from numalab.machine.session import Machine
    from numalab.machine.topology import Topology

#: Seconds of wall time until a machine must have answered.
_BOOT_SECONDS = 120.0

#: Record of a baseline that is not done.
_UNFINISHED = "unfinished.json"

#: A word of the kernel's command line, which the kernel makes nothing of: threads of programs are moved between CPUs.
BOUNCE = "numalab.bounce"
#: The same, but each thread stays on one CPU.
PIN = "numalab.pin"
_BOUNCE_PROGRAM = "/bin/bounce"

#: (number of the repeat from 1, number of repeats, result)
OnResult = Callable[[int, int, Result], None]


@dataclass(frozen=True)
class Setting:
    """Everything that decides what a run's results can be, but chance.

    Attributes:
        group: the programs' group.
        programs: those of it that are run.
        kernel: under which.
        topology, accel, append: the machine.
        built: the programs.
        patience: factor on every time-out, the boot's too.
        files: of the kernel, with what each program finds in them: pairs of path and value.

    With BOUNCE among the words of `append`, each thread of a program goes to another CPU every millisecond; with PIN
    each stays on one.
    """

    group: Group
    programs: tuple[Program, ...]
    kernel: KernelImage
    topology: Topology
    accel: str
    built: Programs
    append: str = ""
    patience: float = 1.0
    files: tuple[tuple[str, str], ...] = ()

    @property
    def wrap(self) -> tuple[str, ...]:
        """What programs are run by: that which moves their threads between CPUs, or pins them."""
        words = self.append.split()
        if BOUNCE in words:
            return (_BOUNCE_PROGRAM,)
        return (_BOUNCE_PROGRAM, "--pin") if PIN in words else ()

    def key(self) -> str:
        """16 hex digits that name the baseline this setting can serve as; which programs are run is no part of it."""
        inputs = {
            "group": self.group.name,
            "kernel": self.kernel.build_id or [self.kernel.release, str(self.kernel.path)],
            "topology": self.topology.to_json(),
            "accel": self.accel,
            "append": self.append,
            "programs": self.built.key,
            # Absent otherwise: what was known before there was such a thing stays known.
            **({"files": self.files} if self.files else {}),
        }
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def run(
    setting: Setting,
    repeats: int,
    out: Path,
    *,
    on_result: OnResult = lambda *_: None,
    file: str = "results.json",
    resume: bool = False,
) -> Run:
    """Run the programs `repeats` times; record them in `out`: results.json, and each program's output in logs/.

    What is done is on disk at any moment; an interrupted run leaves the results it has.

    Args:
        setting, repeats, out: what, how often, and the directory of the results.
        on_result: is told each result as it comes.
        file: name of the record in `out`.
        resume: go on with the record that is there, of a run of the same setting that was interrupted.

    Raises:
        MachineLostError: no machine comes up. MissingError: this host lacks something.
    """
    started, begun = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    before = record.load(out / file) if resume and (out / file).is_file() else None
    done: list[list[Result]] = []
    machines: list[dict[str, Any]] = []

    def so_far() -> Run:
        return Run(
            setting.group.name,
            _kernel_facts(setting.kernel),
            {
                "accel": setting.accel,
                "topology": setting.topology.to_json(),
                **({"files": dict(setting.files)} if setting.files else {}),
                **(machines[0] if machines else {}),
            },
            setting.built.key,
            tuple(map(tuple, done)),
            before.started if before else started,
            time.monotonic() - begun + (before.seconds if before else 0.0),
        )

    for number in range(1, repeats + 1):
        wanted = {program.name for program in setting.programs}
        results = [each for each in _nth(before, number - 1) if each.program in wanted]
        done.append(results)
        known = {each.program for each in results}
        left = [program for program in setting.programs if program.name not in known]
        logs = out / "logs" / str(number)
        logs.mkdir(parents=True, exist_ok=True)

        def keep(result: Result, into: list[Result] = results, at: Path = logs, repeat: int = number) -> None:
            into.append(result)
            name = _file_name(result.program)
            for suffix, text in (("out", result.stdout), ("err", result.stderr)):
                if text:
                    (at / f"{name}.{suffix}").write_bytes(text)
            so_far().save(out / file)
            on_result(repeat, repeats, result)

        @contextmanager
        def opened(at: Path = logs) -> Iterator[Machine]:
            with _boot(setting, at / f"console-{time.monotonic_ns()}") as machine:
                if not machines:
                    machines.append(_machine_facts(machine))
                yield machine

        runner.run(
            setting.group,
            left,
            opened,
            setting.built.linkage,
            on_result=keep,
            patience=setting.patience,
            wrap=setting.wrap,
            files=dict(setting.files),
        )
    return so_far()


def baseline(
    setting: Setting, repeats: int, *, fresh: bool = False, on_result: OnResult = lambda *_: None
) -> tuple[Run, Path]:
    """Return the recorded results of `setting` with at least `repeats` repeats, and the directory they are in.

    Programs that the cache knows well enough are not run again, unless `fresh`; what an interrupted baseline had done
    is not either.

    Raises:
        As `run`.
    """
    place = cache_dir("selftest-baselines", setting.key())
    file = place / "results.json"
    known = record.load(file) if file.is_file() and not fresh else None
    lacking = tuple(each for each in setting.programs if known is None or _repeats_of(known, each.name) < repeats)
    if fresh:
        (place / _UNFINISHED).unlink(missing_ok=True)
    if lacking:
        # In a record of its own: interrupted, it does not replace a better one.
        what = replace(setting, programs=lacking)
        found = run(what, repeats, place, on_result=on_result, file=_UNFINISHED, resume=True)
        known = found if known is None else merge(known, found)
        known.save(file)
        (place / _UNFINISHED).unlink(missing_ok=True)
    assert known is not None
    wanted = {program.name for program in setting.programs}
    chosen = tuple(tuple(each for each in repeat if each.program in wanted) for repeat in known.repeats)
    return replace(known, repeats=chosen), place


def merge(old: Run, new: Run) -> Run:
    """Return `old` with all it knows about the programs of `new` replaced by what `new` knows."""
    again = {result.program for repeat in new.repeats for result in repeat}
    count = max(len(old.repeats), len(new.repeats))
    repeats = []
    for number in range(count):
        kept = [each for each in _nth(old, number) if each.program not in again]
        repeats.append((*kept, *_nth(new, number)))
    return replace(new, repeats=tuple(repeats), seconds=old.seconds + new.seconds)


def _nth(run: Run | None, number: int) -> Sequence[Result]:
    return run.repeats[number] if run and number < len(run.repeats) else ()


def _repeats_of(run: Run, program: str) -> int:
    return sum(any(each.program == program for each in repeat) for repeat in run.repeats)


def _boot(setting: Setting, logs: Path) -> Machine:
    from numalab.machine.session import Machine

    group = setting.group
    linkages = {setting.built.linkage(f"{group.directory}/{program.argv[0]}") for program in setting.programs}
    # Dynamic programs run on the host's libraries: naming any program of the host brings its /usr in.
    host_programs = group.host_programs or (("env",) if "dynamic" in linkages else ())
    return Machine(
        setting.kernel,
        setting.topology,
        accel=setting.accel,
        append=setting.append,
        share=setting.built.top,
        nested=group.nested,
        host_programs=host_programs,
        extra_files={_BOUNCE_PROGRAM: _bounce()} if setting.wrap else None,
        log_dir=logs,
        boot_timeout=_BOOT_SECONDS * setting.patience,
    )


def _bounce() -> Path:
    from numalab.machine.rootfs import static_program

    return static_program("bounce", [Path(__file__).with_name("bounce.c")], "bounce.c")


def _machine_facts(machine: Machine) -> dict[str, Any]:
    facts = machine.facts()
    return {key: facts[key] for key in ("qemu_version", "qemu_argv", "cmdline") if key in facts}


def _kernel_facts(kernel: KernelImage) -> dict[str, Any]:
    return {**kernel.provenance, "name": kernel.name, "release": kernel.release, "build_id": kernel.build_id}


def _file_name(program: str) -> str:
    return re.sub(r"[^\w.,=+-]+", "_", program)
