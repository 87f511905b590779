"""The command: exit statuses, nearest words, speed, completion, and verbs that say what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from numalab.cli import main as cli
from numalab.errors import ExperimentError, MachineLostError, MissingError, UserError


def numalab(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "numalab", *argv], capture_output=True, text=True, check=False)


def test_help_lists_every_verb_and_imports_none_of_them() -> None:
    done = numalab("--help")
    assert done.returncode == 0
    for verb in cli.VERBS:
        assert f"\n  {verb} " in done.stdout
    probe = (
        "import sys\nfrom numalab.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'pandas', 'matplotlib', 'scipy', 'drgn', 'libvirt', 'rich'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_has_help(verb: str) -> None:
    command = cli.cli.get_command(click.Context(cli.cli), verb)
    assert command is not None
    assert command.help or command.short_help


def test_a_mistyped_verb() -> None:
    done = numalab("snapshto")
    assert done.returncode == 2
    assert "did you mean 'snapshot'?" in done.stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ExperimentError("it failed"), 1),
        (UserError("you wrote x", remedy="write y"), 2),
        (MissingError("no z", remedy="apt-get install z"), 3),
        (MachineLostError("gone"), 4),
    ],
)
def test_each_kind_of_error_has_its_exit_status(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli.cli, "main", fail)
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == status
    said = capsys.readouterr().err
    assert str(error) in said
    assert getattr(error, "remedy", "") in said


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    done = numalab("completion", shell)
    assert done.returncode == 0
    assert "_NUMALAB_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("boot", "--node", "banana"), "write CPUS:SIZE, e.g. 2:512M"),
        (("boot", "--nodes", "0"), "at least one node"),
        (("boot", "--cpus-per-node", "0"), "at least one CPU"),
        (("boot", "--distances", "10,20"), "square of 4 × 4"),
        (("boot", "--distances", "a,b"), "write numbers"),
        (("boot", "--nodes", "2", "--distances", "10,20/30,10"), "0→1 is 20, 1→0 is 30"),
        (("snapshot", "--nodes", "2", "--distances", "10,20/30,10"), "(--asymmetric) if that is meant"),
        (("boot", "--node-memory", "lots"), "'lots' is not a size"),
        (("boot", "--node-memory", "900T"), "this host has"),
        (("boot", "--accel", "hvf"), "unknown accelerator 'hvf'"),
        (("boot", "--kernel", "stokc", "--accel", "tcg"), "did you mean 'stock'?"),
        (("boot", "--share", "/no/such/place", "--accel", "tcg"), "/no/such/place"),
    ],
)
def test_boot_says_what_is_wrong(argv: tuple[str, ...], words: str) -> None:
    done = numalab(*argv, "--", "true")
    assert done.returncode == 2, done.stderr
    assert words in done.stderr


def test_distances_that_differ_on_purpose() -> None:
    shape = ("--nodes", "2", "--distances", "10,20/30,10", "--asymmetric")
    done = numalab("boot", "--accel", "tcg", "--dry-run", *shape)
    assert done.returncode == 0, done.stderr
    assert re.findall(r'<sibling id="\d" value="(\d+)"', done.stdout) == ["10", "20", "30", "10"]


def test_no_such_host_program() -> None:
    done = numalab("boot", "--accel", "tcg", "--host-program", "no-such-program", "--", "true")
    assert done.returncode == 3
    assert "no program no-such-program" in done.stderr


def test_dry_run_prints_the_domain() -> None:
    done = numalab("boot", "--accel", "tcg", "--dry-run", "--nodes", "3")
    assert done.returncode == 0
    assert done.stdout.count("<cell ") == 3


def test_a_closed_pipe_is_not_a_traceback() -> None:
    done = subprocess.run(
        f"{sys.executable} -m numalab completion bash | head -c1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr


def test_help_is_quick() -> None:
    """Processor time, so that a busy host does not decide; the promise of 0.2 s is held by `make bench`."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    numalab("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    assert time.monotonic() - start < 10


def test_doctor_without_a_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    done = numalab("doctor", "--no-probe", "--json")
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert found["python"]["state"] == "ok"
    assert {"qemu-system-x86_64", "disk", "memory", "libvirt", "numa", "memory of QEMU"} <= set(found)
    # Without tools in PATH each one is missing, and the way to get it is said.
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("numalab.kernel.tools.which", lambda _: None)
    from numalab.doctor import examine

    lacks = [finding for finding in examine(probe=False) if finding.state == "missing"]
    assert {"gcc", "busybox"} <= {finding.check for finding in lacks}
    assert all(finding.fix.startswith("apt-get install") for finding in lacks if finding.check in ("gcc", "busybox"))
