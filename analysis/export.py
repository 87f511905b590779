"""Results as files for other programs: CSV, JSON, Parquet."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from importlib.util import find_spec

import pandas as pd

from analysis import frames
from analysis.dataset import Dataset
from numalab.errors import MissingError

#: What can be exported: name → the frame.
TABLES: Mapping[str, Callable[[Dataset], pd.DataFrame]] = {
    "values": lambda data: data.values,
    "cells": lambda data: data.outcomes,
    "table-pages": lambda data: frames.table_pages(data.placements),
    "leaf-entries": lambda data: frames.leaf_entries(data.placements),
    "remote-shares": lambda data: frames.remote_shares(data.placements),
}
FORMATS = ("csv", "json", "parquet")


def to_bytes(frame: pd.DataFrame, form: str) -> bytes:
    """Return the frame in a format of `FORMATS`; what is missing is "NA" in CSV, null elsewhere.

    Raises:
        MissingError: Parquet is asked for and pyarrow is not installed.
    """
    if form == "csv":
        return frame.to_csv(index=False, na_rep="NA", lineterminator="\n").encode()
    if form == "json":
        return (frame.to_json(orient="records", indent=1, double_precision=15) + "\n").encode()
    if find_spec("pyarrow") is None:
        raise MissingError(
            "Parquet needs pyarrow, which is not installed", remedy="pip install 'numalab[parquet]', or --format csv"
        )
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, engine="pyarrow")
    return buffer.getvalue()
