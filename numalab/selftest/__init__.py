"""The kernel's own test programs: built from its source, run in a machine, compared with a stock kernel's results."""
