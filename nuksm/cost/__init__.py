"""What scanning costs: instructions for each scanned page, by pass, number of threads and size.

`python -m nuksm.cost` counts on two kernels, in machines that count instructions (docs/instructions.md).
"""
