"""The groups of test programs (groups.toml): what is run, how, and what it needs of the machine."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from numalab.errors import UserError, nearest

FILE = Path(__file__).with_name("groups.toml")
#: What a shell script of kselftest exits with to say that it skipped (kselftest.h: KSFT_SKIP).
KSFT_SKIP = 4


@dataclass(frozen=True)
class Program:
    """One test program with its arguments.

    Attributes:
        name: unique in its group; the command line unless the file says otherwise.
        argv: first the program's file name below the group's directory, or a program of the host.
        timeout: seconds of wall time it may take.
        hugepages: 2M pages it needs reserved.
        nodes: NUMA nodes with memory it needs.
        sysctls: files below /proc/sys, as "vm.overcommit_memory", or paths of others, and what is written to them.
        needs: files of the guest without which it cannot run, e.g. "/dev/kvm", or flags of its CPUs, e.g. "cpu:la57";
            it is skipped then.
        skip_status: exit statuses that mean "skipped".
        cwd: where it runs; must be writable for some.
        swap: whether it has tests that need swap; it gets some where the kernel has zram.
        user: who runs it; "" is root.
        steady: whether it places its threads itself: they are left alone where those of others bounce between CPUs.
        hardware: whether it would take hours in emulation; it is skipped there.
    """

    name: str
    argv: tuple[str, ...]
    timeout: float
    hugepages: int = 0
    nodes: int = 1
    sysctls: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    skip_status: tuple[int, ...] = (KSFT_SKIP,)
    cwd: str = "/tmp"
    swap: bool = False
    user: str = ""
    hardware: bool = False
    steady: bool = False


@dataclass(frozen=True)
class Group:
    """Programs that are run together.

    Attributes:
        name, summary: for people.
        programs: in the order they are run.
        directory: of kselftest, below tools/testing/selftests; "" for programs of the host.
        nodes, cpus_per_node, node_memory: the machine they are made for.
        nested: whether the guest must be able to run guests.
    """

    name: str
    summary: str
    programs: tuple[Program, ...]
    directory: str = ""
    nodes: int = 2
    cpus_per_node: int = 1
    node_memory: str = "1G"
    nested: bool = False

    @property
    def host_programs(self) -> tuple[str, ...]:
        """Programs of the host that it runs."""
        return () if self.directory else tuple(sorted({program.argv[0] for program in self.programs}))

    def select(self, names: tuple[str, ...]) -> tuple[Program, ...]:
        """Return the programs whose name, or file name, is among `names`; all without names.

        Raises:
            UserError: a name that fits no program.
        """
        known = {program.name for program in self.programs} | {program.argv[0] for program in self.programs}
        for name in names:
            if name not in known:
                raise UserError(f"group {self.name} has no program {name!r}{nearest(name, known)}")
        return tuple(each for each in self.programs if not names or each.name in names or each.argv[0] in names)


@dataclass(frozen=True)
class Recipe:
    """How the programs are built.

    Attributes:
        targets: directories of kselftest that are built.
        repairs: program → (compiler flags, why): sources that do not compile as they are.
        dynamic: programs that must not be static, and why.
        alone: program → source: what no makefile of the tests makes here, compiled by itself.
    """

    targets: tuple[str, ...]
    repairs: Mapping[str, tuple[str, str]]
    dynamic: Mapping[str, str]
    alone: Mapping[str, str] = field(default_factory=dict)


def group(name: str) -> Group:
    """Return a group.

    Raises:
        UserError: there is none of that name; names the nearest.
    """
    known = groups()
    if name not in known:
        raise UserError(f"unknown group {name!r}{nearest(name, known)} (groups: {', '.join(known)})")
    return known[name]


def groups() -> dict[str, Group]:
    """Return all groups by name."""
    return {name: _group(name, table) for name, table in _file(FILE)["groups"].items()}


def recipe() -> Recipe:
    """Return how the programs are built."""
    table = _file(FILE)["build"]
    return Recipe(
        tuple(table["targets"]),
        {name: (entry["cflags"], entry["why"]) for name, entry in table.get("repairs", {}).items()},
        dict(table.get("dynamic", {})),
        {name: entry["source"] for name, entry in table.get("alone", {}).items()},
    )


@cache
def _file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return tomllib.load(file)


def _group(name: str, table: Mapping[str, Any]) -> Group:
    defaults = {"timeout": table.get("timeout", 60), **table.get("defaults", {})}
    entries = [entry if isinstance(entry, dict) else {"run": entry} for entry in table["programs"]]
    programs = tuple(_program({**defaults, **entry}) for entry in entries)
    machine = table.get("machine", {})
    found = Group(name, table["summary"], programs, table.get("directory", ""), **machine)
    doubles = len(programs) - len({program.name for program in programs})
    if doubles:
        raise ValueError(f"{FILE}: group {name} names {doubles} programs twice")
    return found


def _program(entry: Mapping[str, Any]) -> Program:
    unknown = entry.keys() - {"run", *Program.__dataclass_fields__} - {"argv"}
    if unknown:
        raise ValueError(f"{FILE}: {entry['run']}: unknown key {min(unknown)!r}")
    words = tuple(shlex.split(entry["run"]))
    more = {
        key: entry[key] for key in ("hugepages", "nodes", "cwd", "swap", "user", "hardware", "steady") if key in entry
    }
    return Program(
        entry.get("name", entry["run"]),
        words,
        float(entry["timeout"]),
        sysctls={key: str(value) for key, value in entry.get("sysctls", {}).items()},
        needs=tuple(entry.get("needs", ())),
        skip_status=tuple(entry.get("skip_status", (KSFT_SKIP,))),
        **more,
    )
