"""pgrepl-probe, the program that measures latencies in a guest: built of the patches, statically."""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from numalab.errors import ExperimentError, MissingError
from numalab.kernel import source
from numalab.kernel.patches import apply_series
from numalab.kernel.plan import PATCHED, make_plan
from numalab.kernel.progress import Progress

__all__ = ["build"]

SOURCE = "tools/mm/pgrepl-probe.c"
FLAGS = ("-O2", "-Wall", "-static", "-pthread")


def build(target: Path) -> Path:
    """Compile the probe of the series into the file `target`.

    Returns:
        `target`.

    Raises:
        MissingError: the series does not bring it, or there is no gcc.
        ExperimentError: it does not compile.
    """
    tree = source.locate(None, source.read_base(), Progress())
    with TemporaryDirectory(prefix="numalab-probe-") as temporary:
        series = make_plan(PATCHED, None).series
        overlay = apply_series(series.patches, source.pristine(tree), Path(temporary), onto=str(tree.source))
        file = overlay.get(SOURCE)
        if file is None:
            raise MissingError(f"the series brings no {SOURCE}", remedy="take the patch set vmitosis")
        try:
            subprocess.run(["gcc", *FLAGS, "-o", target, file], capture_output=True, text=True, check=True)
        except FileNotFoundError as error:
            raise MissingError("gcc is not installed", remedy="apt-get install gcc libc6-dev") from error
        except subprocess.CalledProcessError as error:
            raise ExperimentError(f"{SOURCE} does not compile: {error.stderr.strip().splitlines()[-1]}") from error
    return target
