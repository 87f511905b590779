"""What this machine has and lacks for the laboratory's work; each finding says how to mend it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numalab.errors import NumalabError
from numalab.kernel import tools
from numalab.paths import cache_dir
from numalab.units import format_size

#: A build tree with debug information, the source, and the results beside them (measured: 5.1 GB).
DISK_NEEDED = 8 << 30
#: Four nodes of 512 MiB, QEMU, and a compiler beside them.
MEMORY_NEEDED = 4 << 30


@dataclass(frozen=True)
class Finding:
    """One check: what was found, what is needed, how to get it; `state` is "ok", "missing" or "note"."""

    check: str
    state: str
    found: str
    needed: str = ""
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


_TOOLS = (
    "qemu-system-x86_64",
    "busybox",
    "gcc",
    "make",
    "flex",
    "bison",
    "bc",
    "pahole",
    "xz",
    "rsync",
    "git",
    "depmod",
)
_USEFUL = ("ccache", "perf", "numactl", "shellcheck")
_PACKAGES = {
    **tools.PACKAGES,
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "perf": "linux-perf",
}


def examine(*, probe: bool = True) -> list[Finding]:
    """Run every check; `probe` includes boots of a small machine (some seconds each)."""
    findings = [_python(), *(_tool(name, "missing") for name in _TOOLS), *(_tool(name, "note") for name in _USEFUL)]
    findings += [_disk(), _memory(), _nodes(), _pmu(), ptrace(), _libvirt()]
    if probe:
        findings += [_kvm(), _probe_boot()]
    return findings


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    state = "ok" if sys.version_info >= (3, 11) else "missing"
    return Finding("python", state, version, "3.11 or newer", "apt-get install python3")


def _tool(name: str, state: str) -> Finding:
    where = tools.which(name)
    needed = "in PATH" if state == "missing" else "useful"
    return Finding(name, "ok" if where else state, where or "-", needed, f"apt-get install {_PACKAGES.get(name, name)}")


def _disk() -> Finding:
    free = shutil.disk_usage(cache_dir()).free
    return Finding(
        "disk",
        "ok" if free >= DISK_NEEDED else "missing",
        f"{format_size(free)} free in {cache_dir()}",
        format_size(DISK_NEEDED),
        "numalab cache prune, or set XDG_CACHE_HOME to a larger disk",
    )


def _memory() -> Finding:
    from numalab.machine.accel import available_memory

    free = available_memory()
    return Finding(
        "memory",
        "ok" if free >= MEMORY_NEEDED else "missing",
        f"{format_size(free)} available",
        format_size(MEMORY_NEEDED),
        "close something, or use smaller nodes (--node-memory)",
    )


def _nodes() -> Finding:
    count = len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))
    text = f"{count} NUMA node{'s' * (count != 1)}"
    if count > 1:
        return Finding("numa", "ok", text, "-", "--mirror-host binds a machine's nodes to them")
    return Finding("numa", "note", text, "two or more for times on hardware", "emulation stands in; counts are exact")


def _pmu() -> Finding:
    count = len(list(Path("/sys/bus/event_source/devices").glob("cpu*")))
    if count:
        return Finding("pmu", "ok", "hardware counters")
    return Finding("pmu", "note", "no hardware counters", "useful", "counters will be NA; use bare metal")


def ptrace(scope: Path = Path("/proc/sys/kernel/yama/ptrace_scope")) -> Finding:
    """Whether the memory of a QEMU can be read: of a process that is no child of ours (admin-guide/LSM/Yama.rst)."""
    needed = "for snapshots: where page tables live is read out of QEMU's memory"
    try:
        _read_a_stranger()
    except PermissionError:
        known = scope.read_text().strip() if scope.exists() else ""
        rule = f"kernel.yama.ptrace_scope is {known}" if known else "no CAP_SYS_PTRACE here"
        fix = "sudo sysctl kernel.yama.ptrace_scope=0 (or be root, with CAP_SYS_PTRACE in a container)"
        return Finding("memory of QEMU", "missing", f"cannot be read: {rule}", needed, fix)
    return Finding("memory of QEMU", "ok", "can be read")


def _read_a_stranger() -> None:
    """Open the memory of a process of ours whose parent is gone, as QEMU's is; tried, because many rules decide it.

    Raises:
        PermissionError: that is not allowed.
    """
    # The reader stands for QEMU: it ends when its input does, whatever happens to us.
    with subprocess.Popen(
        ["/bin/sh", "-c", "exec 3<&0; /bin/cat <&3 >/dev/null & echo $!"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as shell:
        assert shell.stdin and shell.stdout
        stranger = int(shell.stdout.readline())
        shell.wait()
        os.close(os.open(f"/proc/{stranger}/mem", os.O_RDONLY))


def _libvirt() -> Finding:
    from numalab.machine import hypervisor

    try:
        version = hypervisor.connect().getLibVersion()
    except NumalabError as error:
        return Finding("libvirt", "missing", str(error), "qemu:///embed", error.remedy)
    return Finding("libvirt", "ok", f"{version // 1000000}.{version // 1000 % 1000}.{version % 1000}, qemu:///embed")


def _kvm() -> Finding:
    from numalab.machine.accel import kvm_problem

    problem = kvm_problem()
    if problem:
        return Finding("kvm", "note", problem, "for times on hardware", "emulation will be used")
    return Finding("kvm", "ok", "a probe boot succeeded")


def _probe_boot() -> Finding:
    return probe_boot("tcg")


def probe_boot(accel: str, timeout: float = 60.0) -> Finding:
    """Boot the stock kernel on a two-node machine and run one command."""
    from numalab.kernel.images import resolve
    from numalab.machine.session import Machine
    from numalab.machine.topology import uniform

    try:
        with Machine(resolve("stock"), uniform(2, 1, "256M"), accel=accel, boot_timeout=timeout) as machine:
            machine.run(["true"], timeout=timeout, check=True)
            seconds = machine.boot_seconds
    except NumalabError as error:
        return Finding(f"boot ({accel})", "missing", str(error), "an emulated machine boots", error.remedy)
    return Finding(f"boot ({accel})", "ok", f"stock kernel answered after {seconds:.1f} s")


Examiner = Callable[..., list[Finding]]
