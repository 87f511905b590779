"""Measurements on a machine: page-table placement seen from outside, counters, perf."""
