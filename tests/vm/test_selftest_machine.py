"""Test programs in a machine: every way they and the machine can end, and some of the kernel's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from numalab.kernel.image import KernelImage
from numalab.machine.session import Machine
from numalab.machine.topology import uniform
from numalab.selftest import catalogue, runner
from numalab.selftest.catalogue import Group, Program
from numalab.selftest.sources import built_programs
from numalab.selftest.verdict import Verdict
from tests.vm.kernel_programs import run_in

pytestmark = pytest.mark.vm

SCRIPTS = {
    "holds": "echo TAP version 13; echo 1..2; echo ok 1 one; echo 'ok 2 two # SKIP no need'",
    "fails": "echo 1..1; echo not ok 1 one; exit 1",
    "skips": "echo '1..0 # SKIP nothing here'; exit 4",
    "dies": "echo 1..2; echo ok 1 one; kill -SEGV $$",
    "hangs": "echo 1..2; echo ok 1 one; sleep 1000",
    "warns": "echo 'WARNING: CPU: 0 PID: 1 at mm/x.c:1 f+0x1/0x2' > /dev/kmsg; sleep 1; echo 1..1; echo ok 1 one",
    "panics": "echo 1..1; echo c > /proc/sysrq-trigger; sleep 60; echo ok 1 one",
    "looks": "test $(cat /proc/sys/vm/nr_hugepages) = 4 && test $(id -u) = 65534 && test $PWD = /tmp && echo 1..1 && "
    "echo ok 1 one",
    "after": "test $(cat /proc/sys/vm/nr_hugepages) = 0",
}


def machines(kernel: KernelImage, share: Path, logs: Path) -> Callable[[], object]:
    @contextmanager
    def opened() -> Iterator[Machine]:
        with Machine(kernel, uniform(2, 1, "512M"), accel="tcg", share=share, log_dir=logs) as machine:
            yield machine

    return opened


def test_every_end(stock: KernelImage, tmp_path: Path) -> None:
    share = tmp_path / "share/own"
    share.mkdir(parents=True)
    programs = []
    for name, text in SCRIPTS.items():
        (share / name).write_text(f"#!/bin/sh\n{text}\n")
        (share / name).chmod(0o755)
        programs.append(Program(name, (name,), 5.0 if name == "hangs" else 60.0))
    place = list(SCRIPTS).index("looks")
    programs[place] = Program("looks", ("looks",), 60.0, hugepages=4, user="nobody", nodes=2)
    for parent in share.parents:  # nobody must come through
        if parent.is_relative_to(tmp_path):
            parent.chmod(0o755)
    group = Group("own", "", tuple(programs), "own")
    opened = machines(stock, share.parent, tmp_path / "logs")
    results = runner.run(group, programs, opened, lambda _: "static")  # type: ignore[arg-type]
    assert {result.program: result.verdict for result in results} == {
        "holds": Verdict.PASS,
        "fails": Verdict.FAIL,
        "skips": Verdict.SKIP,
        "dies": Verdict.FAIL,
        "hangs": Verdict.TIMEOUT,
        "warns": Verdict.PASS,
        "panics": Verdict.LOST,
        "looks": Verdict.PASS,
        "after": Verdict.PASS,
    }
    found = {result.program: result for result in results}
    assert found["hangs"].tests == {"one": (Verdict.PASS, "")}
    assert found["panics"].reason.startswith("panic: ")
    assert found["warns"].complaints == ("WARNING: CPU: 0 PID: 1 at mm/x.c:1 f+0x1/0x2",)
    assert found["holds"].complaints == ()
    assert found["dies"].signal == 11


def test_the_kernels_own(stock: KernelImage, tmp_path: Path) -> None:
    """Built from the source with the series applied, and run on Debian's kernel, where they are known to hold."""
    built = built_programs()
    assert built.failed == {}
    wanted = {
        "mm": ("madv_populate", "mdwe_test", "mremap_dontunmap", "hugetlb_dio"),
        "x86": ("sigreturn_64", "test_vsyscall_64"),
        "proc": ("proc-pid-vm", "proc-self-map-files-002"),
        # With an argument. Not one of ksm_tests: what they wait for, two full scans, is at times one and a half.
        "futex": ("futex_requeue_pi, broadcast",),
    }
    with Machine(stock, uniform(2, 1, "512M"), accel="tcg", share=built.top, log_dir=tmp_path) as machine:
        groups = [(catalogue.group(name), names) for name, names in wanted.items()]
        found = {group.name: run_in(machine, group, group.select(names), built) for group, names in groups}
    for name, names in wanted.items():
        results = found[name]
        assert {result.program: result.verdict for result in results} == dict.fromkeys(names, Verdict.PASS)
        assert not any(result.complaints for result in results)
        reported = {result.program: len(result.tests) for result in results}
        assert reported.get("madv_populate", 21) == 21
        assert reported.get("mdwe_test", 36) == 36
