"""What replicated second-level tables cost: faults, bytes, instructions, time to follow (`python -m vmitosis.cost`).

Faults, entries, bytes and instructions come from a small virtual machine of our own (faults.c) in a machine that counts
instructions (docs/instructions.md): no guest kernel, no clock, nothing but the second level. The time in which tables
follow a guest that moves is by the clock of an emulated machine.
"""
