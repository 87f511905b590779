"""`numalab selftest`, and the source its programs come from."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from numalab.cli import selftest as cli
from numalab.cli.main import main
from numalab.kernel import images
from numalab.kernel.image import KernelImage
from numalab.machine import accel
from numalab.selftest import build, lab, record, runner
from numalab.selftest.build import Programs
from numalab.selftest.catalogue import Program
from numalab.selftest.record import Run
from numalab.selftest.sources import patched_files
from numalab.selftest.verdict import Verdict
from tests.unit.kernel_fakes import FAKE_LINUX, diff, make_lab

SELFTESTS = "tools/testing/selftests"


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli.command, words, standalone_mode=False, catch_exceptions=False)


# The source.


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A fake kernel source with two tests, and a series that changes one, deletes one and brings one."""
    room = make_lab(tmp_path, monkeypatch)
    tree = room.tree()
    before = {
        f"{SELFTESTS}/mm/old.c": "int old;\n",
        f"{SELFTESTS}/mm/gone.c": "int gone;\n",
        f"{SELFTESTS}/lib.mk": "all:\n",
    }
    for name, text in before.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    after = {**before, f"{SELFTESTS}/mm/old.c": "int changed;\n", f"{SELFTESTS}/mm/new.c": "int new;\n"}
    after["Documentation/new.rst"] = "words\n"
    del after[f"{SELFTESTS}/mm/gone.c"]
    patch = room.patches / "common/0001-x.patch"
    patch.parent.mkdir()
    patch.write_text("Subject: x\n\n---\n" + diff(room.top / "diff", before, after))
    room.series("common/0001-x.patch")
    return tree, tmp_path


def test_patches_are_applied_to_what_is_built(sources: tuple[Path, Path]) -> None:
    tree, _ = sources
    before = {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    with patched_files(str(tree)) as files:
        texts = {name: file.read_text() for name, file in files.items() if name.startswith(SELFTESTS)}
        assert "Makefile" in files
        assert "Documentation/new.rst" not in files
        assert "mm/memory.c" not in files
    assert texts == {
        f"{SELFTESTS}/mm/old.c": "int changed;\n",
        f"{SELFTESTS}/mm/new.c": "int new;\n",
        f"{SELFTESTS}/lib.mk": "all:\n",
    }
    assert {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()} == before


def test_source_without_patches(sources: tuple[Path, Path]) -> None:
    tree, _ = sources
    with patched_files(str(tree), sets=["none"]) as files:
        assert files[f"{SELFTESTS}/mm/old.c"].read_text() == "int old;\n"
        assert f"{SELFTESTS}/mm/gone.c" in files
        assert f"{SELFTESTS}/mm/new.c" not in files


# The verb.


def test_list() -> None:
    plain = invoke("list")
    assert "mm: " in plain.output
    assert "    ksm_tests -N -m 1\n" in plain.output
    groups = json.loads(invoke("list", "--json").output)
    assert "cow" in next(group for group in groups if group["name"] == "mm")["programs"]


def test_unknown_group_and_program_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["run", "mmm"], ["run", "mm", "-p", "cwo"]):
        with pytest.raises(SystemExit) as caught:
            main(["selftest", *words])
        assert caught.value.code == 2
        assert "did you mean" in capsys.readouterr().err


