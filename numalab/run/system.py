"""Systems under study: packages that register policies and experiments; numalab knows none by name.

A package names its `System` in the entry-point group `numalab.systems` of its pyproject.toml.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from numalab.errors import ExperimentError, UserError, nearest
from numalab.features import Feature
from numalab.run.policy import NONE, Policy

GROUP = "numalab.systems"


@dataclass(frozen=True)
class System:
    """A system under study.

    Attributes:
        name, summary: for people; the name prefixes its experiments ("mitosis/quickstart").
        policies: what it offers to experiments.
        experiments_dir: directory with its experiment files, None when it has none.
        features: what its patch sets bring to a kernel, for `numalab features`.
    """

    name: str
    summary: str
    policies: tuple[Policy, ...] = ()
    experiments_dir: Path | None = None
    features: tuple[Feature, ...] = ()

    def experiments(self) -> dict[str, Path]:
        """Its experiment files by name, "system/stem"."""
        if self.experiments_dir is None:
            return {}
        return {f"{self.name}/{path.stem}": path for path in sorted(self.experiments_dir.glob("*.toml"))}


@cache
def systems() -> dict[str, System]:
    """Return the registered systems by name.

    Raises:
        ExperimentError: one of them cannot be loaded, or two have the same name.
    """
    found: dict[str, System] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        try:
            system = entry.load()
        except Exception as error:
            raise ExperimentError(f"the system {entry.name!r} ({entry.value}) cannot be loaded: {error}") from error
        if not isinstance(system, System):
            raise ExperimentError(f"the system {entry.name!r}: {entry.value} is no numalab.run.system.System")
        if system.name in found:
            raise ExperimentError(f"two systems are called {system.name!r}")
        found[system.name] = system
    return found


def policies() -> dict[str, Policy]:
    """Return all policies by name: the built-in "none" and those of the systems.

    Raises:
        ExperimentError: two systems offer a policy of the same name.
    """
    found = {NONE.name: NONE}
    for system in systems().values():
        for policy in system.policies:
            if policy.name in found:
                raise ExperimentError(f"system {system.name!r}: there is a policy {policy.name!r} already")
            found[policy.name] = policy
    return found


def owner(policy: str) -> str:
    """Return the name of the system that offers `policy`, "numalab" for the built-in ones."""
    for system in systems().values():
        if any(each.name == policy for each in system.policies):
            return system.name
    return "numalab"


def find_experiment(name: str) -> Path:
    """Return the experiment file that `name` means: a path, or a registered name such as "mitosis/placement".

    Raises:
        UserError: neither; names the nearest registered one.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = {name: path for system in systems().values() for name, path in system.experiments().items()}
    if name in known:
        return known[name]
    raise UserError(
        f"{name}: no such file and no registered experiment{nearest(name, known)}",
        remedy=f"registered: {', '.join(known) or 'none'}; `numalab init FILE.toml` writes a new one",
    )
