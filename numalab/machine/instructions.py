"""Machines that count instructions: the guest reads what was executed from its time-stamp counter.

Under `-icount shift=0` QEMU runs all CPUs of a machine in turn, in one thread, and its virtual clock goes forward by
1 ns with each instruction. The time-stamp counter shows that clock: the difference of two `rdtsc` is the number of
instructions that all CPUs together have executed between them, in user space and in the kernel, interrupts included.

What was seen of it (QEMU 7.2 and 10.0 give the same numbers to the last digit):

* a loop of n instructions counts n, at any length that no timer interrupt falls into;
* a CPU in HLT adds nothing; one that computes keeps its turn up to 0.1 s, or until it halts or executes PAUSE. Only
  while all are halted does the counter follow the wall clock (`sleep=off` would make it leap instead, and an idle
  guest busy);
* REP STOS and its like count once per repetition, not once as on hardware. A page would be cleared by 4096
  "instructions" and hide what a page fault costs beside, so that the kernel is told to do without (`NO_STRINGS`);
* a timer interrupt comes each 4 million instructions (HZ = 250) and takes about 4500, 5 to 30 thousand when more is
  due: 0.1 %. An operation that is shorter than that is hit by none, most of the time, and counts the same to the
  instruction each time and on each boot.

Why not a TCG plugin that counts per CPU: it would have to be compiled against a header that Debian does not ship for
QEMU 7.2, and whose version has changed three times up to 10.0; the guest could not read its counter without a call to
the host; and while CPUs run in threads of their own, how often one of them spins until another has answered its
interrupt is for the host's scheduler to say. Here nothing is: PAUSE hands over to the next CPU.
"""

from __future__ import annotations

from numalab.errors import UserError

#: Words of QEMU's command line.
QEMU_ARGS = ("-icount", "shift=0")

#: No string instruction for clearing and copying: each loop of the kernel is a loop of plain instructions.
NO_STRINGS = "clearcpuid=erms,rep_good,fsrm,fsrs"

#: Words of the guest kernel's command line: beside that, the same addresses on each boot, and time from the counter
#: itself (the kernel would not trust it on several sockets, and ask a device each time).
KERNEL_WORDS = (NO_STRINGS, "nokaslr", "norandmaps", "tsc=reliable")

#: Such a machine runs on one thread of the host, and its seconds are longer than the wall's when it is busy: so many
#: times as long may it take to boot, or between two heartbeats.
PATIENCE = 10


def check_accel(accel: str) -> str:
    """Return the accelerator of such a machine for the one that is wanted.

    Raises:
        UserError: it was to be KVM.
    """
    if accel == "kvm":
        raise UserError("instructions are counted in emulation only, not under KVM", remedy="leave out --accel kvm")
    return "tcg"
