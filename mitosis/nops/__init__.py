"""`python -m mitosis.nops`: what replication costs a kernel in which nobody replicates, read from its machine code.

Each hook asks a static key, which is a jump when the key is on and a NOP of two or five bytes as long as it is off.
The kernel image has a table of those places (`__jump_table`: where the NOP is, where the jump would go, which key).
Here that table is read, what the image has at each place is looked at, and counted by function: all of them must be
NOPs, and functions that every program goes through may have no more of them than `HOT` says.
"""
