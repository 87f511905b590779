"""The laboratory: what every experiment needs, whichever system it studies."""

__version__ = "0.1.0"
