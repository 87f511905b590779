"""How a cell ended, as it stands in its result (`docs/results.md`, outcome)."""

from __future__ import annotations

from numalab.results import Json


def outcome(kind: str, *, status: int | None = None, signal: int | None = None, detail: str = "") -> Json:
    """Return an outcome of the type `kind` (`numalab.results.OUTCOMES`)."""
    return {"type": kind, "status": status, "signal": signal, "detail": detail, "oops": None}


def words(error: Exception) -> str:
    """Return what an error says, its notes and its remedy, on one line."""
    notes = getattr(error, "__notes__", [])
    remedy = getattr(error, "remedy", "")
    text = "; ".join([str(error), *notes])
    return f"{text} ({remedy})" if remedy else text
