"""What has been counted already: one file per run of memops, so that an interrupted table goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mitosis.cost.scenarios import Count
from numalab.paths import write_json

SCHEMA = 1


@dataclass(frozen=True)
class Kept:
    """The runs of memops that were counted, in `directory`, found by all that can change a count.

    A count is the same each time (docs/instructions.md), so that one that was made needs not be made again; what it
    depends on is in the name of its file.
    """

    directory: Path

    def get(self, what: Mapping[str, Any]) -> tuple[list[Count], dict[str, Any]] | None:
        """Return the counts of a run and the facts of its machine; None: it was not made, or its file is not whole."""
        try:
            found = json.loads(self._path(what).read_text())
            if found["schema"] != SCHEMA or found["what"] != what:
                return None
            return [Count(**each) for each in found["counts"]], found["facts"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, what: Mapping[str, Any], counts: Sequence[Count], facts: Mapping[str, Any]) -> None:
        """Keep a run; atomic."""
        value = {
            "schema": SCHEMA,
            "what": what,
            "counts": [vars(count) for count in counts],
            "facts": dict(facts),
        }
        write_json(self._path(what), value)

    def _path(self, what: Mapping[str, Any]) -> Path:
        text = json.dumps(what, sort_keys=True)
        return self.directory / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
