"""Workloads: C sources, the catalogue that describes them, and the builder of their static programs."""
