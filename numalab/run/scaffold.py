"""The experiment file that `numalab init` writes."""

from __future__ import annotations

TEMPLATE = """\
# An experiment for `numalab run`; every key: docs/experiments.md.
# Try it:  numalab run THIS-FILE --dry-run

title = "Where do the page tables of GUPS live?"
seed = 1          # of the order of the cells
repeats = 3
placebo = true    # the baseline once more under another label: how much does nothing at all differ?

# What everything is compared with; the first of each axis when left out.
baseline = { kernel = "stock", policy = "first-touch" }

[matrix]
kernel = ["stock"]                          # stock, patched, debug, or the path of a bzImage
policy = ["first-touch", "interleave"]      # `numalab policies` lists them
workload = ["small-gups"]                   # `numalab workloads` lists them
topology = ["two"]

# A workload or policy with parameters, under a name of its own.
[workloads.small-gups]
workload = "gups"
size = "64M"

[topologies.two]
nodes = 2
cpus_per_node = 1
node_memory = "256M"

# Points of the matrix to leave out:
# [[exclude]]
# kernel = "stock"
# policy = ["remote-tables"]

[measure]
snapshots = ["ready"]    # marks of the program at which page tables are looked at: init, ready, done

[run]
timeout = 120            # seconds of wall time for one program
"""
