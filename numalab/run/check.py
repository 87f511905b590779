"""Whether what an experiment names exists and fits together: policies, workloads, metrics, the host's memory.

Complaints are noted with the file's key, all of them, before anything is booted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from numalab.errors import NumalabError, UserError, nearest
from numalab.kernel.running import RUNNING
from numalab.machine.topology import Topology
from numalab.measure.perf import argv_prefix
from numalab.results import PLACEMENT_METRICS, PLACEMENT_METRICS_BY_NODE
from numalab.run import instances, interference, on_host, spec
from numalab.run.lab import Lab, WorkloadLike
from numalab.run.policy import Policy
from numalab.run.reader import Problems
from numalab.run.spec import Experiment, Variant
from numalab.units import format_size

#: Memory a machine costs its host beyond the guest's own.
MACHINE_OVERHEAD = 512 << 20


def load(path: Path, lab: Lab, *, host: bool = False) -> Experiment:
    """Return the experiment in `path`, checked; with `host` as one for the host itself.

    Raises:
        UserError: everything that is wrong with it, one line each, naming file and key.
        MissingError: it is for the host itself, which lacks the rights or the nodes.
    """
    problems = Problems(str(path))
    experiment = spec.read(path, problems, host=host)
    lab = on_host.lab_for(experiment, lab)
    _machine(experiment, problems)
    _kernels(experiment, lab, problems)
    policies = _policies(experiment, lab, problems)
    workloads = _workloads(experiment, lab, problems)
    _interferences(experiment, lab, problems)
    for policy, workload in _pairs(experiment):
        if policy.name in policies and workload.name in workloads:
            _options(policies[policy.name], workload, workloads[workload.name], problems)
            _instances(experiment, lab, policy, workload, problems)
    _metrics(experiment, workloads, problems)
    _events(experiment, problems)
    _memory(experiment, lab, problems)
    problems.raise_any()
    if experiment.running.machine == spec.HOST:
        on_host.require_rights(policies)
    return experiment


def _machine(experiment: Experiment, problems: Problems) -> None:
    """Whether an experiment for the host says nothing about machines."""
    if experiment.running.machine != spec.HOST:
        return
    for key in on_host.not_for_the_host(experiment.running):
        problems.add(f"run.{key}", 'is about machines that are booted; it goes not with machine = "host"')
    for number, name in enumerate(experiment.kernels):
        if name != RUNNING:
            problems.add(
                f"matrix.kernel[{number}]", f"{name!r}: the kernel of the host is the one that runs, {RUNNING!r}"
            )
    for number, name in enumerate(experiment.topologies):
        if name != spec.HOST:
            problems.add(f"matrix.topology[{number}]", f"{name!r}: this host has one shape, called {spec.HOST!r}")


def merged_params(workload: Variant, policy: Policy) -> dict[str, object]:
    """Return the parameters a workload is given under a bound policy: the file's, and the policy's options."""
    return {**workload.params, **policy.options}


def _kernels(experiment: Experiment, lab: Lab, problems: Problems) -> None:
    for number, name in enumerate(experiment.kernels):
        # Beside the names there are "patched:SETS", the id of a build, and paths.
        known = experiment.running.machine == spec.HOST or (
            name.split(":", maxsplit=1)[0] in lab.kernel_names or "/" in name or re.fullmatch("[0-9a-f]{6,16}", name)
        )
        if not known and not Path(name).exists():
            near = nearest(name, lab.kernel_names)
            names = ", ".join(lab.kernel_names)
            problems.add(f"matrix.kernel[{number}]", f"unknown kernel {name!r}{near} (kernels: {names}, or a path)")


def _policies(experiment: Experiment, lab: Lab, problems: Problems) -> dict[str, Policy]:
    """The policies of the matrix by label, as far as they are good; bound to the first topology they fit."""
    known = lab.policies()
    found: dict[str, Policy] = {}
    for number, variant in enumerate(experiment.policies):
        if variant.base not in known:
            where = f"{variant.key}.policy" if variant.key else f"matrix.policy[{number}]"
            problems.add(where, f"unknown policy {variant.base!r}{nearest(variant.base, known)}")
            continue
        policy = known[variant.base]
        wrong = policy.problems(variant.params)
        for key, complaint in wrong:
            problems.add(f"{variant.key}.{key}", complaint)
        if wrong:
            continue
        for name, topology in _topologies_of(experiment, {"policy": variant.name}):
            try:
                bound = policy.bind(variant.params, topology)
                interference.loads(interference.NONE, bound, topology, lab)
                found.setdefault(variant.name, bound)
            except UserError as error:
                where = variant.key or f"matrix.policy[{number}]"
                problems.add(where, f"policy {variant.name!r} on topology {name!r}: {error}")
    return found


def _workloads(experiment: Experiment, lab: Lab, problems: Problems) -> dict[str, WorkloadLike]:
    """The workloads of the matrix by label, as far as they are good."""
    names = list(lab.workload_names())
    found: dict[str, WorkloadLike] = {}
    for number, variant in enumerate(experiment.workloads):
        if variant.base not in names:
            where = f"{variant.key}.workload" if variant.key else f"matrix.workload[{number}]"
            problems.add(where, f"unknown workload {variant.base!r}{nearest(variant.base, names)}")
            continue
        workload = lab.workload(variant.base)
        before = len(problems.found)
        for key in variant.params:
            if key not in workload.params:
                problems.add(f"{variant.key}.{key}", f"unknown parameter{nearest(key, workload.params)}")
        if len(problems.found) == before:
            try:
                workload.argv(dict(variant.params))
            except NumalabError as error:
                problems.add(variant.key or f"matrix.workload[{number}]", str(error))
        if len(problems.found) == before:
            found[variant.name] = workload
    return found


def _interferences(experiment: Experiment, lab: Lab, problems: Problems) -> None:
    """Whether the programs beside exist, run until they are told to stop, and fit the machines they are used on."""
    names = list(lab.workload_names())
    endless = [name for name in names if interference.ENDLESS in lab.workload(name).params]
    for each in experiment.interferences:
        if not each.nodes:
            continue
        if each.workload not in names:
            problems.add(f"{each.key}.workload", f"unknown workload {each.workload!r}{nearest(each.workload, names)}")
            continue
        if each.workload not in endless:
            problems.add(
                f"{each.key}.workload",
                f"{each.workload!r} ends by itself; what can run beside a program: {', '.join(endless)}",
            )
            continue
        for name, topology in _topologies_of(experiment, {"interference": each.name}):
            try:
                interference.bind(lab.workload(each.workload), each.nodes, each.params, topology)
            except NumalabError as error:
                problems.add(each.key, f"on topology {name!r}: {error}")


def _options(policy: Policy, variant: Variant, workload: WorkloadLike, problems: Problems) -> None:
    """Whether a policy's options for the workload are there, fit, and are not set by the file as well."""
    before = len(problems.found)
    for option, value in policy.options.items():
        if option not in workload.params:
            problems.add(
                f"matrix.workload ({variant.name})",
                f"policy {policy.name!r} sets the option {option!r}, which workload {workload.name!r} does not have; "
                "exclude the pair, or choose another policy",
            )
        elif option in variant.params:
            problems.add(
                f"{variant.key}.{option}", f"policy {policy.name!r} sets {option!r} too (to {value!r}); leave one out"
            )
    if len(problems.found) == before:
        try:
            workload.argv(merged_params(variant, policy))
        except NumalabError as error:
            problems.add(f"matrix.workload ({variant.name})", f"under policy {policy.name!r}: {error}")


