"""The tool pgrepl of the patch set mitosis: what it does to processes, and what it ends with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mitosis.replication import REPLICATION
from numalab.kernel.image import KernelImage
from numalab.machine.outcome import Completed
from numalab.machine.session import Machine
from numalab.machine.topology import uniform
from numalab.measure import pgtable_repl
from numalab.selftest.sources import built_programs

pytestmark = [pytest.mark.vm, pytest.mark.patch_set("mitosis")]

TOOL = "/bin/pgrepl"


@pytest.fixture(scope="module")
def machine(patched: KernelImage) -> Iterator[Machine]:
    built = built_programs()
    assert built.linkage("tools/pgrepl") == "static"
    tool = {TOOL: built.top / "tools/pgrepl"}
    with Machine(patched, uniform(4, 1, "256M"), accel="tcg", extra_files=tool) as machine:
        yield machine
        assert not machine.complaints


def pgrepl(machine: Machine, words: str) -> Completed:
    return machine.run([TOOL, *words.split()], timeout=60)


@pytest.mark.parametrize(
    ("words", "mode", "nodes", "flags"),
    [
        ("run", "lazy", "nodes 0-3", "flags fork exec"),
        ("run -e -n 1,3", "eager", "nodes 1,3", "flags fork exec"),
        ("run -n 0 --no-inherit --", "lazy", "nodes 0", "flags exec"),
    ],
)
def test_run(machine: Machine, words: str, mode: str, nodes: str, flags: str) -> None:
    done = pgrepl(machine, f"{words} cat /proc/self/pgtable_repl")
    assert done.ok, done
    assert done.stdout.decode().splitlines()[:3] == [f"mode {mode}", nodes, flags]


def test_run_ends_as_its_program_does(machine: Machine) -> None:
    assert machine.run([TOOL, "run", "sh", "-c", "exit 7"]).status == 7
    assert machine.run([TOOL, "run", "--", "sh", "-c", "kill -9 $$"]).signal == 9


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ("run", 125, "which program?"),
        ("run -n 0-x true", 125, "no list of nodes"),
        ("run -n 9 true", 125, "are all the nodes online?"),
        ("run --nonsense true", 125, ""),
        ("run /proc/version", 126, "/proc/version: "),
        ("run /tmp", 126, "/tmp: "),
        ("run no-such-program", 127, "no-such-program: "),
        ("", 2, "usage: "),
        ("sow 1", 2, "none of run, show, set"),
        ("show", 2, "which process?"),
        ("show x", 2, "no process"),
        ("show 999999", 1, "no process 999999"),
        ("set 1 of", 2, "off, lazy or eager"),
        ("set 1 off -n 0", 2, "off is off on all nodes"),
        ("set 999999 lazy", 1, "no process 999999"),
        ("migrate 1", 2, "needs a process and a node"),
        ("follow 1 maybe", 2, "on or off"),
    ],
)
def test_errors(machine: Machine, words: str, status: int, says: str) -> None:
    done = pgrepl(machine, words)
    assert (done.status, says in done.stderr.decode()) == (status, True), done.stderr


def test_run_where_replicas_are_refused(machine: Machine) -> None:
    before = machine.read_file(REPLICATION)
    machine.write_file(REPLICATION, b"0\n")
    try:
        done = pgrepl(machine, "run true")
    finally:
        machine.write_file(REPLICATION, before)
    assert (done.status, b"vm.pgtable_replication is 0" in done.stderr) == (125, True), done.stderr


def test_of_a_running_process(machine: Machine) -> None:
    """set, show, migrate and follow, each against what the kernel says afterwards."""
    process = machine.start(["sleep", "1000"])
    try:
        pid = process.pid
        assert pgrepl(machine, f"set {pid} eager -n 0-2").ok
        state = pgtable_repl.read(machine, pid)
        assert (state.mode, state.nodes, state.follow) == ("eager", (0, 1, 2), False)
        shown = pgrepl(machine, f"show {pid}")
        replicas = sum(replica for _, replica in state.tables.values())
        assert shown.ok
        assert f"replicas take {4 * replicas} kB" in shown.stdout.decode()
        assert "eager" in shown.stdout.decode()
        assert pgrepl(machine, f"set {pid} off").ok
        assert pgtable_repl.read(machine, pid).mode == "off"
        moved = pgrepl(machine, f"migrate {pid} 3")
        assert moved.ok, moved
        state = pgtable_repl.read(machine, pid)
        tables = {node: primary for (level, node), (primary, _) in state.tables.items() if level == "pte" and primary}
        assert list(tables) == [3]
        assert moved.stdout.decode().startswith(f"{tables[3]} of {tables[3]} PTE tables on node 3, ")
        for word in ("on", "off"):
            assert pgrepl(machine, f"follow {pid} {word}").ok
            assert pgtable_repl.read(machine, pid).follow is (word == "on")
    finally:
        process.kill()
        process.wait(30)
