"""A guest's kernel objects and memory from outside, through drgn.

No file is needed beside the running guest: symbols come from its kallsyms, types from its BTF. The
guest itself is asked one thing, once: the physical address of its vmcoreinfo note.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from drgn import Architecture, Platform, Program

from numalab.errors import MissingError
from numalab.machine.outcome import GuestFileError
from numalab.measure import btf_types, symbols
from numalab.measure.btf import Btf
from numalab.measure.counters import GuestFiles
from numalab.measure.qemu_ram import GuestMemoryError, GuestRam, PhysicalMemory

#: In the guest: "<physical address of the note, hex> <size, hex>".
VMCOREINFO_FILE = "/sys/kernel/vmcoreinfo"
_NOTE_HEADER = struct.Struct("<III")
_NOTE_NAME = b"VMCOREINFO\0"


class Guest:
    """An attached guest; keep it for all snapshots of one machine, attaching costs more than a walk.

    Attributes:
        prog: the drgn program; its helpers for tasks, nodes, CPUs and memory work.
        ram: the guest's physical memory.
        vmcoreinfo: what the kernel publishes about itself, as text values.
        levels: page-table levels of this boot, 4 or 5.
    """

    def __init__(self, ram: PhysicalMemory, vmcoreinfo: bytes, *, vmlinux: Path | None = None) -> None:
        """Learn symbols and types of the kernel in `ram`.

        Args:
            ram: physical memory.
            vmcoreinfo: text of the kernel's note.
            vmlinux: with DWARF, to be preferred to BTF.

        Raises:
            MissingError: when the kernel carries no kallsyms, or no BTF and no `vmlinux` is given.
        """
        self.ram = ram
        self.vmcoreinfo = symbols.parse_vmcoreinfo(vmcoreinfo.decode())
        self.levels = 5 if self.vmcoreinfo.get("NUMBER(pgtable_l5_enabled)") == "1" else 4
        self.prog = prog = Program(Platform(Architecture.X86_64))
        for first, last, host in ram.ranges:
            prog.add_memory_segment(first, last - first, _segment_reader(ram, host), physical=True)
        prog.set_linux_kernel_custom(vmcoreinfo, True)
        self._types: list[btf_types.BtfTypes] = []
        if vmlinux is not None:
            prog.load_debug_info([vmlinux])
        table = symbols.kernel_symbols(prog, self.vmcoreinfo)
        prog.register_symbol_finder(symbols.FINDER, table, enable_index=-1)
        start, stop = table.address("__start_BTF"), table.address("__stop_BTF")
        if start is not None and stop is not None:
            self.keep(btf_types.register(prog, Btf(prog.read(start, stop - start))))
        elif vmlinux is None:
            raise MissingError(
                f"the kernel {self.vmcoreinfo.get('OSRELEASE', '')} carries no type information",
                remedy="build it with CONFIG_DEBUG_INFO_BTF=y, or give a vmlinux with DWARF",
            )

    @classmethod
    def attach(cls, qmp_socket: Path, note: bytes, *, vmlinux: Path | None = None) -> Guest:
        """Attach to the guest behind a QMP socket.

        Args:
            qmp_socket: nobody else may use it meanwhile; it is free again afterwards.
            note: content of the guest's /sys/kernel/vmcoreinfo (see `note_address`).
            vmlinux: with DWARF, to be preferred to BTF.

        Raises:
            ExperimentError: when QEMU does not answer.
            MissingError: see `Guest` and `GuestRam`.
        """
        ram = GuestRam.attach(qmp_socket)
        try:
            address, size = (int(word, 16) for word in note.split())
            return cls(ram, read_note(ram.read(address, size)), vmlinux=vmlinux)
        except BaseException:
            ram.close()
            raise

    def keep(self, types: btf_types.BtfTypes) -> None:
        """Forget `types` at the end: finders of the program that were registered beside the kernel's own."""
        self._types.append(types)

    def close(self) -> None:
        """Detach. Types refer to the program and its finder to the types: the ring is opened here."""
        for types in self._types:
            types.forget()
        self.ram.close()
        del self.prog


def note_address(machine: GuestFiles) -> bytes:
    """Ask a running guest where its vmcoreinfo note is; what `Guest.attach` wants.

    Raises:
        MissingError: when its kernel publishes none.
    """
    try:
        return machine.read_file(VMCOREINFO_FILE)
    except GuestFileError as error:
        raise MissingError(
            f"the guest's kernel has no {VMCOREINFO_FILE}, so its memory cannot be understood from outside",
            remedy="build it with CONFIG_VMCORE_INFO=y (CONFIG_KEXEC or CONFIG_CRASH_DUMP selects it)",
        ) from error


def read_note(raw: bytes) -> bytes:
    """Text inside the ELF note at the start of `raw`.

    Raises:
        GuestMemoryError: when there is no such note.
    """
    if len(raw) >= _NOTE_HEADER.size:
        name_size, size, _type = _NOTE_HEADER.unpack_from(raw)
        text = _NOTE_HEADER.size + (name_size + 3 & ~3)
        if raw[_NOTE_HEADER.size :].startswith(_NOTE_NAME) and text + size <= len(raw):
            return raw[text : text + size].rstrip(b"\0")
    raise GuestMemoryError("there is no vmcoreinfo note where the guest said it was")


def _segment_reader(ram: PhysicalMemory, host: int) -> Callable[[int, int, int, bool], bytes]:
    """What drgn calls to read the range of guest memory mapped at `host`."""

    def read(_address: int, count: int, offset: int, _physical: bool) -> bytes:
        return ram.read_host(host + offset, count)

    return read
