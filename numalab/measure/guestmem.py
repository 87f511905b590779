"""A guest's memory and kernel objects from outside, through drgn over QMP.

No file is needed beside the running guest: symbols come from its kallsyms, types from its BTF. drgn
finds guest memory in QEMU's address space and reads it with process_vm_readv.
"""

from __future__ import annotations

from pathlib import Path

import drgn
import numpy as np
from drgn import Program
from numpy.typing import NDArray

from numalab.errors import ExperimentError, MissingError
from numalab.measure import btf_types, symbols
from numalab.measure.btf import Btf
from numalab.measure.pagetable import ENTRIES, PAGE_SHIFT


class GuestMemoryError(ExperimentError):
    """Guest memory could not be read where the kernel's own data said there is something."""


class Guest:
    """An attached guest; keep it for all snapshots of one machine, attaching costs more than a walk.

    Attributes:
        prog: the drgn program; its helpers for tasks, nodes, CPUs and memory work.
        vmcoreinfo: what the kernel publishes about itself, as text values.
        levels: page-table levels of this boot, 4 or 5.
    """

    def __init__(self, prog: Program, *, vmlinux: Path | None = None) -> None:
        """Learn symbols and types of the kernel behind `prog`.

        Raises:
            MissingError: when the kernel carries no kallsyms or no BTF and no `vmlinux` is given.
        """
        self.prog = prog
        self.vmcoreinfo = symbols.parse_vmcoreinfo(prog["VMCOREINFO"].string_().decode())
        self.levels = 5 if self.vmcoreinfo.get("NUMBER(pgtable_l5_enabled)") == "1" else 4
        self._types: btf_types.BtfTypes | None = None
        if vmlinux is not None:
            prog.load_debug_info([vmlinux])
        table = symbols.kernel_symbols(prog, self.vmcoreinfo)
        prog.register_symbol_finder(symbols.FINDER, table, enable_index=-1)
        start, stop = table.address("__start_BTF"), table.address("__stop_BTF")
        if start is not None and stop is not None:
            self._types = btf_types.register(prog, Btf(prog.read(start, stop - start)))
        elif vmlinux is None:
            raise MissingError(
                f"the kernel {self.vmcoreinfo.get('OSRELEASE', '')} carries no type information",
                remedy="build it with CONFIG_DEBUG_INFO_BTF=y, or give a vmlinux with DWARF",
            )

    @classmethod
    def attach(cls, qmp_socket: Path, *, vmlinux: Path | None = None) -> Guest:
        """Attach to the guest behind a QMP socket (which serves one client: give drgn its own).

        Raises:
            MissingError: when the guest does not publish its vmcoreinfo, or see `Guest`.
            ExperimentError: when the socket does not answer.
        """
        prog = Program()
        try:
            prog.set_qemu_qmp(str(qmp_socket))
        except OSError as error:
            raise ExperimentError(f"cannot look into the guest through {qmp_socket}: {error}") from error
        except Exception as error:  # drgn raises its plain errors as Exception
            raise MissingError(
                f"cannot look into the guest through {qmp_socket}: {error}",
                remedy="QEMU needs -device vmcoreinfo, the guest CONFIG_VMCORE_INFO and qemu_fw_cfg loaded",
            ) from error
        return cls(prog, vmlinux=vmlinux)

    def close(self) -> None:
        """Detach. Types refer to the program and its finder to the types: the ring is opened here."""
        if self._types is not None:
            self._types.forget()
        del self.prog

    def read_pages(self, frames: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The pages with these frame numbers, as entries: uint64 [len(frames), 512].

        Neighbours are read with one call.

        Raises:
            GuestMemoryError: when one of them is not in guest memory.
        """
        if not len(frames):
            return np.empty((0, ENTRIES), np.uint64)
        breaks = np.flatnonzero(np.diff(frames) != 1) + 1
        firsts = np.concatenate(([0], breaks))
        counts = np.diff(np.concatenate((firsts, [len(frames)])))
        read = self.prog.read
        try:
            whole = b"".join(
                [
                    read(first << PAGE_SHIFT, count << PAGE_SHIFT, True)
                    for first, count in zip(frames[firsts].tolist(), counts.tolist(), strict=True)
                ]
            )
        except drgn.FaultError as error:
            raise GuestMemoryError(f"no guest memory at physical address {error.address:#x}") from error
        return np.frombuffer(whole, "<u8").reshape(-1, ENTRIES)
