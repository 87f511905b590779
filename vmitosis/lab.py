"""The laboratory of vMitosis: cells whose program runs in a guest of the machine they ask for.

`lab` puts a `TwoLevel` in the place of each machine: the machine is booted with hardware virtualisation, a knob
`vm:/shape` of the policy boots the guest in it, and from then on programs, files and marks are the guest's. Snapshots
are of both levels. What is run, recorded and resumed, and how, is `numalab run`'s.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from numalab.errors import ExperimentError
from numalab.machine.second import HOST_PROGRAMS
from numalab.machine.session import Machine
from numalab.run.lab import Lab, MachineRequest
from vmitosis.two_level import PROBE, TwoLevel

__all__ = ["TwoLevel", "lab"]


def lab(base: Lab, probe: Path | None = None) -> Lab:
    """The laboratory `base`, with a `TwoLevel` in the place of its machines; `probe`: pgrepl-probe, for NO-F."""

    def opened(request: MachineRequest, log_dir: Path) -> AbstractContextManager[TwoLevel]:
        files = {**request.files, **({PROBE: probe} if probe else {})}
        return _open(replace(request, files=files), log_dir)

    return replace(base, open_machine=opened, snapshot=_snapshot)


@contextmanager
def _open(request: MachineRequest, log_dir: Path) -> Iterator[TwoLevel]:
    machine = Machine(
        request.kernel,
        request.topology,
        accel=request.accel,
        append=request.append,
        nested=True,
        host_programs=HOST_PROGRAMS,
        mirror_host=request.mirror_host,
        huge_pages=request.huge_pages,
        extra_files=request.files,
        log_dir=log_dir,
        boot_timeout=request.boot_timeout,
    )
    with machine:
        two = TwoLevel(machine, request.kernel, request.files)
        try:
            yield two
        finally:
            two.close()
            from numalab.measure.take import detach

            detach(machine)
            if two.events:
                with contextlib.suppress(OSError):
                    (log_dir / "events.json").write_text(json.dumps(two.events, indent=1))


def _snapshot(machine: TwoLevel, names: Sequence[str], label: str, archive: Path) -> dict[str, Any]:
    """Where both levels of the tables of the guest's processes lie; the summary is kept as JSON beside the result."""
    from vmitosis.snapshot2d import take

    taken = take(machine.inner, names=names, label=label)
    if taken.contradictions:
        raise ExperimentError(
            f"{taken.contradictions} entries of the second level contradict the page tables of the VMM",
            remedy="this is a fault of the kernel, or of the snapshot",
        )
    # Under keys of its own: what reads summaries of one level finds none here, rather than a wrong one.
    summary = {"number_kind": taken.kind.value, "both_levels": taken.to_json(), "events": list(machine.events)}
    archive.with_suffix(".json").write_text(json.dumps(summary))
    return summary
