"""The catalogue: one entry per workload with its parameters and metrics.

An entry describes the program of the same name in the guest's /bin; a unit test holds it against the program's own
`--help`. Parameters and metrics have the same names here, on the command line and in result lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numalab.errors import UserError, nearest
from workloads.metrics import Metric, Quantity, Sample, read_result
from workloads.params import Param, ParamType


@dataclass(frozen=True)
class Workload:
    """One entry.

    Attributes:
        name: of the workload and its program.
        summary: one line.
        params: by name, in the order of the program's help.
        metrics: by name, the one that matters most first.
        conflicts: parameters of which at most one can be given.
    """

    name: str
    summary: str
    params: Mapping[str, Param]
    metrics: Mapping[str, Metric]
    conflicts: tuple[frozenset[str], ...] = ()

    def argv(self, params: Mapping[str, Any]) -> list[str]:
        """Return the guest's command for `params`; those that are absent or None keep their defaults.

        Raises:
            UserError: an unknown parameter or a value it cannot have; names it and the nearest word.
        """
        words = [self.name]
        for name, value in params.items():
            if name not in self.params:
                near = nearest(name, self.params)
                raise UserError(f"workload {self.name} has no parameter {name!r}{near}")
            if value is None:
                continue
            word = self.params[name].to_word(name, value)
            if word is not None:
                words += [f"--{name}", word] if word else [f"--{name}"]
        for rivals in self.conflicts:
            given = [name for name in self.params if name in rivals and f"--{name}" in words]
            if len(given) > 1:
                raise UserError(f"{' and '.join(given)} exclude each other: give one of them")
        return words

    def parse(self, stdout: bytes) -> list[Sample]:
        """Return the samples of the program's result line.

        Raises:
            ExperimentError: it is absent or malformed.
        """
        return read_result(stdout, self.metrics, program=self.name)

    def samples(self, stdout: bytes, accel: str) -> list[dict[str, Any]]:
        """Return the samples as they stand in result files, each with its kind on a machine run by `accel`.

        Raises:
            ExperimentError: the result line is absent or malformed.
        """
        return [sample.to_json(accel) for sample in self.parse(stdout)]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "summary": self.summary,
            "params": {name: param.to_json() for name, param in self.params.items()},
            "metrics": {name: metric.to_json() for name, metric in self.metrics.items()},
        }


def _count(unit: str, text: str, better: str = "") -> Metric:
    return Metric(Quantity.COUNT, unit, text, better)


def _time(unit: str, text: str, better: str = "") -> Metric:
    return Metric(Quantity.TIME, unit, text, better)


_POLICIES = "first-touch, local, bind:NODES or interleave:NODES"

_COMMON_PARAMS = {
    "threads": Param(ParamType.COUNT, 1, "", "number of threads", least=1, most=4096),
    "cpus": Param(ParamType.CPUS, None, "", "pin the threads to these CPUs, round robin"),
    "memory": Param(ParamType.POLICY, "first-touch", "", f"where data goes: {_POLICIES}"),
    "huge": Param(ParamType.CHOICE, "default", "", "transparent huge pages", choices=("default", "always", "never")),
    "tables": Param(ParamType.POLICY, None, "", f"where page tables go, by the process's policy: {_POLICIES}"),
    "seed": Param(ParamType.COUNT, 1, "", "seed of the random numbers"),
}

_REGION_PARAMS = {
    **_COMMON_PARAMS,
    "init": Param(
        ParamType.CHOICE,
        "parallel",
        "",
        "who touches first: each thread its share, or one thread all",
        choices=("parallel", "single"),
    ),
    "init-cpu": Param(ParamType.COUNT, None, "", "CPU of the one thread; means init = single"),
    "mergeable": Param(
        ParamType.CHOICE,
        "no",
        "",
        "what KSM may merge: nothing, the region, or all anonymous memory",
        choices=("no", "region", "process"),
    ),
}

_INTERVAL = Param(ParamType.SECONDS, None, "s", "a line on progress and placement each so many seconds")

_PHASE_METRICS = {
    "seconds": _time("s", "the measured phase, between the marks ready and done", "lower"),
    "init_seconds": _time("s", "initialisation: the first touch of all memory", "lower"),
    "minor_faults": _count("", "page faults of the measured phase without I/O"),
    "major_faults": _count("", "page faults of the measured phase with I/O"),
}

_REGION_METRICS = {
    **_PHASE_METRICS,
    "sampled_pages_nodeN": _count("", "of up to 1024 data pages, taken from all over, how many lie on node N"),
}

#: What the kernel says of same-page merging; missing where it does not.
_KSM_METRICS = {
    "ksm_pages_shared": _count("", "pages that KSM keeps in the place of others, of the whole machine"),
    "ksm_pages_sharing": _count("", "pages that KSM saves, of the whole machine", "higher"),
    "ksm_numa_copies": _count("", "copies of merged pages on other nodes, of the whole machine"),
    "merged_pages": _count("", "pages of this process that are merged"),
}

GUPS = Workload(
    "gups",
    "random updates of a large table (HPC Challenge GUPS): nearly every update is a TLB miss",
    {
        "size": Param(ParamType.SIZE, "64M", "bytes", "size of the table", least=4096),
        "updates": Param(ParamType.COUNT, "2M", "", "number of updates, all threads together", least=1),
        "verify": Param(ParamType.FLAG, False, "", "undo all updates afterwards and check every word"),
        **_REGION_PARAMS,
    },
    {
        "updates_per_second": _time("1/s", "updates per second of the measured phase", "higher"),
        "updates": _count("", "updates done"),
        "table_bytes": _count("bytes", "size of the table"),
        "errors": _count("", "words that are wrong after undoing all updates; missing without verify", "lower"),
        **_REGION_METRICS,
    },
)

BTREE = Workload(
    "btree",
    "random lookups in an in-memory B+-tree larger than any cache",
    {
        "size": Param(ParamType.SIZE, "64M", "bytes", "size of the tree: as many keys as fit", least=256),
        "keys": Param(ParamType.COUNT, None, "", "number of keys, instead of size", least=1),
        "lookups": Param(ParamType.COUNT, "1M", "", "number of lookups, all threads together", least=1),
        "misses": Param(ParamType.COUNT, 0, "%", "share of lookups for a key that is not there", most=100),
        "settle": Param(
            ParamType.COUNT, 0, "passes", "before the first lookup wait for so many passes of KSM, where it runs"
        ),
        "interval": _INTERVAL,
        **_REGION_PARAMS,
    },
    {
        "lookups_per_second": _time("1/s", "lookups per second of the measured phase", "higher"),
        "lookups": _count("", "lookups done"),
        "found": _count("", "lookups that found their key"),
        "errors": _count("", "lookups with a wrong result", "lower"),
        "keys": _count("", "keys in the tree"),
        "nodes": _count("", "nodes of the tree, 256 bytes each"),
        "depth": _count("", "levels of the tree"),
        "tree_bytes": _count("bytes", "size of the tree"),
        **_REGION_METRICS,
        **_KSM_METRICS,
    },
    conflicts=(frozenset({"size", "keys"}),),
)

_STREAM_KERNELS = ("copy", "scale", "add", "triad")

STREAM = Workload(
    "stream",
    "memory bandwidth by copy, scale, add and triad (STREAM); interference on a node",
    {
        "size": Param(ParamType.SIZE, "96M", "bytes", "size of the three arrays together", least=12288),
        "node": Param(ParamType.COUNT, None, "", "node whose memory to use: short for memory = bind:NODE", most=1023),
        "iterations": Param(ParamType.COUNT, None, "", "rounds of the four kernels; 10 without seconds", least=1),
        "seconds": Param(ParamType.SECONDS, None, "s", "end after the first round past so many seconds"),
        "forever": Param(ParamType.FLAG, False, "", "run until SIGTERM or SIGINT, then print the result"),
        **_REGION_PARAMS,
    },
    {
        "bytes_per_second": _time("bytes/s", "bytes moved per second of the measured phase", "higher"),
        **{
            f"{kernel}_bytes_per_second": _time("bytes/s", f"{kernel}: the best round", "higher")
            for kernel in _STREAM_KERNELS
        },
        "iterations": _count("", "rounds done"),
        "bytes_moved": _count("bytes", "bytes read and written by all rounds"),
        "errors": _count("", "values that are wrong in the end", "lower"),
        **_REGION_METRICS,
    },
    conflicts=(frozenset({"memory", "node"}), frozenset({"forever", "iterations"}), frozenset({"forever", "seconds"})),
)

SAMEPAGE = Workload(
    "samepage",
    "random reads of memory that is equal in every process that runs it, for same-page merging (KSM)",
    {
        "size": Param(ParamType.SIZE, "16M", "bytes", "size of the region", least=4096),
        "same": Param(ParamType.COUNT, 100, "%", "share of the pages that are equal in all processes", most=100),
        "hot": Param(ParamType.COUNT, 100, "%", "share of the pages that are read; with 0 it sleeps", most=100),
        "rest": Param(ParamType.COUNT, 0, "ms", "sleep so long after each 1024 reads", most=3_600_000),
        "passes": Param(
            ParamType.COUNT, None, "", "end when KSM has scanned all memory N times, where it runs", least=1
        ),
        "seconds": Param(ParamType.SECONDS, 5, "s", "end after so many seconds, where it does not, or without passes"),
        "move-to": Param(ParamType.COUNT, None, "", "go to this CPU in the midst of it, with move-after", most=4095),
        "move-after": Param(ParamType.COUNT, None, "", "when KSM has scanned all memory N times", least=1),
        "forever": Param(ParamType.FLAG, False, "", "run until SIGTERM or SIGINT, then print the result"),
        "interval": _INTERVAL,
        **_REGION_PARAMS,
    },
    {
        "reads_per_second": _time("1/s", "reads per second of the measured phase", "higher"),
        "local_share": _count(
            "share", "of the pages that are equal everywhere, those on the node it runs on", "higher"
        ),
        "reads": _count("", "reads done"),
        "errors": _count("", "reads, and words in the end, with a wrong value", "lower"),
        "pages": _count("", "pages of the region"),
        "same_pages": _count("", "those that are equal in all processes"),
        "same_pages_nodeN": _count("", "of these, how many lie on node N"),
        "own_pages_nodeN": _count("", "of the others, how many lie on node N"),
        "local_pages": _count("", "of those that are equal, how many lie on the node it runs on"),
        "remote_pages": _count("", "and how many elsewhere"),
        "passes": _count("", "times that KSM has scanned all memory meanwhile"),
        "ksm_pages_scanned": _count("", "pages that KSM has scanned meanwhile, of the whole machine"),
        "follow_seconds": _time("s", "after it has moved, until 95 % of the equal pages are on its node", "lower"),
        "follow_passes": _count("", "and how many times KSM has scanned all memory meanwhile", "lower"),
        "numa_local": _count("", "accesses to merged pages on its node that the kernel has sampled"),
        "numa_remote": _count("", "accesses to merged pages elsewhere that the kernel has sampled"),
        **_KSM_METRICS,
        **_PHASE_METRICS,
    },
    conflicts=(frozenset({"forever", "passes"}), frozenset({"forever", "seconds"})),
)

_MEMOPS = {
    "mmap": "mmap, populated",
    "mprotect": "mprotect from read-write to read-only",
    "munmap": "munmap of a populated region",
    "fault": "touching every page of a new region",
    "fork": "fork with the region mapped, in the parent",
    "forkexit": "fork with the region mapped, the child's exit, and waiting for it",
}


_COUNTED = {
    "low": "mean of the lower half: without what interrupts add",
    "min": "fewest",
    "median": "median",
    "mean": "mean",
    "p99": "99th percentile",
    "max": "most",
    "per_page_min": "fewest, for each page of the region",
    "per_page_median": "median, for each page of the region",
}


def _memops_metrics() -> dict[str, Metric]:
    found = {"pages": _count("", "4K pages of a region")}
    for name, text in _MEMOPS.items():
        found[f"{name}_ns_mean"] = _time("ns", f"{text}: mean", "lower")
        found[f"{name}_ns_min"] = _time("ns", f"{text}: fastest", "lower")
        found[f"{name}_ns_median"] = _time("ns", f"{text}: median", "lower")
        found[f"{name}_ns_p99"] = _time("ns", f"{text}: 99th percentile", "lower")
        found[f"{name}_ns_max"] = _time("ns", f"{text}: slowest", "lower")
        found[f"{name}_count"] = _count("", f"{text}: how often")
        each = f"{text}: instructions with `count`"
        for column, words in _COUNTED.items():
            found[f"{name}_instructions_{column}"] = _count("instructions", f"{each}, {words}", "lower")
    return found


MEMOPS = Workload(
    "memops",
    "cost of mmap, mprotect, munmap, page faults and fork (Mitosis, table 5)",
    {
        "size": Param(ParamType.SIZE, "8M", "bytes", "size of a region, whole pages", least=1, most=1 << 40),
        "ops": Param(ParamType.SET, "mmap,mprotect,munmap", "", "what to measure", choices=tuple(_MEMOPS)),
        "mapping": Param(ParamType.CHOICE, "private", "", "kind of mapping", choices=("private", "shared")),
        "iterations": Param(
            ParamType.COUNT, 100, "", "times each thread does each operation", least=1, most=10_000_000
        ),
        "batch": Param(ParamType.COUNT, 1, "", "regions at once", least=1, most=4096),
        "mark-ops": Param(ParamType.FLAG, False, "", "marks OP-begin and OP-end around each operation of a batch"),
        "count": Param(ParamType.FLAG, False, "", "instructions, not nanoseconds, on a machine that counts them"),
        "touchers": Param(
            ParamType.CHOICE,
            "none",
            "",
            "with count: who touches each region before an operation: nobody, its CPU, or one CPU of each node",
            choices=("none", "one", "all"),
        ),
        **_COMMON_PARAMS,
    },
    {**_memops_metrics(), **_PHASE_METRICS},
    conflicts=(frozenset({"count", "mark-ops"}),),
)

_WAYS = {
    "merge": "stretches made equal to those of others",
    "unmerge": "stretches written to, or taken apart",
    "fork": "children that write to what they share with their parent, and end or are killed",
    "exit": "processes that ended, or were killed, and were started anew",
    "migrate": "stretches moved to a node, or processes to a CPU",
    "swap": "times that reclaim was asked for",
}

CHURN = Workload(
    "churn",
    "processes that change equal memory in six ways at once, and check it all the time, for same-page merging (KSM)",
    {
        "size": Param(ParamType.SIZE, "4M", "bytes", "size of the region of each process", least=65536),
        "processes": Param(ParamType.COUNT, 4, "", "processes, each with a region", least=1, most=256),
        "ways": Param(ParamType.SET, ",".join(_WAYS), "", "what they do to their memory", choices=tuple(_WAYS)),
        "seconds": Param(ParamType.SECONDS, 5, "s", "end after so many seconds"),
        "quiet": Param(ParamType.SECONDS, None, "s", "stand still at the mark `quiet` each so many seconds"),
        "rest": Param(ParamType.COUNT, 0, "ms", "sleep so long after each step", most=3_600_000),
        **_REGION_PARAMS,
    },
    {
        "checked_pages": _count("", "pages whose every word was found right"),
        **{f"{name}_count": _count("", text) for name, text in _WAYS.items()},
        "swapped_pages": _count("", "pages that the machine has written to swap meanwhile"),
        **_KSM_METRICS,
        **_PHASE_METRICS,
    },
)

_ALL = {workload.name: workload for workload in (GUPS, BTREE, STREAM, MEMOPS, SAMEPAGE, CHURN)}


def names() -> list[str]:
    """Return the names of all workloads."""
    return list(_ALL)


def get(name: str) -> Workload:
    """Return a workload.

    Raises:
        UserError: there is none of that name; names the nearest.
    """
    if name not in _ALL:
        raise UserError(f"unknown workload {name!r}{nearest(name, _ALL)}", remedy="numalab workloads list")
    return _ALL[name]


def samples(stdout: bytes, accel: str, *, name: str | None = None) -> list[dict[str, Any]]:
    """Return the samples in a workload's output as they stand in result files; see `Workload.samples`.

    Without `name` the metrics of all workloads are accepted.

    Raises:
        ExperimentError: the result line is absent or malformed.
    """
    if name:
        return get(name).samples(stdout, accel)
    known = {metric: about for workload in _ALL.values() for metric, about in workload.metrics.items()}
    return [sample.to_json(accel) for sample in read_result(stdout, known, program="the workload")]
