"""Each patch of the series builds and boots, on the kernel tree in miniature; booting is told what to say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from numalab.cli.kernel import command
from numalab.errors import MissingError
from numalab.kernel import cache, each, preflight, tools
from numalab.kernel.build import build
from numalab.kernel.each import Booted, State, Tried
from numalab.kernel.image import KernelImage
from numalab.machine.outcome import BootFailureError
from tests.unit.kernel_fakes import BASE_CONFIG, CODE_PATCH, Lab, Told, make_lab

FORK_PATCH = ("kernel/fork.c", "\n", "\n/* fork */\n")


class Booter:
    """Stands in for the machine; `say` maps the name of a patch to what its kernel does."""

    def __init__(self) -> None:
        self.images: list[KernelImage] = []
        self.say: dict[str, Booted | Exception] = {}

    def __call__(self, image: KernelImage, logs: Path) -> Booted:
        assert image.path.is_file()
        assert logs.is_dir()
        self.images.append(image)
        said = self.say.get(image.name, Booted(image.release, 4.5))
        if isinstance(said, Exception):
            raise said
        return said


@pytest.fixture
def booter() -> Booter:
    return Booter()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Three patches: two of the set "common", one of "mitosis"."""
    lab = make_lab(tmp_path, monkeypatch)
    lab.serve_source()
    lab.patch("common/0001-code.patch", CODE_PATCH)
    lab.patch("common/0002-fork.patch", FORK_PATCH)
    lab.patch("mitosis/0001-mmap.patch", ("mm/mmap.c", "int", "/* mmap */\nint"))
    lab.series("common/0001-code.patch", "common/0002-fork.patch", "mitosis/0001-mmap.patch")
    return lab


def run(booter: Booter, **more: object) -> list[Tried]:
    return list(each.each(booter, **more))  # type: ignore[arg-type]


def states(found: list[Tried]) -> list[tuple[str, State]]:
    return [(tried.patch.rpartition("/")[2], tried.state) for tried in found]


def test_every_prefix_is_built_and_booted(lab: Lab, booter: Booter) -> None:
    told = Told()
    found = run(booter, progress=told)
    assert states(found) == [
        ("0001-code.patch", State.OK),
        ("0002-fork.patch", State.OK),
        ("0001-mmap.patch", State.OK),
    ]
    assert [image.name for image in booter.images] == [tried.patch for tried in found]
    assert {tried.release for tried in found} == {"6.12.117-numalab"}
    assert [tried.number for tried in found] == [1, 2, 3]
    assert len({tried.key for tried in found}) == 3
    assert all(tried.boot_seconds == 4.5 and tried.build_seconds is not None and tried.when for tried in found)
    steps = [step for step in told.steps if step.startswith("patch ")]
    assert steps[-1] == "patch 3 of 3: mitosis/0001-mmap.patch"
    # One kept tree: after the first whole build only what a patch touches is compiled.
    objects = [text.split()[-1] for _, _, text in told.advances if text.endswith(".o")]
    assert sorted(objects[:3]) == ["kernel/fork.o", "mm/memory.o", "mm/mmap.o"]
    assert objects[3:] == ["kernel/fork.o", "mm/mmap.o"]


def test_what_stands_is_skipped(lab: Lab, booter: Booter) -> None:
    first = run(booter)
    booter.images.clear()
    told = Told()
    again = run(booter, progress=told)
    assert booter.images == []
    assert told.advances == []
    assert [(tried.state, tried.stood, tried.release) for tried in again] == [(State.OK, True, first[0].release)] * 3
    assert [tried.boot_seconds for tried in again] == [4.5] * 3
    run(booter, again=True)
    assert len(booter.images) == 3


