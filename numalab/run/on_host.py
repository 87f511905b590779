"""Experiments on this very host: the running kernel, no machine booted, everything measured on hardware.

The same cells, policies, workloads and results; in the place of a machine stands `numalab.machine.host`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from numalab.errors import ExperimentError, MissingError, UserError
from numalab.kernel.image import KernelImage
from numalab.kernel.running import RUNNING
from numalab.machine.outcome import GuestFileError
from numalab.run.lab import Lab, MachineRequest
from numalab.run.policy import Policy
from numalab.run.spec import HOST, Experiment, Running

#: The keys of `[run]` that mean something without a machine.
_KEPT = ("machine", "timeout", "boot_timeout")


def lab_for(experiment: Experiment, lab: Lab) -> Lab:
    """Return the laboratory an experiment runs in: `lab`, or this host in the place of its machines."""
    if experiment.running.machine != HOST:
        return lab
    return replace(
        lab, kernel_names=(RUNNING,), resolve_kernel=_running, open_machine=_open_host, snapshot=_kernels_account
    )


def not_for_the_host(running: Running) -> list[str]:
    """Return the keys of `[run]` that were set and mean nothing without a machine."""
    given = {each.name: getattr(running, each.name) for each in fields(running) if each.name not in _KEPT}
    return [key for key, value in given.items() if value != getattr(Running, key)]


def require_rights(policies: Mapping[str, Policy], *, root: bool | None = None) -> None:
    """Raise MissingError when a policy would have to write a knob of this kernel and we are not root."""
    if os.geteuid() == 0 if root is None else root:
        return
    for name, policy in policies.items():
        for knob in policy.knobs:
            if not knob.dispensable or Path(knob.path).exists():
                raise MissingError(
                    f"policy {name!r} writes {knob.path}: on the host itself that takes root",
                    remedy="sudo, or --only policy=none (the policy that touches no knob)",
                )


@cache
def _running(name: str) -> KernelImage:
    from numalab.kernel.running import running

    if name != RUNNING:
        raise UserError(f"kernel {name!r}: on the host itself it is the one that runs, {RUNNING!r}")
    return running()


@contextmanager
def _open_host(request: MachineRequest, log_dir: Path) -> Iterator[Any]:
    from numalab.machine.host import HostMachine

    with HostMachine(request.topology, request.files, log_dir) as machine:
        yield machine


def _kernels_account(machine: Any, names: Sequence[str], label: str, _archive: Path) -> dict[str, Any] | None:
    """The kernel's own account of where page tables live; None when this kernel keeps none."""
    from numalab.measure import numa_pgtables
    from numalab.measure.from_kernel import Told, summary

    told = []
    for name in names:
        for pid in machine.processes(name):
            with suppress(GuestFileError):
                told.append(Told(pid, name, numa_pgtables.read(machine, pid)))
    if not told and Path("/proc/self/numa_pgtables").exists():
        raise ExperimentError(f"no process called {' or '.join(names)} is left to look at")
    return summary(told, machine.topology, label=label) if told else None
