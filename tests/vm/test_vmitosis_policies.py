"""Policies of vmitosis as `numalab run` applies them, in guests of a booted machine: what they promise happens."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from numalab.kernel.image import KernelImage
from numalab.machine.outcome import Mark
from numalab.machine.process import Process
from numalab.machine.second import HOST_PROGRAMS
from numalab.machine.session import Machine
from numalab.machine.topology import uniform
from numalab.measure.take import detach as detach_machine
from numalab.run.policy import applied
from numalab.run.system import policies
from numalab.selftest.sources import built_programs
from tests.vm.two_level_guests import BY_NODE, REFAULTS
from vmitosis.discovery import discover
from vmitosis.latencies import parse
from vmitosis.second_level import uptime, wait_until
from vmitosis.snapshot2d import take
from vmitosis.two_level import PROBE, TwoLevel
from vmitosis.twodim import Seen
from workloads.build import binaries

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800), pytest.mark.patch_set("vmitosis"), BY_NODE]
PAGES = (8 << 20) >> 12
#: Periods of kvm.numa_mmu_follow_ms: ten for which a vCPU counts where it ran last, three until tables follow.
PERIODS = 13
REPL = "/sys/kernel/mm/pgtable_repl"
GUPS = "gups --size 8M --updates 10G --threads 1 --huge never"


@pytest.fixture(scope="module")
def two(patched: KernelImage, probe: Path) -> Iterator[TwoLevel]:
    """Two nodes of two CPUs; the guest comes with the policy."""
    files = {"/bin/gups": binaries()["gups"], PROBE: probe}
    with Machine(
        patched, uniform(2, 2, "1G"), accel="tcg", nested=True, host_programs=HOST_PROGRAMS, extra_files=files
    ) as machine:
        made = TwoLevel(machine, patched, files)
        yield made
        made.close()
        detach_machine(machine)
        assert not machine.complaints


@pytest.fixture(scope="module")
def probe() -> Path:
    """pgrepl-probe of the patches, static."""
    return built_programs().top / "tools/pgrepl-probe"


@pytest.mark.parametrize("name", ["RRI+E", "RRI+M"])
def test_the_second_level_migrates_while_the_remote_node_is_loaded(two: TwoLevel, name: str) -> None:
    """What +E promises: every translation's second letter is L, though a vCPU of the node it leaves never rests."""
    policy = policies()[name].bind({"vcpus": 1, "memory": "128M"}, two.topology)
    begun: list[Seen] = []
    busy: list[Process] = []

    def seen(pid: int) -> Seen:
        found = take(two.inner, [pid]).process(pid).seen_from(0)
        assert found is not None
        return found

    def look(mark: Mark, _: object) -> None:
        if mark.name == "ready":  # the policy writes the node after this
            # STREAM's part: what counts is that the remote node's vCPU runs all the time.
            busy.append(two.inner.start(["taskset", "-c", "1", "sh", "-c", "while :; do :; done"]))
            begun.append(seen(running.pid))

    with applied(two, policy):
        follow = int(two.machine.read_file("/sys/module/kvm/parameters/numa_mmu_follow_ms")) / 1000
        running = two.start([*policy.wrap, *GUPS.split(), "--cpus", "0"], on_mark=look)
        running.wait_mark("ready", 300)
        (before,) = begun
        assert before.remote_remote == before.found >= PAGES
        moved = uptime(two.machine)
        while True:
            now, passed = seen(running.pid), uptime(two.machine) - moved
            print(f"{name} {passed:.1f} s: {now}")
            # Back are the pages that GUPS goes on touching; its code for the beginning stays without translations.
            if now.found >= PAGES and not now.local_remote and not now.remote_remote:
                break
            assert passed < PERIODS * follow + REFAULTS, "the second level did not migrate"
            time.sleep(1)
        assert (now.local_local == 0) == (name == "RRI+E"), "only M migrates the guest's tables"
        for process in (running, *busy):
            process.kill()
            process.wait(60)


def cpus_of(domains: str) -> list[list[int]]:
    """The CPUs of each domain, of the file of that name."""
    from numalab.machine.accel import parse_cpu_list

    return [list(parse_cpu_list(cpus)) for cpus in re.findall(r"^\d+ cpus (\S+)", domains, re.MULTILINE)]


def groups_of(pinned: Sequence[Sequence[int]], two: TwoLevel) -> list[list[int]]:
    """vCPUs by the node they are pinned to."""
    nodes = [two._node_of(cpus[0]) for cpus in pinned]
    return sorted([vcpu for vcpu, node in enumerate(nodes) if node == each] for each in set(nodes))


def test_the_host_tells_an_oblivious_guest_where_its_vcpus_are(two: TwoLevel) -> None:
    """OFMP: domains are as vCPUs are pinned, and are so again after some have been moved; its version says so."""
    policy = policies()["OFMP"].bind({"vcpus": 2, "memory": "160M", "pool": 512}, two.topology)
    with applied(two, policy):
        guest = two.inner

        def told() -> list[list[int]]:
            return sorted(cpus_of(guest.read_file(f"{REPL}/domains").decode()))

        def settled() -> None:
            wait_until(lambda: f"{guest.cpus}: {told()}", lambda: told() == groups_of(guest.cpus, two), 60)

        assert guest.read_file(f"{REPL}/provider").split()
        assert "pv" in guest.read_file(f"{REPL}/provider").decode()
        settled()
        assert told() == [[0, 1], [2, 3]]
        version = int(guest.read_file(f"{REPL}/version"))
        assert version > 0
        # One of each node changes places with one of the other; all run, so that the host sees where they are.
        awake = guest.start(["sh", "-c", "for c in 0 1 2 3; do taskset -c $c sh -c 'while :; do :; done' & done; wait"])
        one, other = guest.cpus[1], guest.cpus[2]
        guest.pin(1, other)
        guest.pin(2, one)
        settled()
        assert told() == [[0, 2], [1, 3]]
        assert int(guest.read_file(f"{REPL}/version")) > version
        awake.kill()
        awake.wait(60)
        guest.run(["killall", "sh"])


def test_the_probe_finds_one_group_where_all_are_equally_near(two: TwoLevel) -> None:
    """NO-F in emulation, with as few vCPUs as chance finds groups in most easily: one group, several times."""
    policy = policies()["OF"].bind({"vcpus": 2, "memory": "160M"}, two.topology)
    with applied(two, policy):
        for _ in range(3):
            done = two.inner.run([PROBE], timeout=600, check=True)
            latencies, cpus = parse(done.stdout.decode(), "pgrepl-probe")
            print(done.stdout.decode())
            assert cpus == (0, 1, 2, 3)
            found = discover(latencies)
            assert found.groups == ((0, 1, 2, 3),), found.reason


def test_static(probe: Path) -> None:
    with probe.open("rb") as stream:
        assert not any(segment["p_type"] == "PT_INTERP" for segment in ELFFile(stream).iter_segments())