def test_only_what_a_change_reaches_is_tried_again(lab: Lab, booter: Booter) -> None:
    run(booter)
    booter.images.clear()
    lab.patch("common/0002-fork.patch", ("kernel/fork.c", "\n", "\n/* another fork */\n"))
    found = run(booter)
    assert [tried.stood for tried in found] == [True, False, False]
    assert [image.name for image in booter.images] == ["common/0002-fork.patch", "mitosis/0001-mmap.patch"]
    booter.images.clear()
    lab.config(base=BASE_CONFIG + "# why\nCONFIG_KASAN=y\n")
    assert [tried.stood for tried in run(booter)] == [False] * 3


def test_sets(lab: Lab, booter: Booter) -> None:
    assert [tried.patch for tried in run(booter, sets=["common"])] == [
        "common/0001-code.patch",
        "common/0002-fork.patch",
    ]
    assert [tried.stood for tried in run(booter)] == [True, True, False], "the same patches, the same kernels"
    assert run(booter, sets=["none"]) == []


def test_a_kernel_that_is_built_already_is_not_built_again(lab: Lab, booter: Booter) -> None:
    image = build()
    last = run(booter)[-1]
    assert (last.state, last.build_seconds) == (State.OK, None)
    assert booter.images[-1].path == image.path


def test_going_through_the_series_leaves_the_other_build_alone(lab: Lab, booter: Booter) -> None:
    """They share the source tree; going back to the whole series must compile nothing."""
    image = build()
    run(booter, sets=["common"])
    image.path.unlink()
    told = Told()
    for path in image.path.parent.iterdir():
        path.unlink()
    build(progress=told)
    assert told.advances == []


def test_a_patch_that_does_not_build(lab: Lab, booter: Booter) -> None:
    lab.patch("common/0002-fork.patch", ("kernel/fork.c", "\n", "\nint broken(void) { return no_such; }\n"))
    found = run(booter)
    assert [state for _, state in states(found)] == [State.OK, State.NOT_BUILT, State.NOT_BUILT]
    assert "kernel/fork.c" in found[1].detail
    assert "no_such" in found[1].detail
    assert "no_such" in (found[1].logs / "build.log").read_text()
    assert [image.name for image in booter.images] == ["common/0001-code.patch"]
    lab.patch("common/0002-fork.patch", FORK_PATCH)
    assert [state for _, state in states(run(booter))] == [State.OK] * 3


def test_a_patch_that_only_a_later_one_completes(lab: Lab, booter: Booter) -> None:
    """What `git bisect` would stumble over: the whole series builds, a prefix does not."""
    use = "\n#include <linux/mm.h>\nint early(void) { return LATER; }\n"
    lab.patch("common/0002-fork.patch", ("kernel/fork.c", "\n", use))
    lab.patch("mitosis/0001-mmap.patch", ("include/linux/mm.h", "int map(", "#define LATER 0\nint map("))
    found = run(booter)
    assert [state for _, state in states(found)] == [State.OK, State.NOT_BUILT, State.OK]
    assert "LATER" in found[1].detail


def test_after_a_patch_that_does_not_apply_no_other_is_tried(lab: Lab, booter: Booter) -> None:
    path = lab.patches / "common/0002-fork.patch"
    path.write_text(path.read_text().replace(" int forks;", " int spoons;"))
    found = run(booter)
    assert [state for _, state in states(found)] == [State.OK, State.NOT_APPLIED, State.NOT_TRIED]
    assert found[1].detail.startswith("common/0002-fork.patch does not apply to Linux 6.12.117")


def test_what_a_kernel_does_on_its_machine(lab: Lab, booter: Booter) -> None:
    booter.say = {
        "common/0001-code.patch": BootFailureError("the guest did not answer within 120 s"),
        "common/0002-fork.patch": Booted("6.12.117-numalab", 5.0, ("WARNING: CPU: 0 PID: 1 at mm/memory.c:1",)),
        "mitosis/0001-mmap.patch": Booted("6.1.0-other", 5.0),
    }
    found = run(booter)
    assert [state for _, state in states(found)] == [State.NOT_BOOTED, State.COMPLAINS, State.NOT_BOOTED]
    assert found[0].detail == "the guest did not answer within 120 s"
    assert found[1].complaints == ("WARNING: CPU: 0 PID: 1 at mm/memory.c:1",)
    assert found[2].detail == "the machine runs '6.1.0-other', not '6.12.117-numalab'"
    booter.say.clear()
    assert [tried.stood for tried in run(booter)] == [False] * 3, "only what was fine stands"


