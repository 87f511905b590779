"""Commands in a machine: output byte for byte, status, signals, marks, files, time-outs."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from numalab.errors import MachineLostError
from numalab.kernel.image import KernelImage
from numalab.machine import console, outcome
from numalab.machine.session import Machine
from numalab.machine.topology import Node, Topology, uniform

pytestmark = pytest.mark.vm


@pytest.mark.parametrize("machine", ["stock4", "patched4"])
def test_the_kernel_has_nothing_to_complain_about(machine: str, request: pytest.FixtureRequest) -> None:
    """Its whole log, not only what the console shows: no WARNING, and no cache that siblings of two nodes share."""
    log = request.getfixturevalue(machine).run(["dmesg"], check=True).stdout.decode(errors="replace")
    assert "Linux version 6.12" in log
    assert console.complaints(log.splitlines()) == []
    assert "is not on the same node" not in log


def test_a_node_of_several_cpus_is_a_package(stock: KernelImage) -> None:
    with Machine(stock, uniform(2, 2, "256M"), accel="tcg") as machine:
        log = machine.run(["dmesg"], check=True).stdout.decode(errors="replace")
        assert console.complaints(log.splitlines()) == []
        assert "is not on the same node" not in log
        top = "/sys/devices/system/cpu"
        shared = [machine.read_file(f"{top}/cpu{cpu}/cache/index3/shared_cpu_list").strip() for cpu in range(4)]
        assert shared == [b"0-1", b"0-1", b"2-3", b"2-3"]
        package = [machine.read_file(f"{top}/cpu{cpu}/topology/physical_package_id").strip() for cpu in range(4)]
        assert package == [b"0", b"0", b"1", b"1"]


SWITCH_STATIC_BRANCHES = """
for cpu in 1 2 3 4 5 6 7; do (while :; do echo x | cat >/dev/null; done) & done
round=0
while [ $round -lt 100 ]; do
    echo 1 >/proc/sys/kernel/sched_schedstats; echo 0 >/proc/sys/kernel/sched_schedstats; round=$((round + 1))