class Bench:
    """Stands for the machine: `verdicts` says what each program comes to on each kernel, repeat by repeat."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.verdicts: dict[tuple[str, str], list[Verdict]] = {}
        self.settings: list[lab.Setting] = []
        monkeypatch.setattr(runner, "run", self.run)
        monkeypatch.setattr(images, "resolve", self.resolve)
        monkeypatch.setattr(accel, "choose", lambda wanted: "tcg")
        built = {f"futex/functional/{name}": "static" for name in ("futex_wait", "futex_requeue")}
        programs = Programs(Path("/built"), built, {"mm/cow": "no"}, "key")
        monkeypatch.setattr(cli, "built_programs", lambda source: programs)
        real = lab.run

        def remember(setting: lab.Setting, *args: Any, **more: Any) -> Run:
            self.settings.append(setting)
            return real(setting, *args, **more)

        monkeypatch.setattr(lab, "run", remember)

    def resolve(self, name: str, **_: Any) -> KernelImage:
        return KernelImage(name, Path(f"/boot/{name}"), f"6.12-{name}", build_id=name)

    def run(self, group: Any, programs: list[Program], opened: Any, linkage: Any, *, on_result: Any, **_: Any) -> None:
        kernel = self.settings[-1].kernel.name
        for program in programs:
            left = self.verdicts.get((kernel, program.name), [])
            verdict = left.pop(0) if left else Verdict.PASS
            on_result(runner.Result(program.name, verdict, "" if verdict.good else "it broke"))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Bench(monkeypatch)


RUN = ["run", "futex", "-p", "futex_wait", "-p", "futex_requeue"]


def test_run_against_the_stock_kernel(bench: Bench, tmp_path: Path) -> None:
    bench.verdicts["stock", "futex_wait"] = [Verdict.PASS, Verdict.FAIL, Verdict.PASS]
    bench.verdicts["patched", "futex_wait"] = [Verdict.FAIL]
    done = invoke(*RUN)
    assert done.return_value == 0
    assert "stock (baseline) 3/3: pass       futex_requeue" in done.output
    assert "patched: fail       futex_wait: it broke" in done.output
    assert "flaky: futex_wait\n    baseline: pass 2/3, fail 1/3; now: fail 1/1" in done.output
    out = tmp_path / "results/selftest-futex-patched"
    assert len(record.load(out / "baseline.json").repeats) == 3
    assert record.load(out).kernel["name"] == "patched"
    assert json.loads((out / "comparison.json").read_text())["differences"][0]["judgement"] == "flaky"
    assert [setting.topology.cpus for setting in bench.settings] == [4, 4]


def test_regression_is_status_1_unless_explained(bench: Bench, tmp_path: Path) -> None:
    bench.verdicts["patched", "futex_wait"] = [Verdict.LOST] * 2
    done = invoke(*RUN, "--repeat", "2", "--out", "out")
    assert done.return_value == 1
    assert "regression: futex_wait\n    baseline: pass 3/3; now: lost 2/2" in done.output
    why = tmp_path / "why.toml"
    why.write_text('[[explained]]\ntest = "futex_wait"\nwhy = "known"\n')
    assert invoke("compare", "out", "out/baseline.json").return_value == 1
    explained = invoke("compare", "out", "out/baseline.json", "--explain", str(why))
    assert explained.return_value == 0
    assert "explained: known" in explained.output


def test_baseline_is_kept_for_the_next_run(bench: Bench) -> None:
    invoke(*RUN)
    done = invoke(*RUN)
    assert "baseline) 1/3" not in done.output
    assert "no difference" in done.output
    assert "baseline) 1/3" in invoke(*RUN, "--fresh-baseline").output
    assert "baseline) 1/3" in invoke(*RUN, "--append", "nosmp").output


def test_words_for_the_kernel_under_test_alone(bench: Bench) -> None:
    invoke(*RUN, "--append", "nosmp", "--append-own", "kvm.numa_mmu=local")
    assert [setting.append for setting in bench.settings] == ["nosmp", "nosmp kvm.numa_mmu=local"]
    done = invoke(*RUN, "--append", "nosmp", "--append-own", "kvm.numa_mmu=replicate")
    assert "baseline) 1/3" not in done.output


def test_files_of_the_kernel_under_test_alone(bench: Bench) -> None:
    policy, threads = "/sys/kernel/mm/ksm/numa_policy", "/sys/kernel/mm/ksm/scan_threads"
    invoke(*RUN, "--own-set", f"{policy}=fair", "--own-set", f"{threads}=4")
    assert [setting.files for setting in bench.settings] == [(), ((policy, "fair"), (threads, "4"))]
    assert len({setting.key() for setting in bench.settings}) == 2


@pytest.mark.parametrize("given", ["numa_policy=fair", "/sys/x", "/sys/x=", "=1"])
def test_what_is_no_file_with_a_value(bench: Bench, given: str) -> None:
    with pytest.raises(click.BadParameter, match="write FILE=VALUE"):
        invoke(*RUN, "--own-set", given)
    assert bench.settings == []


def test_without_a_baseline_a_failing_program_is_status_1(bench: Bench) -> None:
    bench.verdicts["stock", "futex_wait"] = [Verdict.FAIL]
    assert invoke(*RUN, "--kernel", "stock").return_value == 1
    assert invoke(*RUN, "--kernel", "stock").return_value == 0
    bench.verdicts["patched", "futex_wait"] = [Verdict.TIMEOUT]
    done = invoke(*RUN, "--no-baseline", "--json")
    assert done.return_value == 1
    assert len(bench.settings) == 3


def test_json_on_stdout_is_nothing_but_json(bench: Bench) -> None:
    bench.verdicts["patched", "futex_wait"] = [Verdict.FAIL]
    done = invoke(*RUN, "--json")
    value = json.loads(done.stdout)
    assert value["differences"][0]["program"] == "futex_wait"
    assert value["differences"][0]["blames"] is True
    assert value["baseline"]["programs"]["futex_wait"]["standing"] == "stable-pass"
    assert "patched: fail" in done.stderr


def test_group_that_is_not_built(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["selftest", "run", "mm", "-p", "cow"])
    assert caught.value.code == 1
    assert "no program of group mm could be built: no" in capsys.readouterr().err


def test_build_says_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = Programs(Path("/built"), {"mm/a": "static", "mm/b": "dynamic"}, {"mm/c": "c.c:1: error: no"}, "key")
    monkeypatch.setattr(build, "build", lambda files, say: programs)
    monkeypatch.setattr(build, "missing_libraries", lambda: ["libcap-dev"])

    @contextmanager
    def no_files(source: str | None, **_: Any) -> Any:
        assert source == str(FAKE_LINUX)
        yield {}

    monkeypatch.setattr("numalab.selftest.sources.patched_files", no_files)
    done = invoke("build", "--source", str(FAKE_LINUX))
    assert done.output.splitlines() == [
        "2 programs (1 static) in /built",
        "not built: mm/c: c.c:1: error: no",
        "some may need: apt-get install libcap-dev",
    ]
    assert json.loads(invoke("build", "--source", str(FAKE_LINUX), "--json").output)["failed"] == programs.failed
