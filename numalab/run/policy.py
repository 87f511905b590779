"""Policies: named settings of knobs and workload options; knobs are saved, set, read back and restored."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from numalab.errors import ExperimentError, MachineLostError, MissingError, UserError, nearest
from numalab.machine.outcome import GuestFileError
from numalab.machine.topology import Topology
from numalab.run.reader import fits, type_name


class KnobHost(Protocol):
    """What a policy needs of a machine."""

    def read_file(self, path: str) -> bytes:
        """Return a file of the guest."""

    def write_file(self, path: str, data: bytes) -> None:
        """Write a file of the guest."""


class NodeNumber(int):
    """A NUMA node in a policy's parameters; `{name:cpus}` in a template is the list of its CPUs."""

    topology: Topology

    def __new__(cls, number: int, topology: Topology) -> NodeNumber:
        """Bind `number` to the topology it must exist in."""
        made = super().__new__(cls, number)
        made.topology = topology
        return made

    def __format__(self, wanted: str) -> str:
        if wanted != "cpus":
            return int.__repr__(self)
        cpus = self.topology.cpus_of(self)
        if not cpus:
            raise UserError(f"node {int(self)} has no CPUs to run threads on")
        return number_list(cpus)


def number_list(numbers: range) -> str:
    """Return consecutive numbers as the kernel writes them: "3" or "0-3"."""
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


@dataclass(frozen=True)
class Param:
    """A parameter of a policy: its type (NodeNumber: a node of the machine), default and meaning."""

    type: type
    default: Any
    help: str


@dataclass(frozen=True)
class Knob:
    """One file of the guest's kernel and the value a policy writes to it.

    Attributes:
        path: e.g. "/proc/sys/vm/zone_reclaim_mode".
        value: what is written; may hold `{parameter}`.
        optional: a kernel without the file is fine (the knob then has its default anyway).
    """

    path: str
    value: str
    optional: bool = False


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
            `{parameter:cpus}` and `{nodes}` (all nodes with memory, "0-3").
    """

    name: str
    summary: str
    knobs: tuple[Knob, ...] = ()
    wrap: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    params: Mapping[str, Param] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)

    def problems(self, values: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return what is wrong with parameters as written in a file: pairs of key and complaint."""
        found = []
        for key, value in values.items():
            if key not in self.params:
                has = f"has {', '.join(self.params)}" if self.params else "has no parameters"
                found.append((key, f"unknown parameter{nearest(key, self.params)}; policy {self.name!r} {has}"))
                continue
            wanted = int if self.params[key].type is NodeNumber else self.params[key].type
            if not fits(value, wanted):
                what = "a node's number" if self.params[key].type is NodeNumber else type_name(wanted())
                found.append((key, f"must be {what}, not {type_name(value)} ({value!r})"))
        return found

    def bind(self, values: Mapping[str, Any], topology: Topology) -> Policy:
        """Return this policy with every placeholder filled in, for one shape of machine.

        Raises:
            UserError: a node that the topology does not have, or threads on a node without CPUs.
        """
        chosen: dict[str, Any] = {"nodes": _memory_nodes(topology)}
        for key, param in self.params.items():
            value = values.get(key, param.default)
            if param.type is NodeNumber:
                value = _existing(key, value, topology)
            chosen[key] = value
        return replace(
            self,
            knobs=tuple(replace(knob, value=knob.value.format_map(chosen)) for knob in self.knobs),
            wrap=tuple(word.format_map(chosen) for word in self.wrap),
            options={option: text.format_map(chosen) for option, text in self.options.items()},
            params={},
        )

    def to_json(self) -> dict[str, Any]:
        """What a bound policy does, as plain JSON values."""
        return {
            "name": self.name,
            "knobs": [[knob.path, knob.value] for knob in self.knobs],
            "wrap": list(self.wrap),
            "options": dict(self.options),
        }


NONE = Policy("none", "the kernel as it boots: no knob is touched")


@dataclass
class Setting:
    """One knob as it was handled, for provenance; `before` and `got` are None when the file is absent."""

    path: str
    before: str | None
    wanted: str
    got: str | None = None
    restored: bool = False


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
        for knob in policy.knobs:
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
        if knob.optional:
            return
        needs = " and ".join(f"the patch set {name!r}" for name in policy.requires)
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


def _memory_nodes(topology: Topology) -> str:
    """All nodes with memory, as the kernel writes lists: "0-3", "0,2-3"."""
    runs: list[list[int]] = []
    for number, node in enumerate(topology.nodes):
        if not node.memory:
            continue
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(number_list(range(run[0], run[-1] + 1)) for run in runs)


def _existing(key: str, number: int, topology: Topology) -> NodeNumber:
    count = len(topology.nodes)
    if not 0 <= number < count:
        has = "one node, 0" if count == 1 else f"nodes 0-{count - 1}"
        raise UserError(f"{key} = {number}: there is no such node (the topology has {has})")
    return NodeNumber(number, topology)
