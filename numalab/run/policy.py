"""Policies: named settings of knobs and workload options; knobs are saved, set, read back and restored."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from numalab.errors import ExperimentError, MachineLostError, MissingError
from numalab.machine.outcome import Completed, GuestFileError
from numalab.machine.topology import Topology
from numalab.run import policy_params
from numalab.run.policy_params import NodeList, NodeNumber, Param, existing_node, number_list

__all__ = [
    "BALANCING",
    "NONE",
    "NO_BALANCING",
    "Knob",
    "KnobHost",
    "LateSetting",
    "NodeList",
    "NodeNumber",
    "Param",
    "Policy",
    "Setting",
    "applied",
    "existing_node",
    "number_list",
]


class KnobHost(Protocol):
    """What a policy needs of a machine."""

    def read_file(self, path: str) -> bytes:
        """Return a file of the guest."""

    def write_file(self, path: str, data: bytes) -> None:
        """Write a file of the guest."""

    def at_mark(self, name: str, action: Callable[[int], None]) -> AbstractContextManager[None]:
        """Call `action` with the process id of the next command when it announces the mark `name`."""

    def run(self, argv: Sequence[str]) -> Completed:
        """Run a command of the guest to its end."""


@dataclass(frozen=True)
class Knob:
    """One file of the guest's kernel and the value a policy writes to it.

    Attributes:
        path: e.g. "/proc/sys/vm/zone_reclaim_mode".
        value: what is written; may hold `{parameter}`.
        optional: a kernel without the file is fine (the knob then has its default anyway).
        mark: when set, the value is written once the program announces this mark, after snapshots and counters were
            taken there, and not restored; with PID in it `path` is a file of the program.
        brought_by: what kernel has it, when that is no patch set.
        without: the value that a kernel without the file behaves as if it had; that one is fine there.
    """

    path: str
    value: str
    optional: bool = False
    mark: str = ""
    brought_by: str = ""
    without: str = ""

    @property
    def dispensable(self) -> bool:
        """Whether a kernel without the file will do."""
        return self.optional or bool(self.without and self.value == self.without)


BALANCING = "/proc/sys/kernel/numa_balancing"
#: A kernel built without it does not need to be told.
NO_BALANCING = Knob(BALANCING, "0", optional=True)


@dataclass(frozen=True)
class Policy:
    """A named setting.

    Attributes:
        name, summary: for people.
        knobs: what is written, in this order; restored in reverse.
        wrap: argv put in front of the workload's own.
        requires: patch sets whose knobs it uses, e.g. ("common",).
        params: what an experiment may choose.
        options: workload options it sets (placement of threads and data); may hold `{parameter}`,
            `{parameter:cpus}` and `{nodes}` (all nodes with memory, "0-3"); one that comes to "" is not set.
        interference: nodes on which a second program loads memory beside the measured one
            (`numalab.run.interference`); each may hold `{parameter}`.
    """

    name: str
    summary: str
    knobs: tuple[Knob, ...] = ()
    wrap: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    params: Mapping[str, Param] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    interference: tuple[str, ...] = ()

    def problems(self, values: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return what is wrong with parameters as written in a file: pairs of key and complaint."""
        return policy_params.problems(self.name, self.params, values)

    def bind(self, values: Mapping[str, Any], topology: Topology) -> Policy:
        """Return this policy with every placeholder filled in, for one shape of machine.

        Raises:
            UserError: a node that the topology does not have, or threads on a node without CPUs.
        """
        chosen = policy_params.choose(self.params, values, topology)
        options = {option: text.format_map(chosen) for option, text in self.options.items()}
        return replace(
            self,
            knobs=tuple(replace(knob, value=knob.value.format_map(chosen)) for knob in self.knobs),
            wrap=tuple(word.format_map(chosen) for word in self.wrap),
            options={option: text for option, text in options.items() if text},
            interference=tuple(node.format_map(chosen) for node in self.interference),
            params={},
        )

    def to_json(self) -> dict[str, Any]:
        """What a policy does, as plain JSON values; cells are known by a hash of those of their bound policy."""
        return {
            "name": self.name,
            "knobs": [[knob.path, knob.value, *([f"at {knob.mark}"] if knob.mark else [])] for knob in self.knobs],
            "wrap": list(self.wrap),
            "options": dict(self.options),
            **({"interference": [_number(node) for node in self.interference]} if self.interference else {}),
        }


def _number(node: str) -> int | str:
    """A node's number; while the policy is not bound, the placeholder."""
    return int(node) if node.isdigit() else node


NONE = Policy("none", "the kernel as it boots: no knob is touched")


@dataclass
class Setting:
    """One knob as it was handled, for provenance; `before` and `got` are None when the file is absent."""

    path: str
    before: str | None
    wanted: str
    got: str | None = None
    restored: bool = False


