"""Counting instructions of two kernels: a steady machine, what a count depends on, whether a ratio says anything."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numalab.kernel.image import KernelImage
from numalab.machine.topology import Topology
from numalab.run.policy import NO_BALANCING, Knob

#: A kernel without patches of the same source, configuration and compiler: only the patches differ.
UNPATCHED = "patched:none"
#: What is told of a machine beside the counts.
FACTS = ("qemu_version", "cmdline", "topology")

#: Set under every policy. NUMA balancing has faults of its own. The kernel sizes each CPU's list of free pages by what
#: it has seen lately: a fixed size of it. And what munmap frees after an RCU grace period (page tables, nodes of the
#: page cache) is freed inside munmap when that period happens to end early, 0.5 % of its instructions with 512M: half a
#: second (125 jiffies) until CPUs that are idle are asked, and no period ends before the operation. Where a program's
#: stack and libraries lie decides how many page tables it has, and with that what a fork takes: always at one place.
STEADY = (
    NO_BALANCING,
    Knob("/proc/sys/vm/percpu_pagelist_high_fraction", "8"),
    Knob("/sys/module/rcutree/parameters/jiffies_till_first_fqs", "125"),
    Knob("/proc/sys/kernel/randomize_va_space", "0"),
)


def depends_on(kernel: KernelImage, topology: Topology, knobs: Iterable[Knob], **programs: Path) -> dict[str, Any]:
    """What a count depends on beside what is run; `programs` by name. Not QEMU's version (docs/instructions.md)."""
    return {
        "kernel": kernel.build_id or str(kernel.path),
        "topology": topology.to_json(),
        "knobs": [[knob.path, knob.value] for knob in knobs],
        **{name: hashlib.sha256(program.read_bytes()).hexdigest() for name, program in programs.items()},
    }


def differences(kernel: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """Return why two kernels do not differ in their patches alone, from their provenance; empty: they do not.

    A ratio to such a kernel says nothing of the patches: Debian's own has other options, which alone make mprotect half
    as dear again.
    """
    told = (
        ("flavour", kernel.get("flavour"), base.get("flavour")),
        ("source", _source(kernel), _source(base)),
        ("compiler", kernel.get("compiler"), base.get("compiler")),
    )
    return [
        f"{what}: {mine or 'unknown'} and {its or 'unknown'}" for what, mine, its in told if not mine or mine != its
    ]


def _source(provenance: Mapping[str, Any]) -> str | None:
    source = provenance.get("source")
    return str(source["sha256"])[:16] if source else None
