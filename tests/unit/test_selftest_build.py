"""Building test programs: a fake kernel source that `make` builds in a second, and the file of groups."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from numalab.errors import ExperimentError, MissingError, UserError
from numalab.selftest import build, catalogue
from numalab.selftest.catalogue import Group, Program, Recipe

MAKEFILE = """\
VERSION = 6
PATCHLEVEL = 12
SUBLEVEL = 7
headers:
\tmkdir -p usr/include/linux
"""
# As kselftest does: flags by environment, one directory per target, go on after a failure.
SELFTESTS = """\
all: $(foreach t,$(TARGETS),$(patsubst $(t)/%.c,$(O)/kselftest/$(t)/%,$(wildcard $(t)/*.c)))
$(O)/kselftest/%: %.c
\tmkdir -p $(dir $@)
\tgcc $(EXTRA_CFLAGS) $(USERLDFLAGS) $< -o $@
"""
PROGRAMS = {
    "mm/good": "int main(void) { return 0; }\n",
    "mm/lacks_skip": "int main(void) { return KSFT_SKIP; }\n",
    "mm/broken": '#include "nowhere.h"\nint main(void) { return 0; }\n',
    "mm/only_dynamic": '#ifdef STATIC\n#error "no static library"\n#endif\nint main(void) { return 0; }\n',
}


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    top = tmp_path / "linux"
    selftests = top / "tools/testing/selftests"
    (selftests / "mm").mkdir(parents=True)
    (top / "Makefile").write_text(MAKEFILE)
    (top / "scripts").mkdir()
    (top / "scripts/link").symlink_to("nowhere")
    (selftests / "Makefile").write_text(SELFTESTS)
    for name, text in PROGRAMS.items():
        (selftests / f"{name}.c").write_text(text)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = Recipe(("mm",), {"lacks_skip": ("-DKSFT_SKIP=4", "a missing include")}, {})
    monkeypatch.setattr(catalogue, "recipe", lambda: recipe)
    wanted = tuple(Program(name, (name.removeprefix("mm/"),), 1.0) for name in PROGRAMS)
    monkeypatch.setattr(catalogue, "groups", lambda: {"mm": Group("mm", "", wanted, "mm")})
    # Stands for a library of which there is no static one.
    real = build._stage

    def stage(tree: Path, out: Path, log: Path, flags: list[str], *, link: str) -> dict[str, Path]:
        more = " -DSTATIC" if link else ""
        return real(tree, out, log, [word + more for word in flags], link=link)

    monkeypatch.setattr(build, "_stage", stage)
    return top


def test_builds_what_can_be_built(kernel: Path) -> None:
    said: list[str] = []
    programs = build.build(build.files_of(kernel), say=said.append)
    assert programs.built == {"mm/good": "static", "mm/lacks_skip": "static", "mm/only_dynamic": "dynamic"}
    assert list(programs.failed) == ["mm/broken"]
    assert "broken.c:1" in programs.failed["mm/broken"]
    assert "nowhere.h" in programs.failed["mm/broken"]
    assert "/tree/" not in programs.failed["mm/broken"]
    assert subprocess.run([programs.top / "mm/lacks_skip"], check=False).returncode == 4
    assert programs.linkage("mm/good") == "static"
    assert programs.linkage("mm/none") is None
    assert said


def test_source_is_left_alone_and_cache_is_used(kernel: Path) -> None:
    before = sorted(str(path) for path in kernel.rglob("*"))
    first = build.build(build.files_of(kernel))
    stamp = (first.top / "mm/good").stat().st_mtime_ns
    said: list[str] = []
    assert build.build(build.files_of(kernel), say=said.append) == first
    assert said == []
    assert (first.top / "mm/good").stat().st_mtime_ns == stamp
    assert sorted(str(path) for path in kernel.rglob("*")) == before
    (kernel / "tools/testing/selftests/mm/good.c").write_text("int main(void) { return 7; }\n")
    changed = build.build(build.files_of(kernel))
    assert changed.key != first.key
    assert subprocess.run([changed.top / "mm/good"], check=False).returncode == 7


def test_what_no_makefile_of_the_tests_makes(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {"tools/own": "tools/mm/own.c", "tools/bad": "tools/mm/bad.c", "tools/absent": "tools/mm/absent.c"}
    monkeypatch.setattr(catalogue, "recipe", lambda: Recipe(("mm",), {}, {}, alone))
    (kernel / "Makefile").write_text(MAKEFILE + "\techo '#define OWN 9' >usr/include/own.h\n")
    (kernel / "tools/mm").mkdir()
    (kernel / "tools/mm/own.c").write_text("#include <own.h>\nint main(void) { return OWN; }\n")
    (kernel / "tools/mm/bad.c").write_text("int main(void) { return nothing; }\n")
    programs = build.build(build.files_of(kernel))
    assert programs.built["tools/own"] == "static"
    assert subprocess.run([programs.top / "tools/own"], check=False).returncode == 9
    assert "nothing" in programs.failed["tools/bad"]
    assert "tools/absent" not in programs.failed, "a patch set that is not applied lacks its programs"
    (kernel / "tools/mm/own.c").write_text("int main(void) { return 1; }\n")
    assert build.build(build.files_of(kernel)).key != programs.key


def test_nothing_half_made_stays(kernel: Path, tmp_path: Path) -> None:
    build.build(build.files_of(kernel))
    (entry,) = (tmp_path / "cache/numalab/selftests").iterdir()
    assert sorted(path.name for path in entry.iterdir()) == ["build.log", "manifest.json", "mm"]


def test_headers_that_cannot_be_made(kernel: Path) -> None:
    (kernel / "Makefile").write_text(
        MAKEFILE.replace("\tmkdir -p usr/include/linux", "\t@echo 'x.h:3: error: no'; false")
    )
    with pytest.raises(ExperimentError, match="making the kernel's headers failed") as caught:
        build.build(build.files_of(kernel))
    assert "x.h:3: error: no" in str(caught.value)


def test_not_one_program(kernel: Path) -> None:
    for name in PROGRAMS:
        (kernel / f"tools/testing/selftests/{name}.c").write_text("int main(void) { return nothing; }\n")
    with pytest.raises(ExperimentError, match=r"nothing.* undeclared"):
        build.build(build.files_of(kernel))


def test_another_series_and_no_kernel(kernel: Path, tmp_path: Path) -> None:
    (kernel / "Makefile").write_text(MAKEFILE.replace("12", "1"))
    with pytest.raises(UserError, match=r"Linux 6\.1\.7"):
        build.files_of(kernel)
    with pytest.raises(UserError, match="is not a Linux source tree"):
        build.files_of(tmp_path)


def test_no_make(kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gcc = shutil.which("gcc")
    assert gcc
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gcc").symlink_to(gcc)
    monkeypatch.setattr("numalab.kernel.tools.which", lambda tool: None if tool == "make" else f"/usr/bin/{tool}")
    with pytest.raises(MissingError, match="make"):
        build.build(build.files_of(kernel))


def test_flags_of_the_caller_do_not_leak(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKEFLAGS", "-n")
    monkeypatch.setenv("EXTRA_CFLAGS", "-DKSFT_SKIP=9")
    programs = build.build(build.files_of(kernel))
    assert subprocess.run([programs.top / "mm/lacks_skip"], check=False).returncode == 4
    assert os.environ["MAKEFLAGS"] == "-n"


def test_group_of_which_nothing_is_built() -> None:
    group = Group("kvm", "", (Program("a", ("a",), 1.0),), "kvm")
    programs = build.Programs(Path("/x"), {"mm/cow": "static"}, {"kvm/a": "a.c:1: error: no"}, "key")
    with pytest.raises(ExperimentError, match=r"no program of group kvm could be built: a\.c:1: error: no"):
        build.check_any(programs, group)
    build.check_any(programs, Group("stress-ng", "", group.programs))


# The file of groups, as it is.


@pytest.fixture
def real_groups() -> dict[str, Group]:
    return catalogue.groups()


def test_groups(real_groups: dict[str, Group]) -> None:
    ours = ["pgtables", "pgrepl", "domains", "numa-mmu", "ksm-numa", "ksm"]
    assert list(real_groups) == ["mm", *ours, "x86", "futex", "proc", "kvm", "stress-ng"]
    assert real_groups["kvm"].nested
    assert real_groups["numa-mmu"].nested
    assert real_groups["stress-ng"].host_programs == ("stress-ng",)
    assert real_groups["mm"].host_programs == ()
    for group in real_groups.values():
        assert group.directory.split("/")[0] in (*catalogue.recipe().targets, "")
        for program in group.programs:
            assert 0 < program.timeout <= 900
            assert program.nodes <= group.nodes


def test_sysctls_and_defaults_of_a_group_reach_its_programs(real_groups: dict[str, Group]) -> None:
    mremap = next(program for program in real_groups["mm"].programs if program.name == "mremap_test")
    assert mremap.sysctls == {"vm.overcommit_memory": "1"}
    assert all("/dev/kvm" in program.needs for program in real_groups["kvm"].programs)
    assert all(program.skip_status == (3, 4) for program in real_groups["stress-ng"].programs)


def test_selecting_programs(real_groups: dict[str, Group]) -> None:
    mm = real_groups["mm"]
    assert mm.select(()) == mm.programs
    assert [program.name for program in mm.select(("cow",))] == ["cow"]
    assert [program.name for program in mm.select(("gup_test",))] == [
        "gup_test -u",
        "gup_test -a",
        "gup_test -ct -F 0x1 0 19 0x1000",
    ]
    with pytest.raises(UserError, match=r"group mm has no program 'cwo' \(did you mean 'cow'\?\)"):
        mm.select(("cwo",))


def test_unknown_group() -> None:
    with pytest.raises(UserError, match=r"unknown group 'futx' \(did you mean 'futex'\?\)"):
        catalogue.group("futx")


@pytest.mark.parametrize(
    ("programs", "words"),
    [('["a", "a"]', "names 1 programs twice"), ('[{ run = "a", hugepage = 3 }]', "a: unknown key 'hugepage'")],
)
def test_mistakes_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: str, words: str) -> None:
    file = tmp_path / "groups.toml"
    file.write_text(f'[groups.x]\nsummary = "x"\nprograms = {programs}\n')
    monkeypatch.setattr(catalogue, "FILE", file)
    with pytest.raises(ValueError, match=words):
        catalogue.groups()