@dataclass
class LateSetting(Setting):
    """A knob that waits for a mark: it has no `before`, and `got` is None when the mark did not come."""

    mark: str = ""


@contextmanager
def applied(machine: KnobHost, policy: Policy) -> Iterator[list[Setting]]:
    """Set the knobs of a bound policy, yield what was done, and put everything back at the end.

    Restores in reverse order whatever happens inside; not when the machine itself was lost.

    Raises:
        MissingError: the kernel has no such knob; names the patch set that brings it.
        ExperimentError: a knob did not take, or could not be put back.
    """
    settings: list[Setting] = []
    try:
        with ExitStack() as waiting:
            for knob in policy.knobs:
                if knob.mark:
                    setting = LateSetting(knob.path, None, knob.value, mark=knob.mark)
                    settings.append(setting)
                    waiting.enter_context(machine.at_mark(knob.mark, partial(_write_late, machine, policy, setting)))
                else:
                    _set(machine, policy, knob, settings)
            yield settings
    except MachineLostError:
        raise
    except BaseException as error:
        for line in _restore(machine, settings):
            error.add_note(line)
        raise
    else:
        failures = _restore(machine, settings)
        if failures:
            raise ExperimentError(f"policy {policy.name!r}: {'; '.join(failures)}")


def _set(machine: KnobHost, policy: Policy, knob: Knob, settings: list[Setting]) -> None:
    before = _read(machine, knob.path)
    setting = Setting(knob.path, before, knob.value)
    settings.append(setting)
    if before is None:
        if knob.dispensable:
            return
        needs = knob.brought_by or " and ".join(f"the patch set {name!r}" for name in policy.requires)
        raise MissingError(
            f"policy {policy.name!r}: this kernel has no {knob.path}",
            remedy=f"boot a kernel with {needs} (numalab kernel build)" if needs else "choose another kernel",
        )
    complaint = _write(machine, knob.path, knob.value)
    setting.got = _read(machine, knob.path)
    if complaint or not _same(setting.got, knob.value):
        because = f" ({complaint})" if complaint else ""
        raise ExperimentError(
            f"policy {policy.name!r}: {knob.path} did not take: wanted {knob.value!r}, got {setting.got!r}{because}"
        )


#: Writes $2 into the file $1; where that has PID in it, it is that of the process $0, or of the one it has started in
#: its place (perf, say).
_LATE = """
pid=$0
while :; do
	child=
	for each in /proc/[0-9]*; do
		read -r _ _ _ parent _ 2>/dev/null < $each/stat && [ "$parent" = $pid ] && child=${each#/proc/}
	done
	[ "$child" ] || break
	pid=$child
done
case $1 in
*PID*) file=${1%PID*}$pid${1#*PID} ;;
*) file=$1 ;;
esac
echo "$2" > "$file"
"""


def _write_late(machine: KnobHost, policy: Policy, setting: LateSetting, pid: int) -> None:
    done = machine.run(["sh", "-c", _LATE, str(pid), setting.path, setting.wanted])
    if not done.ok:
        words = done.stderr.decode(errors="replace").strip()
        raise ExperimentError(
            f"policy {policy.name!r}: {setting.wanted!r} could not be written to {setting.path} "
            f"at the mark {setting.mark!r}: {words}"
        )
    setting.got = setting.wanted


def _restore(machine: KnobHost, settings: list[Setting]) -> list[str]:
    """Put knobs back, last first; returns what could not be put back."""
    failures = []
    for setting in reversed(settings):
        if setting.before is None:
            continue
        try:
            complaint = _write(machine, setting.path, setting.before)
            setting.restored = not complaint and _same(_read(machine, setting.path), setting.before)
        except MachineLostError as error:
            failures.append(f"the machine was lost while {setting.path} was restored: {error}")
            break
        if not setting.restored:
            failures.append(f"{setting.path} could not be restored to {setting.before!r}")
    return failures


def _read(machine: KnobHost, path: str) -> str | None:
    """The knob's value, None when there is no such file; a choice like "always [never]" reads as "never"."""
    try:
        text = machine.read_file(path).decode(errors="replace").strip()
    except GuestFileError as error:
        if error.errno == errno.ENOENT:
            return None
        raise ExperimentError(f"{path} cannot be read: {error.strerror}") from error
    chosen = re.search(r"\[([^\]\s]+)\]", text)
    return chosen[1] if chosen else text


def _write(machine: KnobHost, path: str, value: str) -> str:
    """Write a knob; returns the complaint of the kernel, "" when there was none."""
    try:
        machine.write_file(path, value.encode() + b"\n")
    except GuestFileError as error:
        return error.strerror or f"errno {error.errno}"
    return ""


def _same(got: str | None, wanted: str) -> bool:
    return got is not None and got.split() == wanted.split()
