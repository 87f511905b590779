"""A numalab that is killed leaves nothing behind after the next start, and does not disturb its neighbours."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from numalab.kernel.image import KernelImage
from numalab.machine import hypervisor
from numalab.machine.session import Machine
from numalab.machine.topology import uniform

pytestmark = pytest.mark.vm

PRELUDE = """
import time
from numalab.kernel.images import resolve
from numalab.machine import hypervisor
from numalab.machine.session import Machine
from numalab.machine.topology import uniform
new = Machine(resolve("stock"), uniform(1, 1, "256M"), accel="tcg")
"""
CHILD = f"""{PRELUDE}
with new as machine:
    machine.run(["true"], check=True)
    print(machine.qemu_pid, hypervisor.home(), flush=True)
    time.sleep(600)
"""


#: Where it is when it is killed: what it has done by then, and is doing.
MOMENTS = {
    "booting": f"{PRELUDE}print(hypervisor.home(), flush=True)\nnew.boot()\n",
    "a command runs": CHILD.replace("print(", 'machine.start(["sleep", "600"])\n    print('),
    "paused": CHILD.replace("time.sleep(600)", "machine.paused().__enter__()\n    time.sleep(600)"),
}


def start_child() -> tuple[subprocess.Popen[str], int, Path]:
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    pid, home = child.stdout.readline().split()
    return child, int(pid), Path(home)


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_what_a_killed_numalab_left_is_swept(stock: KernelImage) -> None:
    killed, stray, left = start_child()
    neighbour, alive, kept = start_child()
    try:
        killed.kill()
        killed.wait()
        assert Path(f"/proc/{stray}").exists(), "QEMU outlives its numalab: that is what sweeping is for"
        assert left in hypervisor.sweep()
        assert gone(stray)
        assert not left.exists()
        # The neighbour's machine was not touched, nor is a machine of this process.
        assert kept.exists()
        assert Path(f"/proc/{alive}").exists()
        with Machine(stock, uniform(1, 1, "256M"), accel="tcg") as machine:
            assert hypervisor.sweep() == []
            assert machine.run(["true"]).ok
    finally:
        neighbour.send_signal(signal.SIGINT)
        neighbour.wait(timeout=30)
    # Interrupted, it cleaned up by itself.
    assert gone(alive)
    assert not kept.exists()


def qemu_of(home: Path) -> int:
    """The pid of the QEMU whose sockets are below `home`, as soon as there is one."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                text = cmdline.read_bytes()
                if b"qemu-system" in text.split(b"\0")[0] and str(home).encode() in text:
                    return int(cmdline.parent.name)
        time.sleep(0.02)
    raise AssertionError(f"no QEMU of {home}")


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_another_moment(moment: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", MOMENTS[moment]], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    home = Path(child.stdout.readline().split()[-1])
    stray = qemu_of(home)
    child.kill()
    child.wait()
    argv = ["boot", "--accel", "tcg", "--nodes", "1", "--node-memory", "256M", "--", "true"]
    command = [sys.executable, "-m", "numalab", *argv]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert gone(stray)
    assert not home.exists()


def test_a_machine_that_is_closed_leaves_no_file(stock: KernelImage) -> None:
    with Machine(stock, uniform(1, 1, "256M"), accel="tcg") as machine:
        pid, directory = machine.qemu_pid, machine.dir
    assert gone(pid)
    assert not directory.exists()
    assert any(hypervisor.home().iterdir())
