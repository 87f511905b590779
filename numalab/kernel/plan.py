"""What a built kernel is made of: patch sets, configuration, flavour; and the key of its cache entry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from numalab.kernel import fragments, tools
from numalab.kernel.fragments import Setting
from numalab.kernel.series import Series, parse_sets
from numalab.kernel.series import read as read_series
from numalab.paths import PATCHES

#: DEBUG looks for wrong accesses and lock orders (KASAN, lockdep ...), RACES for data races (KCSAN): not both at once.
PATCHED, DEBUG, RACES = "patched", "debug", "races"
FLAVOURS = (PATCHED, DEBUG, RACES)

#: Raised when a change of numalab itself makes another kernel from the same inputs.
_RECIPE = 1


@dataclass(frozen=True)
class Plan:
    """Everything that decides what is built, but the source and the compiler."""

    flavour: str
    series: Series
    settings: dict[str, Setting]

    @property
    def name(self) -> str:
        """What users call it: "patched", "debug", "races", "patched:common", "patched:none"."""
        return f"{self.flavour}:{self.series.label}" if self.series.label else self.flavour

    @property
    def config_digest(self) -> str:
        """sha256 of the merged fragments (symbols and values)."""
        return fragments.digest(self.settings)

    @property
    def build_command(self) -> str:
        """The command that builds it."""
        words = ["numalab kernel build"]
        if self.series.label:
            words.append(f"--sets {self.series.label}")
        if self.flavour != PATCHED:
            words.append(f"--{self.flavour}")
        return " ".join(words)

    def key(self, source_sha256: str, compiler: str) -> str:
        """16 hex digits that name the kernel built so from that source with that compiler."""
        inputs = {
            "recipe": _RECIPE,
            "source": source_sha256,
            "series": self.series.digest(),
            "config": self.config_digest,
            "compiler": compiler,
            "flavour": self.flavour,
        }
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def fragment_files(flavour: str, sets: Sequence[str], top: Path = PATCHES) -> list[Path]:
    """Return the fragments of a kernel: base, those the patch sets have; the same again for another flavour."""
    configs = top / "configs"

    def with_sets(name: str, suffix: str = "") -> list[Path]:
        own = (configs / f"{each}{suffix}.config" for each in sets)
        return [configs / f"{name}.config", *(file for file in own if file.is_file())]

    return with_sets("base") + (with_sets(flavour, f"-{flavour}") if flavour != PATCHED else [])


def make_plan(flavour: str, sets: Sequence[str] | None = None, top: Path | None = None) -> Plan:
    """Read series and fragments for a flavour.

    Raises:
        UserError: an unknown set, a broken series or fragment, fragments that disagree.
    """
    top = PATCHES if top is None else top
    series = read_series(top, sets)
    return Plan(flavour, series, settings_of(flavour, series.sets, top))


def settings_of(flavour: str, sets: Sequence[str], top: Path | None = None) -> dict[str, Setting]:
    """Read and merge the fragments of a flavour with these patch sets.

    Raises:
        UserError: a broken fragment, or fragments that disagree.
    """
    return fragments.merge(fragments.read(fragment_files(flavour, sets, PATCHES if top is None else top)))


def plan_named(name: str, top: Path | None = None) -> Plan | None:
    """Return the plan users call `name` ("debug", "patched:common" ...), None when it names none."""
    flavour, _, sets = name.partition(":")
    return make_plan(flavour, parse_sets(sets), top) if flavour in FLAVOURS else None


def compiler() -> str:
    """Return the first line of `gcc --version`, "" when there is no gcc."""
    if tools.which("gcc") is None:
        return ""
    return tools.run(["gcc", "--version"], purpose="asking the compiler's version").stdout.partition("\n")[0]