def _instances(experiment: Experiment, lab: Lab, policy: Variant, workload: Variant, problems: Problems) -> None:
    """Whether a workload's instances fit the machines and the policy they run on and under."""
    if not workload.instances:
        return
    for name, topology in _topologies_of(experiment, {"policy": policy.name, "workload": workload.name}):
        try:
            bound = lab.policies()[policy.base].bind(policy.params, topology)
            given = merged_params(workload, bound)
            instances.place(workload.instances, lab.workload(workload.base), given, bound, topology)
        except NumalabError as error:
            problems.add(f"{workload.key}.instances", f"under policy {policy.name!r} on topology {name!r}: {error}")


def _metrics(experiment: Experiment, workloads: dict[str, WorkloadLike], problems: Problems) -> None:
    known = sorted({metric for workload in workloads.values() for metric in workload.metrics})
    # Where there are instances, a metric may have the number of one behind its name.
    most = max((len(variant.instances.each) for variant in experiment.workloads), default=0)
    known += [f"{metric}_instance{number}" for metric in known for number in range(most)]
    placed = _placement_metrics(experiment)
    for number, metric in enumerate(experiment.measure.metrics):
        if metric not in (*known, *placed) and len(workloads) == len(experiment.workloads):
            problems.add(
                f"measure.metrics[{number}]",
                f"unknown metric {metric!r}{nearest(metric, [*known, *placed])} (metrics: {', '.join(known)})",
            )


def _placement_metrics(experiment: Experiment) -> list[str]:
    """Those of the snapshots that the experiment takes."""
    nodes = range(max((len(shape.nodes) for shape in experiment.topologies.values()), default=0))
    names = [*PLACEMENT_METRICS, *(f"{name}:node{node}" for name in PLACEMENT_METRICS_BY_NODE for node in nodes)]
    return [f"{mark}:{name}" for mark in experiment.measure.snapshots for name in names]


def _events(experiment: Experiment, problems: Problems) -> None:
    for number, event in enumerate(experiment.measure.perf):
        try:
            argv_prefix("", [event])
        except UserError as error:
            problems.add(f"measure.perf[{number}]", str(error))


def _memory(experiment: Experiment, lab: Lab, problems: Problems) -> None:
    if experiment.running.machine == spec.HOST:
        return
    host = lab.host_memory()
    for name, topology in experiment.topologies.items():
        if topology.memory + MACHINE_OVERHEAD > host:
            problems.add(
                f"topologies.{name}",
                f"its nodes have {format_size(topology.memory)} of memory in all (and QEMU takes up to "
                f"{format_size(MACHINE_OVERHEAD)}); this host has {format_size(host)}",
            )


def _pairs(experiment: Experiment) -> Iterator[tuple[Variant, Variant]]:
    """The pairs of policy and workload of which at least one point is not excluded."""
    for policy in experiment.policies:
        for workload in experiment.workloads:
            axes = {"policy": policy.name, "workload": workload.name}
            if any(True for _ in _kept(experiment, axes)):
                yield policy, workload


def _topologies_of(experiment: Experiment, axes: dict[str, str]) -> Iterator[tuple[str, Topology]]:
    """The topologies on which a value of an axis, such as a policy, is used."""
    kept = {point["topology"] for point in _kept(experiment, axes)}
    for name, topology in experiment.topologies.items():
        if name in kept:
            yield name, topology


def _kept(experiment: Experiment, fixed: dict[str, str]) -> Iterator[dict[str, str]]:
    for point in experiment.kept():
        if all(point[axis] == name for axis, name in fixed.items()):
            yield point
