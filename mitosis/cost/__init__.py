"""What page-table replication costs where memory is mapped, counted in instructions (Mitosis, table 5).

`python -m mitosis.cost` runs the workload memops on two kernels, on emulated machines of four nodes that count
instructions (numalab.machine.instructions), and holds the ratio of the counts against what is promised.
"""