done
echo $round rounds
kill -9 -1
"""


def test_a_kernel_that_patches_itself_under_load_goes_on(stock: KernelImage) -> None:
    """QEMU 7.2 loses it, with a thread for each vCPU, after a hundred rounds or two (numalab/machine/emulator.py)."""
    with Machine(stock, uniform(4, 2, "256M"), accel="tcg") as machine:
        done = machine.run(["sh", "-c", SWITCH_STATIC_BRANCHES], timeout=240)
        assert done.stdout == b"100 rounds\n"
        assert machine.complaints == []


def test_output_and_status_come_back_byte_for_byte(stock4: Machine) -> None:
    junk = bytes(range(256)) * 3000
    done = stock4.run(["sh", "-c", "cat; printf '\\377\\0err' >&2; exit 7"], stdin=junk)
    assert (done.status, done.signal, done.stdout, done.stderr) == (7, None, junk, b"\xff\0err")


def test_a_signal_is_not_a_status(stock4: Machine) -> None:
    done = stock4.run(["sh", "-c", "kill -SEGV $$"])
    assert (done.status, done.signal, done.type, done.ok) == (None, 11, "signal", False)


def test_a_command_that_exits_without_a_word(stock4: Machine) -> None:
    done = stock4.run(["false"])
    assert (done.status, done.stdout, done.stderr) == (1, b"", b"")
    with pytest.raises(outcome.CommandFailedError, match="false exited with status 1"):
        stock4.run(["false"], check=True)


def test_a_hundred_megabytes_of_output(stock4: Machine) -> None:
    done = stock4.run(["dd", "if=/dev/zero", "bs=1M", "count=100"], timeout=120)
    assert len(done.stdout) == 100 << 20
    assert not done.stdout.strip(b"\0")


def test_output_of_what_a_command_left_in_the_background_does_not_hold_it_up(stock4: Machine) -> None:
    start = time.monotonic()
    assert stock4.run(["sh", "-c", "sleep 60 & echo started"], timeout=30).stdout == b"started\n"
    assert time.monotonic() - start < 30


def test_a_program_that_is_not_there(stock4: Machine) -> None:
    with pytest.raises(outcome.GuestFileError) as caught:
        stock4.run(["no-such-program"])
    assert caught.value.errno == errno.ENOENT


def test_a_time_out_kills_the_command_and_leaves_the_machine_good(stock4: Machine) -> None:
    with pytest.raises(outcome.CommandTimeoutError, match="longer than 1 s"):
        stock4.run(["sh", "-c", "while :; do :; done"], timeout=1)
    assert stock4.run(["true"]).ok


def test_marks_stop_the_command_until_they_are_served(stock4: Machine) -> None:
    script = "for m in ready done; do echo $m >&$NUMALAB_MARK_FD; head -c1 <&$NUMALAB_MARK_FD >/dev/null; done"
    seen = []

    def on_mark(mark: outcome.Mark, machine: Machine) -> None:
        # The command waits in its read of one byte while other commands run.
        waiting = any(machine.run(["pidof", "head"]).ok for _ in range(100))
        seen.append((mark.name, waiting))

    done = stock4.run(["sh", "-c", script], on_mark=on_mark, timeout=30)
    assert [mark.name for mark in done.marks] == ["ready", "done"]
    assert seen == [("ready", True), ("done", True)]
    assert done.marks[0].time_s <= done.marks[1].time_s


def test_files_of_the_guest(stock4: Machine) -> None:
    data = os.urandom(300_000)
    stock4.write_file("/tmp/data", data)
    assert stock4.read_file("/tmp/data") == data
    assert b"Node 3" in stock4.read_file("/sys/devices/system/node/node3/meminfo")
    with pytest.raises(outcome.GuestFileError) as caught:
        stock4.write_file("/proc/sys/vm/swappiness", b"nonsense\n")
    assert caught.value.errno == errno.EINVAL


def test_commands_side_by_side(stock4: Machine) -> None:
    results: dict[int, bytes] = {}

    def work(n: int) -> None:
        results[n] = stock4.run(["sh", "-c", f"sleep 0.2; echo {n}"]).stdout

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: b"%d\n" % n for n in range(16)}


def test_the_guest_sees_four_nodes_and_their_distances(stock4: Machine) -> None:
    rows = stock4.run(["sh", "-c", "cat /sys/devices/system/node/node*/distance"]).stdout.split(b"\n")
    assert [row.split() for row in rows[:4]] == [[b"10" if i == j else b"20" for j in range(4)] for i in range(4)]


def test_the_sandbox_is_on_and_there_is_no_network(stock4: Machine) -> None:
    argv = stock4.facts()["qemu_argv"]
    assert argv[argv.index("-sandbox") + 1].startswith("on,")
    assert stock4.run(["ls", "/sys/class/net"]).stdout.split() == [b"lo"]


def test_the_share_is_there_and_read_only(stock: KernelImage, tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"\0\xff shared")
    # An odd machine at the same time: asymmetric distances, a memoryless node, a CPU-less one, five levels.
    odd = Topology(
        (Node(1, 256 << 20), Node(1, 0), Node(0, 128 << 20)), ((10, 20, 30), (21, 10, 22), (31, 32, 10)), True, 5
    )
    with Machine(stock, odd, accel="tcg", share=tmp_path, host_programs=["git", "perl"]) as machine:
        assert machine.read_file("/share/hello") == b"\0\xff shared"
        with pytest.raises(outcome.GuestFileError) as caught:
            machine.write_file("/share/new", b"x")
        assert caught.value.errno == errno.EROFS
        node = "/sys/devices/system/node"
        assert machine.read_file(f"{node}/has_cpu").strip() == b"0-1"
        assert machine.read_file(f"{node}/has_memory").strip() == b"0,2"
        distances = [machine.read_file(f"{node}/node{n}/distance").split() for n in range(3)]
        assert distances == [[b"%d" % value for value in row] for row in odd.distances]
        assert b"la57" in machine.read_file("/proc/cpuinfo").split()
        assert b"57 bits virtual" in machine.read_file("/proc/cpuinfo")
        # With addresses of the wrong width a program's stack lies where its own kernel cannot read it.
        assert machine.run(["readlink", "/proc/self/exe"]).stdout == b"/bin/busybox\n"
        # Dynamic programs of the host, by name; one has libraries of its own in a script language.
        assert machine.run(["git", "--version"]).stdout.startswith(b"git version")
        assert machine.run(["perl", "-MPOSIX", "-e", "print POSIX::floor(42.5)"]).stdout == b"42"


def test_an_oblivious_guest_sees_one_node(stock: KernelImage) -> None:
    with Machine(stock, uniform(2, 1, "256M", visible=False), accel="tcg") as machine:
        assert machine.read_file("/sys/devices/system/node/online").strip() == b"0"
        assert b"la57" not in machine.read_file("/proc/cpuinfo").split()
        with pytest.raises(outcome.GuestPanicError) as caught:
            machine.run(["sh", "-c", "echo c > /proc/sysrq-trigger"], timeout=60)
        assert "sysrq triggered crash" in str(caught.value)
        assert "sysrq_handle_crash" in caught.value.oops
        assert isinstance(caught.value, MachineLostError)


def test_qemu_that_dies_is_reported_as_that(stock: KernelImage) -> None:
    with Machine(stock, uniform(1, 1, "256M"), accel="tcg") as machine:
        process = machine.start(["sleep", "100"])
        os.kill(machine.qemu_pid, 9)
        with pytest.raises(outcome.QemuDiedError, match="crashed"):
            process.wait(timeout=60)


def test_what_qemu_said_when_it_would_not_start(stock: KernelImage) -> None:
    machine = Machine(stock, uniform(1, 1, "256M"), accel="tcg")
    machine.spec = replace(machine.spec, extra_args=("-device", "no-such-device"))
    with pytest.raises(outcome.QemuDiedError, match="'no-such-device' is not a valid device model name"), machine:
        pass


def test_without_qemu_it_is_said_how_to_get_it(tmp_path: Path) -> None:
    for directory in os.environ["PATH"].split(":"):
        for program in Path(directory).glob("*"):
            link = tmp_path / program.name
            if not program.name.startswith("qemu") and not link.is_symlink():
                link.symlink_to(program)
    command = [sys.executable, "-m", "numalab", "boot", "--accel", "tcg", "--", "true"]
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 3, done.stderr
    assert "apt-get install qemu-system-x86" in done.stderr


def test_a_panic_in_the_first_process_is_a_panic(stock: KernelImage) -> None:
    with (
        pytest.raises(outcome.GuestPanicError, match=r"kill init|No working init"),
        Machine(stock, uniform(1, 1, "256M"), accel="tcg", append="rdinit=/bin/false"),
    ):
        pass


def test_a_first_process_that_loops_for_ever_is_a_boot_failure(stock: KernelImage, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.write_text("#!/bin/sh\nwhile :; do :; done\n")
    loop.chmod(0o755)
    start = time.monotonic()
    with (
        pytest.raises(outcome.BootFailureError, match="did not answer within 20 s"),
        Machine(
            stock,
            uniform(1, 1, "256M"),
            accel="tcg",
            append="rdinit=/loop",
            extra_files={"/loop": loop},
            boot_timeout=20,
        ),
    ):
        pass
    assert time.monotonic() - start < 60


def test_a_guest_without_a_heartbeat_is_a_hang(stock: KernelImage) -> None:
    with Machine(stock, uniform(1, 1, "256M"), accel="tcg", hang_after=6) as machine:
        pid = int(machine.run(["sh", "-c", "echo $PPID"]).stdout)
        assert pid == 1
        process = machine.start(["sleep", "100"])
        # Stop the vCPUs behind the laboratory's back: QEMU lives, the guest is silent.
        machine._domain.suspend()
        with pytest.raises(outcome.GuestHangError, match="no heartbeat"):
            process.wait(timeout=60)


def test_a_guest_that_powers_off_without_a_word(stock: KernelImage) -> None:
    with (
        Machine(stock, uniform(1, 1, "256M"), accel="tcg") as machine,
        pytest.raises(outcome.QemuDiedError, match="shutdown"),
    ):
        machine.run(["poweroff", "-f"], timeout=60)
