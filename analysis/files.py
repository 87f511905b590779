"""Writing what the analysis makes."""

from __future__ import annotations

from pathlib import Path

from numalab.errors import ExperimentError, UserError
from numalab.paths import write_atomic


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: there can be no such file here.
        ExperimentError: the disk is full, or the like.
    """
    try:
        write_atomic(path, data)
    except (IsADirectoryError, NotADirectoryError, PermissionError, FileExistsError) as error:
        raise UserError(f"{path}: {error.strerror}", remedy="name another place") from error
    except OSError as error:
        raise ExperimentError(f"{path}: {error.strerror}") from error
