"""The host itself in the place of a machine: the same calls, on this very kernel, for real NUMA servers.

    with HostMachine(this_host(), programs, log_dir) as machine:
        print(machine.run(["uname", "-r"]).stdout)

Commands are children of this process, each in a session of its own; none outlives the `with` block. Writing knobs needs
root, and what is written is this machine's: whoever changes something puts it back (`numalab.run.policy`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from numalab.errors import MissingError
from numalab.machine import hypervisor
from numalab.machine.accel import host_topology, parse_cpu_list
from numalab.machine.host_process import HostProcess
from numalab.machine.late import Action, LateActions
from numalab.machine.outcome import Completed, GuestFileError, Mark
from numalab.machine.topology import Topology

#: What stands for the accelerator: there is none between a program and the hardware.
ACCEL = "host"
_SYSFS = Path("/sys/devices/system/node")
_CPUINFO = Path("/proc/cpuinfo")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def this_host(sysfs: Path = _SYSFS, cpuinfo: Path = _CPUINFO) -> Topology:
    """Return the shape of this machine, with the numbers its kernel gives to CPUs.

    Raises:
        MissingError: a kernel without NUMA, or nodes that are not numbered from 0 without a gap.
    """
    shape, numbers = host_topology(sysfs, paging_levels=5 if "la57" in _flags(cpuinfo) else 4)
    if numbers != tuple(range(len(numbers))):
        said = ", ".join(map(str, numbers))
        raise MissingError(
            f"the nodes of this host are numbered {said}: experiments take nodes from 0 without a gap",
            remedy="boot with all nodes online, or run the experiment in a machine (without --host)",
        )
    cpus = tuple(tuple(parse_cpu_list((sysfs / f"node{number}" / "cpulist").read_text())) for number in numbers)
    return replace(shape, cpu_numbers=cpus)


def virtual(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether this host is itself a virtual machine, as its processor says."""
    return "hypervisor" in _flags(cpuinfo)


def _flags(cpuinfo: Path) -> set[str]:
    lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
    return next((set(value.split()) for key, _, value in lines if key.strip() == "flags"), set())


class HostMachine:
    """This host, with the calls of `numalab.machine.session.Machine` that an experiment makes."""

    accel = ACCEL

    def __init__(self, topology: Topology, programs: Mapping[str, Path], log_dir: Path) -> None:
        """Take `programs` (path in a guest, such as "/bin/gups" → file) into the search path of commands."""
        self.topology = topology
        # Where the next start removes what a killed one has left.
        self.scratch = Path(tempfile.mkdtemp(prefix="host-", dir=hypervisor.home()))
        self._processes: list[HostProcess] = []
        self._late = LateActions()
        own = self.scratch / "bin"
        own.mkdir()
        for name, path in programs.items():
            (own / Path(name).name).symlink_to(path.resolve())
        self.path = f"{own}:{_PATH}"
        self._log = _KernelLog(log_dir / "console.log")

    def __enter__(self) -> HostMachine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what still runs and remove what was made; safe to call twice."""
        for process in self._processes:
            process.close()
        self._processes.clear()
        self._log.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    @property
    def console(self) -> Path:
        """The kernel's log since this object was made; stays empty where we may not read it."""
        return self._log.drained()

    def start(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        on_mark: Callable[[Mark, Any], None] | None = None,
    ) -> HostProcess:
        """Start a command and return at once; see `numalab.machine.session.Machine.run`.

        Raises:
            GuestFileError: the program could not be started.
        """
        clean = {"PATH": self.path, "HOME": str(self.scratch), "LC_ALL": "C", **(env or {})}
        serve, known_as = self._late.serving(on_mark)
        process = HostProcess(self, argv, stdin=stdin, env=clean, cwd=cwd, on_mark=serve)
        known_as(process.pid)
        self._processes.append(process)
        return process

    def at_mark(self, name: str, action: Action) -> contextlib.AbstractContextManager[None]:
        """Do something to the next command when it announces the mark `name`; see `LateActions`."""
        return self._late.at_mark(name, action)

    def aside(self) -> contextlib.AbstractContextManager[None]:
        """Commands of the block are not the next one that something waits for; see `LateActions`."""
        return self._late.aside()

    def run(self, argv: Sequence[str], *, timeout: float | None = None, **more: Any) -> Completed:
        """Run a command to its end.

        Raises:
            CommandTimeoutError: it took longer than `timeout` seconds and was killed.
            GuestFileError: it could not be started.
        """
        return self.start(argv, **more).wait(timeout)

    def read_file(self, path: str) -> bytes:
        """Return the content of a file; GuestFileError when it cannot be read."""
        with _guest_errors(path):
            return Path(path).read_bytes()

    def write_file(self, path: str, data: bytes) -> None:
        """Write a file in one write(2), as proc and sysfs want it; GuestFileError when it cannot be written."""
        with _guest_errors(path):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                os.write(handle, data)
            finally:
                os.close(handle)

    def processes(self, name: str) -> list[int]:
        """Return the process ids, ascending, of what we have started whose name (comm) is `name`."""
        sessions = {process.pid for process in self._processes}
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, ValueError):
                    comm, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
                    if comm == name and int(rest.split()[3]) in sessions:
                        found.append(int(entry.name))
        return sorted(found)

    def facts(self) -> dict[str, Any]:
        """What this machine is, for provenance: plain JSON values."""
        return {
            "accel": self.accel,
            "topology": self.topology.to_json(),
            "cmdline": Path("/proc/cmdline").read_text().strip(),
            "virtual": virtual(),
            "boot_seconds": None,
        }


@contextlib.contextmanager
def _guest_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise GuestFileError(path, error.errno or 0) from error


class _KernelLog:
    """Copies /dev/kmsg (Documentation/ABI/testing/dev-kmsg) into a file, from now on."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
        self._file = file
        self._handle: int | None = None
        with contextlib.suppress(OSError):  # dmesg_restrict, or a container
            self._handle = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._handle, 0, os.SEEK_END)

    def drained(self) -> Path:
        """The file, with all that the kernel has said until now."""
        if self._handle is not None:
            with self._file.open("ab") as out:
                while (record := self._record()) is not None:
                    out.write(record)
        return self._file

    def _record(self) -> bytes | None:
        """The next message as the console would show it; b"" for one that was lost; None when there is none."""
        assert self._handle is not None
        try:
            head, _, text = os.read(self._handle, 8192).partition(b";")
        except BrokenPipeError:  # overwritten before we came
            return b""
        except OSError:
            return None
        stamp = head.split(b",")[2:3] or [b"0"]
        seconds = int(stamp[0]) / 1e6
        return b"[%12.6f] %s\n" % (seconds, text.partition(b"\n")[0])

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
