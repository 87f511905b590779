"""Which accelerator a machine gets, and what the host can carry.

/dev/kvm may exist, open, create a VM and a vCPU, and still not boot a stock kernel: only a probe boot tells.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from numalab.errors import MissingError, UserError
from numalab.machine.domain import HostBinding
from numalab.machine.topology import Node, Topology
from numalab.paths import cache_dir, write_json
from numalab.units import format_size

ACCELERATORS = ("auto", "kvm", "tcg")
_KVM = Path("/dev/kvm")
_SYSFS_NODES = Path("/sys/devices/system/node")
#: A probe boot that works takes a second or two.
PROBE_SECONDS = 20.0
#: Memory the host needs for QEMU itself and everything else.
_RESERVE = 512 << 20


def choose(wanted: str) -> str:
    """Return "kvm" or "tcg" for `wanted`; "auto" means KVM only after a probe boot has succeeded.

    Raises:
        UserError: unknown accelerator.
        MissingError: KVM was asked for and cannot be used; says why.
    """
    if wanted not in ACCELERATORS:
        raise UserError(f"unknown accelerator {wanted!r}: {', '.join(ACCELERATORS)}")
    if wanted == "tcg":
        return "tcg"
    problem = kvm_problem()
    if wanted == "kvm" and problem:
        raise MissingError(f"KVM cannot be used: {problem}", remedy="use --accel tcg, or mend that")
    return "tcg" if problem else "kvm"


def kvm_problem() -> str:
    """Why KVM cannot be used, "" when it can. A probe's verdict is remembered until the next boot of the host."""
    if not _KVM.exists():
        return "there is no /dev/kvm"
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return "no right to open /dev/kvm (add yourself to the group kvm: sudo usermod -aG kvm $USER)"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    verdict = cache_dir("probe") / f"kvm-{boot_id}.json"
    if not verdict.exists():
        write_json(verdict, {"problem": _probe()})
    return str(json.loads(verdict.read_text())["problem"])


def _probe() -> str:
    """Boot a small machine under KVM, on its own two feet: QEMU by hand, since libvirt may know no KVM here."""
    from numalab.kernel.images import resolve

    qemu = shutil.which("qemu-system-x86_64")
    if not qemu:
        return "there is no qemu-system-x86_64"
    kernel = resolve("stock")
    argv = [
        qemu,
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-m",
        "256M",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
    ]
    argv += ["-serial", "stdio", "-kernel", str(kernel.path), "-append", "console=ttyS0 panic=-1"]
    # Without an initramfs a kernel that works ends in a panic about its root, within a second or two.
    try:
        done = subprocess.run(argv, capture_output=True, timeout=PROBE_SECONDS, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"a probe boot did not finish within {PROBE_SECONDS:.0f} s"
    if b"Unable to mount root fs" in done.stdout or b"VFS: Cannot open root device" in done.stdout:
        return ""
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return "a probe boot failed" + (f": {said[-1]}" if said else "")


def check_memory(topology: Topology) -> None:
    """Raise UserError when the host has not enough free memory for a machine of this shape."""
    available = available_memory()
    if topology.memory + _RESERVE > available:
        raise UserError(
            f"the machine needs {format_size(topology.memory)} of memory, this host has {format_size(available)} free",
            remedy="use fewer or smaller nodes",
        )


def available_memory() -> int:
    """MemAvailable of this host in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise MissingError("/proc/meminfo has no MemAvailable")


def host_topology(sysfs: Path = _SYSFS_NODES, *, paging_levels: int = 4) -> tuple[Topology, tuple[int, ...]]:
    """Return the host's own shape and its node numbers, from sysfs."""
    numbers = sorted(int(path.name[4:]) for path in sysfs.glob("node[0-9]*"))
    if not numbers:
        raise MissingError(f"{sysfs} has no nodes: this host's kernel was built without NUMA")
    nodes, distances = [], []
    for number in numbers:
        base = sysfs / f"node{number}"
        total = next(line for line in (base / "meminfo").read_text().splitlines() if "MemTotal" in line)
        memory = int(total.split()[-2]) * 1024 >> 20 << 20
        nodes.append(Node(len(parse_cpu_list((base / "cpulist").read_text())), memory))
        distances.append(tuple(int(word) for word in (base / "distance").read_text().split()))
    return Topology(tuple(nodes), tuple(distances), paging_levels=paging_levels), tuple(numbers)


def mirrored(node_memory: int, *, visible: bool = True, paging_levels: int = 4, sysfs: Path = _SYSFS_NODES) -> Topology:
    """Return a machine of the host's shape: its nodes, their CPUs and distances, `node_memory` bytes where it has some.

    Raises:
        MissingError: the host has no NUMA nodes to mirror.
    """
    host, _ = host_topology(sysfs)
    nodes = tuple(Node(node.cpus, node_memory if node.memory else 0) for node in host.nodes)
    return Topology(nodes, host.distances, visible, paging_levels)


def bind_to_host(topology: Topology, sysfs: Path = _SYSFS_NODES) -> HostBinding:
    """Return where each guest node and vCPU goes: guest node i on the host's i-th node, strictly.

    Raises:
        UserError: the host has fewer nodes, or fewer CPUs on one of them.
    """
    host, numbers = host_topology(sysfs)
    if len(topology.nodes) > len(host.nodes):
        raise UserError(
            f"the machine has {len(topology.nodes)} nodes, this host {len(host.nodes)}: no binding one to one",
            remedy="leave out --mirror-host, or use fewer nodes",
        )
    cpus: list[int] = []
    for number, node in enumerate(topology.nodes):
        own = parse_cpu_list((sysfs / f"node{numbers[number]}" / "cpulist").read_text())
        if node.cpus > len(own):
            raise UserError(f"node {number} wants {node.cpus} CPUs; node {numbers[number]} of the host has {len(own)}")
        cpus += own[: node.cpus]
    return HostBinding(cells=numbers[: len(topology.nodes)], cpus=tuple(cpus))


def parse_cpu_list(text: str) -> list[int]:
    """Return the numbers that a list such as "0-3,8" names."""
    found: list[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
    return found


def describe(accel: str) -> str:
    """One line for people on what was taken and why."""
    if accel == "kvm":
        return "KVM (a probe boot succeeded)"
    return f"emulation (TCG): {kvm_problem() or 'asked for'}"
