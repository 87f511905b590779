"""What was counted is kept, and found by what it depends on."""

from __future__ import annotations

import json
from pathlib import Path

from numalab.run.kept import Kept


def test_what_was_counted_is_kept(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "counted")
    what = {"kernel": "ab", "argv": ["memops", "--size", "4K"]}
    assert kept.get(what) is None
    kept.put(what, {"counts": [{"op": "mmap", "low": 2.5}], "facts": {"qemu_version": "7.2"}})
    assert kept.get(what) == {"counts": [{"op": "mmap", "low": 2.5}], "facts": {"qemu_version": "7.2"}}
    assert kept.get({**what, "kernel": "cd"}) is None
    kept.put(what, {"counts": []})
    assert kept.get(what) == {"counts": []}, "the last one holds"


def test_half_a_file_is_none(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.put({"kernel": "ab"}, {"counts": [1, 2]})
    (path,) = tmp_path.iterdir()
    whole = path.read_text()
    for text in (whole[:-20], "[]", json.dumps({"schema": 99}), json.dumps({"schema": 1, "what": {}}), ""):
        path.write_text(text)
        assert kept.get({"kernel": "ab"}) is None
