"""The kernel source the test programs come from: Debian's or the user's, with the patch series applied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from numalab.kernel import source
from numalab.kernel.patches import apply_series
from numalab.kernel.plan import PATCHED, make_plan
from numalab.kernel.progress import Progress
from numalab.selftest import build


@contextmanager
def patched_files(
    request: str | None = None, *, sets: Sequence[str] | None = None, progress: Progress | None = None
) -> Iterator[Mapping[str, Path]]:
    """Give what the build of the test programs needs of a source with the series applied; valid inside the block.

    The tests that a patch set brings are among it. No tree is written to.

    Args:
        request: the source, as `numalab kernel build --source` takes it; None: Debian's package.
        sets: patch sets to apply, None for all of the series, ["none"] for none.
        progress: is told what happens.

    Raises:
        As `numalab.kernel.build.check`.
    """
    progress = progress or Progress()
    tree = source.locate(request, source.read_base(), progress)
    top = Path(tree.source.origin) if tree.source.kind == "directory" else tree.src
    original = source.pristine(tree)
    with TemporaryDirectory(prefix="numalab-selftest-") as temporary:
        series = make_plan(PATCHED, sets).series
        overlay = apply_series(series.patches, original, Path(temporary), onto=str(tree.source))
        found = {name: file for name in build.files_of(top) if (file := original(name)) is not None}
        parts = build.selftest_parts()
        for name in overlay.paths:
            if any(name == part or name.startswith(f"{part}/") for part in parts):
                patched = overlay.get(name)
                found.pop(name, None)
                if patched is not None:
                    found[name] = patched
        yield found


def built_programs(request: str | None = None, *, progress: Progress | None = None) -> build.Programs:
    """Return the built test programs of a source; builds them when the cache has none of it.

    Args:
        request, progress: as of `patched_files`.

    Raises:
        As `patched_files`, and `numalab.selftest.build.build`.
    """
    progress = progress or Progress()
    with patched_files(request, progress=progress) as files:
        return build.build(files, say=progress.step)
