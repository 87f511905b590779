"""A running machine and the commands in it.

    with Machine(kernel, uniform(nodes=4)) as machine:
        print(machine.run(["uname", "-r"]).stdout)

Every way a machine can end has an exception (numalab/machine/outcome.py).
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numalab.errors import MissingError, UserError
from numalab.kernel.image import KernelImage
from numalab.machine import accel as accelerators
from numalab.machine import channel as ch
from numalab.machine import console, domain, emulator, hypervisor, instructions, rootfs
from numalab.machine.commands import Commands, OnMark
from numalab.machine.outcome import (
    BootFailureError,
    GuestPanicError,
    QemuDiedError,
)
from numalab.machine.topology import Topology

#: Seconds without a heartbeat after which the guest counts as hung. The first process is a real-time
#: task, but an emulated machine shares few host CPUs.
HANG_AFTER = 60.0
#: Guests of its own that a nested machine can talk to at a time: two, for one that migrates.
INNER_CHANNELS = 2
__all__ = ["HANG_AFTER", "Machine", "OnMark", "check_programs"]


class Machine(Commands):
    """A machine that is booted on entry and destroyed on exit of its `with` block."""

    def __init__(
        self,
        kernel: KernelImage,
        topology: Topology,
        *,
        accel: str = "auto",
        append: str = "",
        share: Path | None = None,
        nested: bool = False,
        extra_files: Mapping[str, Path] | None = None,
        host_programs: Sequence[str] = (),
        log_dir: Path | None = None,
        boot_timeout: float = 120.0,
        hang_after: float = HANG_AFTER,
        uri: str = "embed",
        mirror_host: bool = False,
        binding: domain.HostBinding | None = None,
        huge_pages: bool = False,
        count_instructions: bool = False,
    ) -> None:
        """Describe a machine; `binding` says where on a real NUMA host it lies, `mirror_host` chooses one."""
        super().__init__()
        self.kernel = kernel
        self.topology = topology
        #: Whether the guest's time-stamp counter counts instructions (numalab/machine/instructions.py).
        self.count_instructions = count_instructions
        self.accel = accelerators.choose(instructions.check_accel(accel) if count_instructions else accel)
        patience = instructions.PATIENCE if count_instructions else 1
        self._boot_timeout = boot_timeout * patience
        self.hang_after = hang_after * patience
        self._uri = uri
        self._domain: Any = None
        self._paused = 0
        self._pause_lock = threading.Lock()
        self._resumed_at = time.monotonic()
        self.boot_seconds: float | None = None
        self._complaints: list[str] = []
        self.dir = hypervisor.home() / uuid.uuid4().hex[:8]
        logs = log_dir or self.dir
        self.console = logs / "console.log"
        self.qmp_socket = self.dir / "qmp"
        shares = []
        if share is not None:
            if not share.is_dir():
                raise UserError(f"{share}: not a directory, so it cannot be shared")
            shares.append(("share", share.resolve(), "/share"))
        if host_programs:
            check_programs(host_programs)
            shares.append(("hostusr", Path("/usr"), "/usr"))
        self._initrd = rootfs.build(kernel, dict(extra_files or {}), nested=nested)
        words = [*domain.BASE_CMDLINE, *(f"numalab.9p={tag}:{where}" for tag, _, where in shares)]
        words += [*(instructions.KERNEL_WORDS if count_instructions else ()), append]
        self.spec = domain.DomainSpec(
            name=f"numalab-{self.dir.name}",
            accel=self.accel,
            topology=topology,
            kernel=self._reachable(kernel.path),
            initrd=self._reachable(self._initrd),
            cmdline=" ".join(word for word in words if word),
            console=self.console,
            channel=self.dir / "channel",
            qmp=self.qmp_socket,
            shares=tuple((tag, path) for tag, path, _ in shares),
            nested=nested,
            inner_channels=tuple(self.dir / f"inner{number}" for number in range(INNER_CHANNELS if nested else 0)),
            huge_pages=huge_pages,
            binding=accelerators.bind_to_host(topology) if mirror_host and binding is None else binding,
            extra_args=instructions.QEMU_ARGS if count_instructions else (),
            # Under KVM there is nothing to say, and machines that count have one thread anyway.
            threads=emulator.threads(topology.cpus, nested=nested)
            if self.accel == "tcg" and not count_instructions
            else "multi",
        )
        hypervisor.check_socket_path(self.spec.channel)

    # Life and death.

    def boot(self) -> None:
        """Start the machine and wait for its first process.

        Raises:
            BootFailureError, GuestPanicError, QemuDiedError: it did not come up.
            MissingError: no QEMU or libvirt on this host.
        """
        accelerators.check_memory(self.topology)
        libvirt = hypervisor.libvirt()
        connection = hypervisor.connect(self._uri)
        self._prepare_files()
        start = time.monotonic()
        try:
            try:
                # A daemon ends the machine with us; the embedded driver cannot, hypervisor.sweep() does.
                flags = 0 if self._uri == "embed" else libvirt.VIR_DOMAIN_START_AUTODESTROY
                self._domain = connection.createXML(domain.to_xml(self.spec), flags)
            except libvirt.libvirtError as error:
                raise _start_error(str(error)) from error
            self._channel = ch.Channel(self._connect_channel(), self.dir)
            self._await_hello(start)
        except BaseException:
            self.close()
            raise
        self.boot_seconds = time.monotonic() - start

    def _reachable(self, path: Path) -> Path:
        """Where QEMU finds `path`: a copy beside the sockets when a daemon runs it as another user."""
        return path if self._uri == "embed" else self.dir / path.name

    def _prepare_files(self) -> None:
        """Make the machine's directory; a daemon's QEMU runs as another user and has to get into it."""
        foreign = self._uri != "embed"
        self.dir.mkdir(mode=0o700)
        self.console.parent.mkdir(parents=True, exist_ok=True)
        self.console.write_bytes(b"")
        if not foreign:
            return
        # The parents can be passed through but not listed, and our name is random.
        for parent in (self.dir.parent, self.dir.parent.parent, self.dir.parent.parent.parent):
            parent.chmod(0o711)
        self.dir.chmod(0o777)
        self.console.chmod(0o666)
        for source in (self.kernel.path, self._initrd):
            shutil.copyfile(source, self.dir / source.name)

    def _connect_channel(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(self.spec.channel))
        except OSError as error:
            sock.close()
            raise self.why_lost() or QemuDiedError(f"QEMU's channel cannot be reached: {error}") from error
        return sock

    def _await_hello(self, start: float) -> None:
        assert self._channel
        while not self._channel.hello.wait(timeout=0.1):
            if self._channel.closed.is_set():
                raise self.why_lost(booting=True)
            if time.monotonic() - start > self._boot_timeout:
                last = console.tail(console.read(self.console)) or "(the console is empty)"
                raise BootFailureError(
                    f"the guest did not answer within {self._boot_timeout:.0f} s; its last words:\n{last}"
                )
        if self._channel.version != ch.PROTOCOL_VERSION:
            raise BootFailureError(f"the guest speaks version {self._channel.version} of the channel's protocol")

    def close(self) -> None:
        """Destroy the machine and remove its files; safe to call twice."""
        if self._domain is not None:
            libvirt = hypervisor.libvirt()
            with contextlib.suppress(libvirt.libvirtError):
                self._domain.destroy()
            self._domain = None
        if self._channel:
            self._channel.close()
            self._channel = None
        _ = self.complaints  # keep them: the console may lie in the directory that goes now
        if self.dir.exists():
            for path in self.dir.iterdir():
                path.unlink(missing_ok=True)
            self.dir.rmdir()

    # State.

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop all vCPUs while the context lasts; may be nested."""
        with self._pause_lock:
            self._paused += 1
            if self._paused == 1:
                self._domain.suspend()
        try:
            yield
        finally:
            with self._pause_lock:
                self._paused -= 1
                if self._paused == 0 and self._domain is not None:
                    self._domain.resume()
                    self._resumed_at = time.monotonic()

    @property
    def qemu_pid(self) -> int:
        """Process id of QEMU on the host."""
        return hypervisor.qemu_pid(self.spec.name)

    def facts(self) -> dict[str, Any]:
        """What this machine is, for provenance: plain JSON values."""
        argv = Path("/proc", str(self.qemu_pid), "cmdline").read_bytes().split(b"\0")[:-1]
        connection = self._domain.connect()
        version = connection.getVersion()
        return {
            "accel": self.accel,
            "count_instructions": self.count_instructions,
            "topology": self.topology.to_json(),
            "cmdline": self.spec.cmdline,
            "qemu_version": f"{version // 1000000}.{version // 1000 % 1000}.{version % 1000}",
            "qemu_argv": [word.decode(errors="replace") for word in argv],
            "domain_xml": domain.to_xml(self.spec),
            "boot_seconds": self.boot_seconds,
        }

    @property
    def complaints(self) -> list[str]:
        """Lines of the console in which the guest's kernel warned about itself; also after the end."""
        if self.console.exists():
            self._complaints = console.complaints(console.read(self.console))
        return self._complaints

    def _silent_since(self) -> float | None:
        return None if self._paused else max(self.channel.last_heard, self._resumed_at)

    def _last_words(self) -> str:
        return console.tail(console.read(self.console))

    def why_lost(self, *, booting: bool = False) -> Exception:
        """The exception that says how this machine ended."""
        deadline = time.monotonic() + 5
        while self._domain is not None and time.monotonic() < deadline and _is_active(self._domain):
            time.sleep(0.05)
        lines = console.read(self.console)
        oops = console.find_oops(lines)
        if oops:
            return GuestPanicError(f"the guest's kernel panicked: {console.panic_reason(oops)}\n{oops}", oops=oops)
        said = hypervisor.qemu_words(self.spec.name)
        last = console.tail(lines, 8) or "(the console is empty)"
        if booting:
            return BootFailureError(f"the machine ended before its first process answered\n{said}\n{last}".rstrip())
        return QemuDiedError(f"QEMU ended: {said or 'it said nothing'}\nlast words of the guest:\n{last}")


def check_programs(names: Sequence[str]) -> None:
    """Raise MissingError unless each program lies under the host's /usr, where the guest can see it."""
    for name in names:
        if not any(Path(top, name).exists() for top in ("/usr/bin", "/usr/sbin")):
            raise MissingError(
                f"the host has no program {name} in /usr/bin or /usr/sbin",
                remedy=f"apt-get install the package that holds it (apt-file search bin/{name})",
            )


def _is_active(dom: Any) -> bool:
    libvirt = hypervisor.libvirt()
    try:
        return bool(dom.isActive())
    except libvirt.libvirtError:
        return False


def _start_error(message: str) -> Exception:
    # libvirt may know of a QEMU that has gone, and says then only that it ended.
    if emulator.version() is None or any(
        words in message for words in ("Cannot find", "could not find capabilities", "No emulator found")
    ):
        return MissingError(f"the machine cannot be started: {message}", remedy="apt-get install qemu-system-x86")
    if "Cannot allocate memory" in message:
        return MissingError(f"not enough memory for the machine: {message}", remedy="use smaller nodes")
    return QemuDiedError(f"QEMU did not start: {message}")


EXEC_ERRNOS = {errno.ENOENT: "no such program in the guest", errno.EACCES: "not executable"}
