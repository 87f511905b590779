"""What a kernel offers to experiments, and which version or patch set brings it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numalab.machine.session import Machine


@dataclass(frozen=True)
class Feature:
    """Something a kernel has or lacks.

    Attributes:
        name: for people.
        path: a file of the guest that is there when the kernel has it.
        brought_by: "Linux 6.1" or "patch set common".
        word: when set, a word that has to be in the file.
    """

    name: str
    path: str
    brought_by: str
    word: str = ""

    def present(self, machine: Machine) -> bool:
        """Whether the kernel of `machine` has it."""
        from numalab.machine.outcome import GuestFileError

        try:
            if not self.word:
                return machine.run(["test", "-e", self.path]).ok
            return self.word.encode() in machine.read_file(self.path).split()
        except GuestFileError:
            return False


#: What the laboratory itself makes use of; systems under study register their own.
KNOWN = (
    Feature("page-table pages per node", "/proc/self/numa_pgtables", "patch set common"),
    Feature("node of new page tables", "/proc/sys/vm/pgtable_alloc_node", "patch set common"),
    Feature("types for the outside observer (BTF)", "/sys/kernel/btf/vmlinux", "Linux 5.4, CONFIG_DEBUG_INFO_BTF"),
    Feature("note for the outside observer", "/sys/kernel/vmcoreinfo", "Linux 2.6.24, CONFIG_KEXEC"),
    Feature("NUMA balancing", "/proc/sys/kernel/numa_balancing", "Linux 3.8"),
    Feature("transparent huge pages", "/sys/kernel/mm/transparent_hugepage/enabled", "Linux 2.6.38"),
    Feature("hugetlb pages", "/proc/sys/vm/nr_hugepages", "Linux 2.6, CONFIG_HUGETLBFS"),
    Feature("KSM", "/sys/kernel/mm/ksm/run", "Linux 2.6.32"),
    Feature("KSM scan-time advisor", "/sys/kernel/mm/ksm/advisor_mode", "Linux 6.8"),
    Feature("multi-generational LRU", "/sys/kernel/mm/lru_gen/enabled", "Linux 6.1"),
    Feature("5-level paging", "/proc/cpuinfo", "Linux 4.14 and a processor with la57", "la57"),
    Feature("guests of its own (KVM)", "/dev/kvm", "Linux 2.6.20; modules of it are loaded with --nested"),
)


def survey(machine: Machine, features: Iterable[Feature] = KNOWN) -> dict[Feature, bool]:
    """Return for each feature whether the kernel of `machine` has it."""
    return {feature: feature.present(machine) for feature in features}
