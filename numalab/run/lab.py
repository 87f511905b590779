"""What a run needs of the other rooms, in one place: kernels, machines, workloads, snapshots.

`Lab` is the seam for tests; `default_lab()` is the real one and imports the other rooms when they are used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from numalab.errors import MissingError
from numalab.kernel.image import KernelImage
from numalab.kernel.progress import Lines
from numalab.machine.outcome import Completed, Mark
from numalab.machine.topology import Topology
from numalab.run import system
from numalab.run.policy import Policy


class ProcessLike(Protocol):
    """A command of the guest that was started."""

    pid: int

    def wait(self, timeout: float | None = None) -> Completed:
        """Wait for its end; after a time-out, called again, return what it left."""

    def wait_mark(self, name: str, timeout: float | None = None) -> Mark:
        """Wait until it announces a mark and let it go on from there."""

    def ended(self) -> bool:
        """Whether it has ended, without waiting."""

    def kill(self, signal: int = 9) -> None:
        """Send it a signal."""


class MachineLike(Protocol):
    """A running machine (numalab.machine.session.Machine)."""

    @property
    def accel(self) -> str:
        """ "kvm", "tcg", or "host" for the host itself."""

    @property
    def console(self) -> Path:
        """The log of its console."""

    def start(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        on_mark: Callable[[Mark, Any], None] | None = None,
    ) -> ProcessLike:
        """Start a command."""

    def aside(self) -> AbstractContextManager[None]:
        """Commands of the block are not the next one that something waits for."""

    def run(self, argv: Sequence[str], *, timeout: float | None = None) -> Completed:
        """Run a command to its end."""

    def read_file(self, path: str) -> bytes:
        """Return a file of the guest."""

    def write_file(self, path: str, data: bytes) -> None:
        """Write a file of the guest."""

    def facts(self) -> dict[str, Any]:
        """What this machine is, for provenance."""


class WorkloadLike(Protocol):
    """An entry of the workloads' catalogue."""

    @property
    def name(self) -> str:
        """Of the workload and its program."""

    @property
    def params(self) -> Mapping[str, Any]:
        """Its parameters by name."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What it can report, by name."""

    def argv(self, params: Mapping[str, Any]) -> list[str]:
        """The command of the guest."""

    def samples(self, stdout: bytes, accel: str) -> list[dict[str, Any]]:
        """The samples of its result line as they stand in result files."""


@dataclass(frozen=True)
class MachineRequest:
    """The machine a cell wants; cells that want the same may share one."""

    kernel: KernelImage
    topology: Topology
    accel: str = "auto"
    append: str = ""
    nested: bool = False
    mirror_host: bool = False
    huge_pages: bool = False
    count_instructions: bool = False
    boot_timeout: float = 120.0
    files: Mapping[str, Path] = field(default_factory=dict)
    perf: bool = False


@dataclass(frozen=True)
class Lab:
    """The other rooms.

    Attributes:
        kernel_names: the names `resolve_kernel` knows beside paths.
        resolve_kernel: name → image; MissingError when it has to be built first.
        policies: all registered policies by name.
        workload_names: the names in the catalogue.
        workload: name → entry of the catalogue.
        programs: the static programs of the workloads, guest name → host file.
        open_machine: boots on entry, destroys on exit; the path is the directory of its logs.
        snapshot: (machine, process names, label, archive) → where their page tables lie: writes the
            archive (if there is one to be kept), returns the summary; None when nobody can tell.
        host_memory: bytes of memory this host has in all.
        free_memory: bytes of memory it could give to a new machine.
    """

    kernel_names: Sequence[str]
    resolve_kernel: Callable[[str], KernelImage]
    policies: Callable[[], Mapping[str, Policy]]
    workload_names: Callable[[], Sequence[str]]
    workload: Callable[[str], WorkloadLike]
    programs: Callable[[], Mapping[str, Path]]
    open_machine: Callable[[MachineRequest, Path], AbstractContextManager[Any]]
    snapshot: Callable[[Any, Sequence[str], str, Path], dict[str, Any] | None]
    host_memory: Callable[[], int]
    free_memory: Callable[[], int]


def default_lab(*, download: bool = True) -> Lab:
    """Return the real laboratory; without `download` a kernel that is not here yet is missing."""
    return Lab(
        kernel_names=("stock", "patched", "debug"),
        resolve_kernel=_resolve_kernel if download else _kernel_here,
        policies=system.policies,
        workload_names=_workload_names,
        workload=_workload,
        programs=_programs,
        open_machine=_open_machine,
        snapshot=_snapshot,
        host_memory=host_memory,
        free_memory=_free_memory,
    )


@cache
def _resolve_kernel(name: str) -> KernelImage:
    from numalab.kernel.images import resolve

    return resolve(name, progress=Lines(sys.stderr))


@cache
def _kernel_here(name: str) -> KernelImage:
    from numalab.kernel import images, stock

    if name == stock.STOCK and stock.load() is None:
        raise MissingError("Debian's stock kernel is not downloaded yet", remedy="numalab kernel path --kernel stock")
    return images.resolve(name)


def _workload_names() -> Sequence[str]:
    from workloads import catalogue

    return list(catalogue.names())


def _workload(name: str) -> WorkloadLike:
    from workloads import catalogue

    return catalogue.get(name)


@cache
def _programs() -> Mapping[str, Path]:
    from workloads.build import binaries

    return binaries()


@contextmanager
def _open_machine(request: MachineRequest, log_dir: Path) -> Iterator[Any]:
    from numalab.machine import accel
    from numalab.machine.instructions import check_accel
    from numalab.machine.session import Machine

    chosen = check_accel(request.accel) if request.count_instructions else accel.choose(request.accel)
    machine = Machine(
        request.kernel,
        request.topology,
        accel=chosen,
        append=request.append,
        nested=request.nested,
        mirror_host=request.mirror_host,
        huge_pages=request.huge_pages,
        count_instructions=request.count_instructions,
        extra_files=request.files,
        # Emulated CPUs have no PMU, and the host's /usr in the guest costs time.
        host_programs=("perf",) if request.perf and chosen == "kvm" and _has_perf() else (),
        log_dir=log_dir,
        boot_timeout=request.boot_timeout,
    )
    with machine:
        try:
            yield machine
        finally:
            _detach(machine)


def _detach(machine: Any) -> None:
    """Close the observer's connection, if a snapshot has made one (and only then import it)."""
    if "numalab.measure.take" in sys.modules:
        from numalab.measure.placement import detach

        detach(machine)


def _has_perf() -> bool:
    return any(Path(top, "perf").exists() for top in ("/usr/bin", "/usr/sbin"))


def _snapshot(machine: Any, names: Sequence[str], label: str, archive: Path) -> dict[str, Any]:
    from numalab.measure.placement import save, take

    snapshot = take(machine, names=list(names), label=label)
    save(snapshot, archive)
    return snapshot.to_json()


def _free_memory() -> int:
    from numalab.machine.accel import available_memory

    return available_memory()


def host_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return bytes of memory this host has in all (MemTotal)."""
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise MissingError(f"{meminfo} has no MemTotal")
