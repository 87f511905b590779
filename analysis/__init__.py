"""Analysis of result directories: tidy frames, statistics, tables, plots, the report.

Reads result files only; never touches a machine. Of `numalab` it knows what describes results
(`results`, `kinds`, `errors`, `paths`, `units`) and nothing that makes them.
"""
