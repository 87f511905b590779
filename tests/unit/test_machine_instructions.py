"""Machines that count instructions: what QEMU and the guest's kernel are told, and what such a machine cannot be."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from numalab.errors import UserError
from numalab.kernel.image import KernelImage
from numalab.machine import instructions
from numalab.machine.domain import to_xml
from numalab.machine.session import HANG_AFTER, Machine
from numalab.machine.topology import uniform
from numalab.run import lab
from numalab.run.check import load
from numalab.run.lab import MachineRequest
from numalab.run.machines import kind_of
from numalab.run.matrix import points
from numalab.run.plan import Cell, plan
from tests.unit.fake_lab import World, make_lab

QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
COUNT = '[run]\ncount = "instructions"\n'


def test_boot_says_so_to_qemu_and_the_kernel() -> None:
    words = ["-m", "numalab", "boot", "--count-instructions", "--append", "ro", "--dry-run"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tree = ET.fromstring(done.stdout)
    args = [arg.get("value") for arg in tree.iter(f"{QEMU}arg")]
    assert args[-2:] == ["-icount", "shift=0"]
    assert tree.get("type") == "qemu"
    cmdline = tree.findtext("os/cmdline", "").split()
    assert set(instructions.KERNEL_WORDS) < set(cmdline)
    assert cmdline[-1] == "ro"  # the user's words come last and win


def machine(tmp_path: Path, **options: bool) -> Machine:
    kernel = KernelImage("k", tmp_path / "bzImage", "6.12")
    return Machine(kernel, uniform(), accel="tcg", **options)  # type: ignore[arg-type]


def test_only_when_asked_for(tmp_path: Path) -> None:
    assert "icount" not in to_xml(machine(tmp_path).spec)
    assert not machine(tmp_path).count_instructions
    counting = machine(tmp_path, count_instructions=True)
    assert counting.count_instructions
    assert counting.hang_after > HANG_AFTER  # its seconds are longer than ours


def test_not_under_kvm() -> None:
    with pytest.raises(UserError, match="in emulation only") as caught:
        instructions.check_accel("kvm")
    assert "--accel kvm" in caught.value.remedy
    assert {instructions.check_accel(wanted) for wanted in ("auto", "tcg")} == {"tcg"}


def test_a_machine_that_counts_is_another_machine(tmp_path: Path) -> None:
    kernel = KernelImage("k", tmp_path / "bzImage", "6.12")
    plain = MachineRequest(kernel, uniform())
    assert kind_of(plain) != kind_of(MachineRequest(kernel, uniform(), count_instructions=True))


def cells(tmp_path: Path, run: str) -> list[Cell]:
    (tmp_path / "exp.toml").write_text('[matrix]\nworkload = ["gups"]\n' + run)
    laboratory = make_lab(World(), tmp_path)
    experiment = load(tmp_path / "exp.toml", laboratory)
    found, _ = plan(experiment, points(experiment, repeats=1), laboratory, accel="tcg")
    return found


def test_an_experiment_asks_for_it(tmp_path: Path) -> None:
    (counting,) = cells(tmp_path, COUNT)
    assert counting.machine.count_instructions
    assert counting.params["machine"]["count"] == "instructions"


def test_cells_that_do_not_count_keep_their_names(tmp_path: Path) -> None:
    (plain,) = cells(tmp_path, "")
    assert not plain.machine.count_instructions
    assert "count" not in plain.params["machine"]
    assert plain.id != cells(tmp_path, COUNT)[0].id


def test_nothing_else_can_be_counted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.count: 'cycles' is not 'instructions'"):
        cells(tmp_path, '[run]\ncount = "cycles"\n')


def test_the_laboratory_asks_for_emulation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where KVM works, and is what "auto" would mean."""
    made: dict[str, object] = {}

    class Fake:
        def __init__(self, *_: object, **options: object) -> None:
            made.update(options)

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("numalab.machine.session.Machine", Fake)
    monkeypatch.setattr("numalab.machine.accel.kvm_problem", lambda: "")
    request = MachineRequest(KernelImage("k", tmp_path, "6.12"), uniform(), count_instructions=True)
    with lab.default_lab().open_machine(request, tmp_path):
        pass
    assert made["accel"] == "tcg"
    assert made["count_instructions"] is True
