"""Counting: memops in machines that count instructions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mitosis.cost.scenarios import MAPPINGS, MOST_WITH_ALL, OPS, Count
from numalab.errors import MissingError, nearest
from numalab.kernel.image import KernelImage
from numalab.machine.topology import uniform
from numalab.run import system
from numalab.run.counting import FACTS, STEADY, depends_on
from numalab.run.kept import Kept
from numalab.run.policy import Policy, applied

#: Four nodes of one CPU. A region of 512M fits into one node's memory with room to spare, so that no operation meets
#: a full node and what the kernel does about it.
TOPOLOGY = uniform(4, 1, "1G")
#: Seconds of wall time one run of memops may take; with 512M it is half a minute when the host has nothing else to do.
TIMEOUT = 1800.0


def find_policy(name: str) -> Policy:
    """Return a policy for the machines of this module.

    Raises:
        MissingError: no system has registered it.
    """
    known = system.policies()
    if name not in known:
        raise MissingError(f"there is no policy {name!r}{nearest(name, known)}")
    return known[name].bind({}, TOPOLOGY)


def counts_on(
    kernel: KernelImage,
    policy: Policy,
    touchers: str,
    sizes: Mapping[str, int],
    *,
    log_dir: Path,
    kept: Kept,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[list[Count], dict[str, Any]]:
    """Count all operations on `kernel` under a bound `policy`; return the counts and the machine's facts.

    `sizes` is the size of a region → how often each operation is counted. What is in `kept` is not counted again, and
    what is counted is put there at once; a machine is booted when something is missing.

    Raises:
        ExperimentError, MachineLostError: memops failed (a page held something wrong, say), or the machine was lost.
    """
    from numalab.machine.session import Machine
    from workloads import catalogue
    from workloads.build import binaries

    memops = catalogue.get("memops")
    wanted = [
        {
            "size": size,
            "mapping": mapping,
            "ops": OPS,
            "iterations": min(repeats, MOST_WITH_ALL) if touchers == "all" else repeats,
            "count": True,
            "touchers": touchers,
            "cpus": "0",
            "huge": "never",
            **policy.options,
        }
        for size, repeats in sizes.items()
        for mapping in MAPPINGS
    ]
    files = {f"/bin/{name}": path for name, path in binaries().items()}
    knobs = (*STEADY, *policy.knobs)
    under = {**depends_on(kernel, TOPOLOGY, knobs, memops=files["/bin/memops"]), "policy": policy.name}

    def key(params: Mapping[str, Any]) -> dict[str, Any]:
        return {**under, "argv": [*policy.wrap, *memops.argv(params)]}

    runs = [kept.counted(key(params), "counts", lambda each: Count(**each)) for params in wanted]
    if None in runs:
        with Machine(kernel, TOPOLOGY, count_instructions=True, extra_files=files, log_dir=log_dir) as machine:
            facts = machine.facts()
            with applied(machine, replace(policy, knobs=knobs)):
                for at, params in enumerate(wanted):
                    if runs[at]:
                        continue
                    say(f"{kernel.name}: {policy.name}, {params['size']} {params['mapping']}")
                    done = machine.run([*policy.wrap, *memops.argv(params)], timeout=TIMEOUT, check=True)
                    values = {sample.metric: sample.value for sample in memops.parse(done.stdout)}
                    counts = counts_in(values, str(params["size"]), str(params["mapping"]))
                    told = {name: facts[name] for name in FACTS} | {"complaints": machine.complaints}
                    runs[at] = (counts, told)
                    kept.put(key(params), {"counts": [vars(count) for count in counts], "facts": told})
    done_runs = [run for run in runs if run]
    together: dict[str, Any] = dict(done_runs[-1][1])
    together["complaints"] = list(dict.fromkeys(line for _, told in done_runs for line in told["complaints"]))
    return [count for counts, _ in done_runs for count in counts], together


def counts_in(values: Mapping[str, float | None], size: str, mapping: str) -> list[Count]:
    """Return the counts in the metrics of one run of memops."""

    def whole(metric: str) -> int:
        return int(values[metric] or 0)

    return [
        Count(
            op,
            size,
            mapping,
            pages=whole("pages"),
            repeats=whole(f"{op}_count"),
            low=float(values[f"{op}_instructions_low"] or 0),
            least=whole(f"{op}_instructions_min"),
            median=whole(f"{op}_instructions_median"),
        )
        for op in OPS
        if f"{op}_count" in values
    ]
