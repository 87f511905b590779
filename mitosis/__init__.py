"""Mitosis (ASPLOS 2020): policies and experiments about the NUMA placement of a process's page tables."""