def test_warnings_of_the_compiler_are_shown(lab: Lab, booter: Booter) -> None:
    lab.patch("common/0002-fork.patch", ("kernel/fork.c", "\n", "\nstatic int unused(void) { return 1; }\n"))
    found = run(booter)
    assert found[1].state is State.OK
    assert [line.partition(": ")[2] for line in found[1].warnings] == [
        "warning: 'unused' defined but not used [-Wunused-function]"
    ]
    assert found[1].warnings[0].startswith("kernel/fork.c:")
    assert run(booter)[1].warnings == found[1].warnings


def test_a_fragment_may_ask_for_what_a_later_patch_brings(lab: Lab, booter: Booter) -> None:
    """Of a set that is not complete, or a symbol that is not there yet; the whole series must have all of it."""
    kconfig = ("Kconfig", "config KASAN", 'config LATER\n\tbool "Later"\n\nconfig KASAN')
    lab.patch("common/0002-fork.patch", kconfig)
    lab.config(common="# the set's own\nCONFIG_LATER=y\n")
    found = run(booter)
    assert [state for _, state in states(found)] == [State.OK] * 3
    lab.config(common="# the set's own\nCONFIG_NEVER=y\n")
    found = run(booter)
    assert [state for _, state in states(found)] == [State.OK, State.OK, State.NOT_BUILT]
    assert "CONFIG_NEVER: wanted y, got not set; this source has no such symbol" in found[2].detail


def test_an_interrupted_build_is_no_answer(lab: Lab) -> None:
    def interrupted(image: KernelImage, logs: Path) -> Booted:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(each.each(interrupted))
    assert not list((lab.cache / "each").glob("*/result.json"))


def test_a_damaged_answer_is_none(lab: Lab, booter: Booter) -> None:
    found = run(booter)
    (found[0].logs / "result.json").write_text("{")
    (found[1].logs / "result.json").write_text('{"schema": 1, "state": "ok"}')
    assert [tried.stood for tried in run(booter)] == [False, False, True]


def test_missing_tools_are_said_before_anything(lab: Lab, booter: Booter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "lacking", lambda settings: [tools.Lack("flex", "flex")])
    with pytest.raises(MissingError, match="lacks: flex"):
        run(booter)


def test_answers_are_entries_of_the_cache(lab: Lab, booter: Booter) -> None:
    found = run(booter)
    entries = {entry.id for entry in cache.entries() if entry.kind == "each"}
    assert entries == {tried.key for tried in found}


def test_the_command(lab: Lab, booter: Booter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(each, "boot_on_four_nodes", lambda accel: booter)
    done = CliRunner().invoke(command, ["each"], catch_exceptions=False, standalone_mode=False)
    assert done.return_value == 0
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["patch", "kernel", "built", "in", "warnings", "boot", "state"]
    assert lines[-1] == "3 of 3 patches build and boot"
    assert "numalab: note: common/0001-code.patch: ok" in done.stderr
    booter.say["mitosis/0001-mmap.patch"] = BootFailureError("it stopped")
    bad = CliRunner().invoke(command, ["each", "--again", "--json"], catch_exceptions=False, standalone_mode=False)
    assert bad.return_value == 1
    rows = json.loads(bad.stdout)
    assert [row["state"] for row in rows] == ["ok", "ok", "does not boot"]
    assert (rows[2]["detail"], rows[2]["number"]) == ("it stopped", 3)
    shown = CliRunner().invoke(command, ["each"], catch_exceptions=False, standalone_mode=False)
    assert "mitosis/0001-mmap.patch: does not boot: it stopped" in shown.stderr
    assert "ok, as on 20" in shown.stdout
