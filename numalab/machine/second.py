"""A guest of a machine: a second-level guest, run by QEMU and KVM inside a machine booted with `nested=True`.

    with Machine(kernel, uniform(4), nested=True, host_programs=HOST_PROGRAMS) as machine:
        with SecondLevel(machine, kernel, uniform(1, 4, "256M"), cpus=[[0], [1], [2], [3]]) as guest:
            print(guest.run(["uname", "-r"]).stdout)

It has the same first process as the machine, and a channel of its own that goes through a port of the machine: so
commands, files and marks work as they do one level up. Its vCPUs are threads of QEMU in the machine, pinned before they
run and moved whenever one likes.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from numalab.errors import ExperimentError, MissingError, UserError
from numalab.kernel.image import KernelImage
from numalab.machine import channel as ch
from numalab.machine import console, domain, rootfs
from numalab.machine.commands import Commands
from numalab.machine.outcome import BootFailureError, GuestFileError, GuestPanicError, QemuDiedError
from numalab.machine.process_qmp import ProcessQmp
from numalab.machine.session import HANG_AFTER, Machine
from numalab.machine.topology import LOCAL_DISTANCE, Topology

#: What a machine needs to have (`host_programs`) to run guests.
HOST_PROGRAMS = ("qemu-system-x86_64",)
#: Emulated processors tell sizes of the XSAVE area that do not add up one level down: a long warning. And nobody runs
#: guests in there.
CPU = "host,-xsave,-svm"
#: The same with every bit of CPUID that KVM offers: what QEMU has no name for it leaves out of a guest that could be
#: migrated. Such a guest cannot.
CPU_UNNAMED = "host,migratable=off,-xsave,-svm"
PORT_NAME = "org.numalab.0"
_PORTS = "/sys/class/virtio-ports"
#: In the machine: the device of the port whose name is $0.
_FIND_PORT = f'cd {_PORTS} && for p in *; do [ "$(cat $p/name)" = "$0" ] && echo /dev/$p; done'


class SecondLevel(Commands):
    """A guest of a machine, booted on entry and ended on exit of its `with` block.

    Attributes:
        machine: the machine it runs in.
        kernel: its kernel.
        topology: its shape; with `visible` False it sees one node.
        qemu_pid: process id of its QEMU in the machine.
        threads: thread ids of its vCPUs in the machine, by vCPU.
        qmp: its QEMU's monitor.
    """

    def __init__(
        self,
        machine: Machine,
        kernel: KernelImage,
        topology: Topology,
        *,
        cpus: Sequence[Sequence[int]],
        cells: Sequence[int] = (),
        huge_pages: bool = False,
        append: str = "",
        extra_files: Mapping[str, Path] | None = None,
        slot: int = 0,
        boot_timeout: float = 600.0,
        hang_after: float = 2 * HANG_AFTER,
        cpu: str = CPU,
        qemu_args: Sequence[str] = (),
    ) -> None:
        """Describe a guest.

        Args:
            machine: a running one, booted with `nested=True` and `host_programs=HOST_PROGRAMS`.
            kernel: any; its initramfs is written into the machine.
            topology: nodes with their CPUs and memory.
            cpus: for each vCPU the machine's CPUs it may run on.
            cells: for each node the node of the machine its memory is bound to; empty: by first touch.
            huge_pages: transparent huge pages for its memory (4K pages of shared memory otherwise).
            append: words for its kernel.
            extra_files: guest path → host file.
            slot: which of the machine's ports to inner guests it takes.
            boot_timeout, hang_after: seconds of wall time.
            cpu: its processor, as QEMU's -cpu takes it.
            qemu_args: more words for its QEMU.

        Raises:
            UserError: shape, CPUs and cells do not fit each other or the machine.
        """
        super().__init__()
        _check(machine, topology, cpus, cells, slot)
        self.machine, self.kernel, self.topology = machine, kernel, topology
        self.accel = machine.accel
        self.cpus = [list(each) for each in cpus]
        self.cells = tuple(cells)
        self.huge_pages = huge_pages
        self.hang_after = hang_after
        self.threads: tuple[int, ...] = ()
        self.boot_seconds: float | None = None
        self._boot_timeout = boot_timeout
        self._slot = slot
        self._append = append
        self._extra_files = dict(extra_files or {})
        self._cpu = cpu
        self._qemu_args = tuple(qemu_args)
        self._qmp: ProcessQmp | None = None
        self._spool: tempfile.TemporaryDirectory[str] | None = None
        self.directory = f"/tmp/second{slot}"

    @property
    def qmp(self) -> ProcessQmp:
        """Its QEMU's monitor; only while it runs."""
        if self._qmp is None:
            raise QemuDiedError("the second-level guest is not running")
        return self._qmp

    @property
    def qemu_pid(self) -> int:
        """Process id of its QEMU, in the machine."""
        return self.qmp.process.pid

    @property
    def console(self) -> str:
        """Its console log, a file of the machine."""
        return f"{self.directory}/console"

    def prepare(self) -> None:
        """Write kernel and initramfs into the machine."""
        initrd = rootfs.build(self.kernel, self._extra_files)
        self.machine.run(["mkdir", "-p", self.directory], check=True)
        for name, path in (("kernel", self.kernel.path), ("initrd", initrd)):
            self.machine.write_file(f"{self.directory}/{name}", path.read_bytes())
        self.machine.write_file(self.console, b"")

    def boot(self, *, run: bool = True) -> None:
        """Start QEMU with its vCPUs stopped, pin their threads, let them run, wait for the guest's first process.

        Args:
            run: without it the guest stays as QEMU has made it, for an incoming migration.

        Raises:
            BootFailureError, GuestPanicError, QemuDiedError: it did not come up.
            MissingError: the machine cannot run guests.
        """
        start = time.monotonic()
        if not self.machine.run(["test", "-c", "/dev/kvm"]).ok:
            raise MissingError(
                "the machine has no /dev/kvm, so it can run no guests",
                remedy="boot it with nested=True, and a kernel with CONFIG_KVM_AMD and CONFIG_KVM_INTEL",
            )
        self.prepare()
        port = self.machine.run(["sh", "-c", _FIND_PORT, domain.INNER_PORT.format(self._slot)]).stdout.decode().strip()
        if not port:
            raise MissingError("the machine has no port to an inner guest", remedy="boot it with nested=True")
        self._spool = tempfile.TemporaryDirectory(prefix="numalab-second-")
        try:
            # Our side first: a port that nobody listens to looks hung up to QEMU.
            inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            inner.connect(str(self.machine.spec.inner_channels[self._slot]))
            self._channel = ch.Channel(inner, Path(self._spool.name))
            self._qmp = ProcessQmp(self.machine, self.argv(port))
            told = self._qmp.execute("query-cpus-fast")
            self.threads = tuple(each["thread-id"] for each in sorted(told, key=lambda cpu: int(cpu["cpu-index"])))
            for vcpu, cpus in enumerate(self.cpus):
                self.pin(vcpu, cpus)
            if run:
                self.go(start)
        except BaseException:
            self.close()
            raise

    def go(self, start: float | None = None) -> None:
        """Let the vCPUs run and wait until the guest answers."""
        start = time.monotonic() if start is None else start
        self.qmp.execute("cont")
        while not self.channel.hello.wait(timeout=0.1):
            if self.channel.closed.is_set() or self.qmp.process.ended():
                raise self.why_lost(booting=True)
            if time.monotonic() - start > self._boot_timeout:
                raise BootFailureError(
                    f"the second-level guest did not answer within {self._boot_timeout:.0f} s; its last words:\n"
                    + (self._last_words() or "(the console is empty)")
                )
        if self.channel.version != ch.PROTOCOL_VERSION:
            raise BootFailureError(f"the guest speaks version {self.channel.version} of the channel's protocol")
        self.boot_seconds = time.monotonic() - start

    def argv(self, port: str) -> list[str]:
        """The command of its QEMU in the machine; `port` is the device of the channel there."""
        shape = self.topology
        cores = {node.cpus for node in shape.nodes if node.cpus}
        # What QEMU itself touches, the guest's kernel among it, is to lie where the guest runs.
        pinned = ",".join(str(cpu) for cpu in sorted({cpu for cpus in self.cpus for cpu in cpus}))
        packages = f",sockets={shape.cpus // min(cores)},cores={min(cores)},threads=1" if len(cores) == 1 else ""
        words = [
            *("taskset", "-c", pinned, "qemu-system-x86_64", "-name", f"second{self._slot},debug-threads=on", "-S"),
            *("-accel", "kvm", "-cpu", self._cpu, "-smp", f"{shape.cpus}{packages}"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *self._memory(),
            *("-kernel", f"{self.directory}/kernel", "-initrd", f"{self.directory}/initrd"),
            *("-append", " ".join([*domain.BASE_CMDLINE, self._append]).strip()),
            *("-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console"),
            # A port can be opened once, for both ways: of all kinds of chardev only this one does that.
            *("-chardev", f"pipe,id=channel,path={port}", "-device", "virtio-serial-pci"),
            *("-device", f"virtserialport,chardev=channel,name={PORT_NAME}"),
            *self._qemu_args,
        ]
        return words

    def _memory(self) -> list[str]:
        """Words for its memory: an object for each node, or one when nodes are hidden."""
        shape = self.topology
        kind = "memory-backend-ram" if self.huge_pages else "memory-backend-memfd,share=on"
        words = ["-m", f"{shape.memory >> 20}M"]
        if not shape.visible or len(shape.nodes) == 1:
            bound = f",host-nodes={self.cells[0]},policy=bind" if self.cells else ""
            return [*words, "-object", f"{kind},id=all,size={shape.memory}{bound}", "-M", "q35,memory-backend=all"]
        words += ["-M", "q35"]
        for number, node in enumerate(shape.nodes):
            memory = ""
            if node.memory:
                bound = f",host-nodes={self.cells[number]},policy=bind" if self.cells else ""
                words += ["-object", f"{kind},id=node{number},size={node.memory}{bound}"]
                memory = f",memdev=node{number}"
            span = shape.cpus_of(number)
            cpus = f",cpus={span[0]}-{span[-1]}" if node.cpus else ""
            words += ["-numa", f"node,nodeid={number}{memory}{cpus}"]
        for one, row in enumerate(shape.distances):
            for other, value in enumerate(row):
                if value != LOCAL_DISTANCE:
                    words += ["-numa", f"dist,src={one},dst={other},val={value}"]
        return words

    def pin(self, vcpu: int, cpus: Sequence[int]) -> None:
        """Let a vCPU run on these CPUs of the machine only, from now on.

        Raises:
            ExperimentError: the machine's kernel refused.
        """
        listed = ",".join(str(cpu) for cpu in cpus)
        done = self.machine.run(["taskset", "-pc", listed, str(self.threads[vcpu])])
        if not done.ok:
            raise ExperimentError(f"vCPU {vcpu} cannot be pinned to {listed}: {done.stderr.decode().strip()}")
        self.cpus[vcpu] = list(cpus)

    def move(self, node: int) -> None:
        """Let all vCPUs run on the CPUs of one node of the machine, spread over them."""
        there = list(self.machine.topology.cpus_of(node))
        if not there:
            raise UserError(f"node {node} of the machine has no CPUs")
        for vcpu in range(len(self.threads)):
            self.pin(vcpu, [there[vcpu % len(there)]])

    def close(self) -> None:
        """End the guest and its QEMU; safe to call twice."""
        if self._qmp is not None:
            with contextlib.suppress(Exception):
                self._qmp.process.kill()
                self._qmp.process.wait(60)
            self._qmp = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._spool is not None:
            self._spool.cleanup()
            self._spool = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The whole machine stands still, and the guest with it.

        Its vCPUs are stopped first. QEMU's emulation of VMRUN (helper_vmrun(), in 7.2 and 10.0) leaves the vector of an
        interrupt that it has injected where it looks for exceptions, and a thread that is asked to stop before the
        guest's next instruction delivers it a second time: the guest's kernel enters its handler with the user's GS.

        Raises:
            MachineLostError: the guest has ended.
        """
        try:
            runs = self.qmp.execute("query-status")["running"]
            if runs:
                self.qmp.execute("stop")
        except QemuDiedError as error:
            raise self.why_lost() from error
        try:
            with self.machine.paused():
                yield
        finally:
            if runs:
                self.qmp.execute("cont")

    @property
    def complaints(self) -> list[str]:
        """Lines of its console in which its kernel warned about itself."""
        return console.complaints(self._console_lines())

    def _console_lines(self) -> list[str]:
        try:
            raw = self.machine.read_file(self.console)
        except GuestFileError:
            return []
        return [line.rstrip("\r") for line in raw.decode("utf-8", errors="backslashreplace").split("\n")]

    def _silent_since(self) -> float | None:
        return self.channel.last_heard if self.machine._silent_since() is not None else None

    def _last_words(self) -> str:
        return console.tail(self._console_lines())

    def why_lost(self, *, booting: bool = False) -> Exception:
        """How the guest ended, by its console and its QEMU."""
        lines = self._console_lines()
        oops = console.find_oops(lines)
        if oops:
            return GuestPanicError(f"the second-level guest panicked: {console.panic_reason(oops)}\n{oops}", oops=oops)
        said = self._qmp.words if self._qmp else ""
        last = console.tail(lines, 8) or "(the console is empty)"
        kind = BootFailureError if booting else QemuDiedError
        return kind(f"the second-level guest ended: {said or 'its QEMU said nothing'}\nits last words:\n{last}")


def _check(
    machine: Machine, topology: Topology, cpus: Sequence[Sequence[int]], cells: Sequence[int], slot: int
) -> None:
    if len(cpus) != topology.cpus:
        raise UserError(f"the guest has {topology.cpus} vCPUs, and CPUs are named for {len(cpus)}")
    there = machine.topology
    for vcpu, named in enumerate(cpus):
        if not named or not all(0 <= cpu < there.cpus for cpu in named):
            raise UserError(f"vCPU {vcpu}: the machine has CPUs 0-{there.cpus - 1}, not {list(named)}")
    wanted = len(topology.nodes) if topology.visible else 1
    if cells and len(cells) != wanted:
        raise UserError(f"the guest has {wanted} nodes, and {len(cells)} nodes of the machine are named for them")
    for cell in cells:
        if not 0 <= cell < len(there.nodes) or not there.nodes[cell].memory:
            raise UserError(f"the machine has no node {cell} with memory")
    if not 0 <= slot < max(len(machine.spec.inner_channels), 1):
        raise UserError(f"the machine has no port for an inner guest of number {slot}", remedy="boot with nested=True")
