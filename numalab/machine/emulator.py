"""What QEMU's emulator must be told before a kernel that patches its own code can be trusted to it.

Linux switches static branches by writing over its text while other CPUs run it (arch/x86/kernel/alternative.c,
text_poke_bp_batch(): a breakpoint, the rest of the instruction, the first byte again). QEMU before 8.1, with a thread
for each vCPU, translates code without holding the page it lies on: what is written between the reading and the linking
of a block leaves a stale block behind, that of the breakpoint among them, long after the kernel has forgotten that
breakpoint. Debian's own, unpatched kernel on QEMU 7.2 then stops with `Oops: int3` within 20 to 40 s of a static branch
being switched to and fro under load; QEMU 10.0 does not in a thousand rounds, nor does 7.2 with all vCPUs in one
thread. 8.1 locks the page first ("accel/tcg: Always lock pages before translation").

So the vCPUs of an emulated machine share one thread where QEMU is older; a host of two cores loses little by it, and it
is in each machine's recorded `qemu_argv`. They share one as well where the host has fewer CPUs than the machine: a vCPU
whose thread the host has put aside, perhaps with a lock held that the others spin for, is late by milliseconds, which
is long for those of our tests that wait for the kernel to act (with QEMU 10.0 on two CPUs they took as long, 437 s in
one thread and 456 s in four, and two of them failed in four). Not where the machine runs guests of its own: in one
thread second-level guests of two vCPUs go wrong at varying places of their boot, in 7.2 and in 10.0 (a loop of invalid
opcodes in the firmware, vCPUs that are not woken), while in threads of their own they boot.
`NUMALAB_TCG_THREADS=multi` (or `single`) overrides all that.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess

from numalab.errors import UserError

#: From this version on vCPUs in threads of their own are safe.
SAFE_VERSION = (8, 1)
#: Overrides what the version says: "single" or "multi".
OVERRIDE = "NUMALAB_TCG_THREADS"
_PROGRAM = "qemu-system-x86_64"


def version(program: str = _PROGRAM) -> tuple[int, int] | None:
    """Return the version (major, minor) of the QEMU that machines run on, None when there is none to ask."""
    path = shutil.which(program)
    return _version(path) if path else None


@functools.cache
def _version(path: str) -> tuple[int, int] | None:
    said = subprocess.run(
        [path, "--version"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    ).stdout
    found = re.search(r"version (\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else None


def safe() -> bool:
    """Whether QEMU can be trusted with a thread for each vCPU."""
    # Without a QEMU nothing will run, and who starts it is told so.
    found = version()
    return found is None or found >= SAFE_VERSION


def threads(vcpus: int, *, nested: bool = False) -> str:
    """Return "single" or "multi": in how many threads QEMU may emulate the vCPUs of a machine.

    Args:
        vcpus: how many the machine has.
        nested: the machine runs guests of its own.

    Raises:
        UserError: the environment's override is neither.
    """
    wanted = os.environ.get(OVERRIDE, "")
    if wanted not in ("", "single", "multi"):
        raise UserError(f"{OVERRIDE} is {wanted!r}: single or multi")
    if wanted or nested:
        return wanted or "multi"
    return "multi" if safe() and vcpus <= len(os.sched_getaffinity(0)) else "single"
