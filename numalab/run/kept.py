"""What has been counted already: one file for each count, so that an interrupted table goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from numalab.paths import write_json

SCHEMA = 1
_T = TypeVar("_T")


@dataclass(frozen=True)
class Kept:
    """Counts, in `directory`, found by all that can change them.

    A count is the same each time (docs/instructions.md), so that one that was made needs not be made again; what it
    depends on is in the name of its file.
    """

    directory: Path

    def get(self, what: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what `put` was given, as plain JSON values; None: it was not, or its file is not whole."""
        try:
            found = json.loads(self._path(what).read_text())
            if found.pop("schema") != SCHEMA or found.pop("what") != what:
                return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        else:
            return dict(found)

    def counted(
        self, what: Mapping[str, Any], name: str, make: Callable[[Mapping[str, Any]], _T]
    ) -> tuple[list[_T], dict[str, Any]] | None:
        """Return what is kept under `name`, each made by `make`, and the facts of its machine; None: count it.

        Args:
            what: it depends on.
            name: of the list in what `put` was given, beside `facts`.
            make: raises KeyError, TypeError or ValueError for something else than it makes.
        """
        kept = self.get(what)
        try:
            return None if kept is None else ([make(each) for each in kept[name]], dict(kept["facts"]))
        except (KeyError, TypeError, ValueError):
            return None

    def put(self, what: Mapping[str, Any], counted: Mapping[str, Any]) -> None:
        """Keep plain JSON values, beside `what` they depend on; atomic."""
        write_json(self._path(what), {"schema": SCHEMA, "what": what, **counted})

    def _path(self, what: Mapping[str, Any]) -> Path:
        text = json.dumps(what, sort_keys=True)
        return self.directory / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
