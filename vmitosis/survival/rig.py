"""What the scenarios have in common: the machine, guests in it, vCPUs that bounce between nodes, digests of memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from numalab.errors import ExperimentError
from numalab.kernel.image import KernelImage
from numalab.machine.outcome import GuestFileError
from numalab.machine.second import HOST_PROGRAMS, SecondLevel
from numalab.machine.session import Machine
from numalab.machine.topology import LOCAL_DISTANCE, Node, Topology, uniform
from vmitosis.second_level import DebugFiles, no_balancing, wait_until
from vmitosis.survival.keeper import Keeper, guest_files, machine_files

_PARAMETER = "/sys/module/kvm/parameters/numa_mmu"
_THP = "/sys/kernel/mm/transparent_hugepage/enabled"
#: Moves vCPU threads ($@) round the CPUs 0 and 1, as long as it is let.
_BOUNCE = 'while :; do for c in 0 1; do for t in "$@"; do taskset -pc $c $t; c=$((1-c)); done; sleep 0.05; done; done'


@dataclass(frozen=True)
class Rig:
    """Where scenarios run.

    Attributes:
        machine: two nodes of one CPU, see `machine_for`.
        kernel: of the guests.
        mode: of the second level of all guests: off, local or replicate.
        memory: bytes of a guest on each of its two nodes.
    """

    machine: Machine
    kernel: KernelImage
    mode: str = "replicate"
    memory: int = 96 << 20

    def prepare(self) -> None:
        """Set what holds for all scenarios.

        Raises:
            GuestFileError: the machine's kernel has no such feature.
        """
        self.machine.write_file(_PARAMETER, self.mode.encode() + b"\n")
        # Huge pages come when a scenario asks for them.
        with suppress(GuestFileError):  # a kernel built without it
            self.machine.write_file(_THP, b"never\n")
        no_balancing(self.machine)

    def guest(
        self, *, slot: int = 0, anonymous: bool = False, append: str = "", qemu_args: Sequence[str] = ()
    ) -> SecondLevel:
        """Describe a guest with a vCPU on each node; `anonymous`: its memory can be merged, and become huge."""
        far = self.machine.topology.distances[0][1]
        distances = ((LOCAL_DISTANCE, far), (far, LOCAL_DISTANCE))
        # Nodes are hidden: what is plugged in later needs no place among them.
        shape = Topology((Node(1, self.memory),) * 2, distances, visible=False)
        return SecondLevel(
            self.machine,
            self.kernel,
            shape,
            cpus=[[0], [1]],
            huge_pages=anonymous,
            extra_files=guest_files(),
            slot=slot,
            append=append,
            qemu_args=qemu_args,
        )

    def debug(self, guest: SecondLevel) -> DebugFiles:
        """KVM's files of a guest."""
        return DebugFiles(self.machine, guest.qemu_pid)

    def both_trees(self, guest: SecondLevel) -> None:
        """Wait until there is a tree for each node, if there is to be one; KVM's rules hold.

        Raises:
            ExperimentError: they do not, or there is none.
        """
        files = self.debug(guest)
        wanted = (0, 1) if self.mode == "replicate" else (None,) if self.mode == "off" else ()
        wait_until(
            lambda: f"trees for {wanted}: {files.tables().roots}",
            lambda: not wanted or files.tables().roots == wanted,
            60,
        )

    @contextmanager
    def kept(self, guest: SecondLevel) -> Iterator[Keeper]:
        """A keeper in a guest that runs; at the end all is checked, and what the kernels say."""
        keeper = Keeper(guest)
        self.both_trees(guest)
        yield keeper
        keeper.finish()
        self.quiet(keeper.guest)

    def quiet(self, guest: SecondLevel) -> None:
        """See that no kernel has complained.

        Raises:
            ExperimentError: one has.
        """
        said = [*self.machine.complaints, *guest.complaints]
        if said:
            raise ExperimentError("a kernel complains: " + "; ".join(said[:5]))

    @contextmanager
    def bouncing(self, guest: SecondLevel) -> Iterator[None]:
        """VCPU threads are moved between the nodes 20 times a second."""
        threads = [str(thread) for thread in guest.threads]
        moving = self.machine.start(["sh", "-c", f"({_BOUNCE}) > /dev/null 2>&1", "bounce", *threads])
        try:
            yield
        finally:
            moving.kill()
            moving.wait(60)
            with suppress(ExperimentError):  # threads of a guest that has ended
                for vcpu, cpus in enumerate(guest.cpus):
                    guest.pin(vcpu, cpus)


def machine_for(kernel: KernelImage, *, accel: str = "auto") -> Machine:
    """Describe a machine for the scenarios."""
    return Machine(
        kernel,
        uniform(2, 1, "1G"),
        accel=accel,
        nested=True,
        host_programs=HOST_PROGRAMS,
        extra_files=machine_files(),
    )
