"""What happens to a guest: each scenario gives facts for people, and raises when something was lost."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from numalab.errors import ExperimentError
from numalab.machine.migration import INCOMING, arrived, listen, send, take_over
from numalab.machine.second import SecondLevel
from vmitosis.second_level import page_table_kib, wait_until
from vmitosis.survival.keeper import ADVISE, Keeper
from vmitosis.survival.memory import Memory, compare
from vmitosis.survival.rig import Rig

Facts = dict[str, Any]
_KSM = "/sys/kernel/mm/ksm"
_CPUS = "/sys/devices/system/cpu"
#: KiB of page tables by which processes that have nothing to do with a guest differ from one look to the next.
_NOISE_KIB = 512


def live_migration(rig: Rig) -> Facts:
    """To another QEMU while memory is changed and vCPUs bounce; both memories are compared while both stand still."""
    with rig.guest() as guest, rig.kept(guest) as keeper, _other(rig) as other:
        uri = f"unix:{other.directory}/migration"
        listen(other, uri)
        with rig.bouncing(guest):
            before = keeper.status()
            sent = send(guest, uri)
        arrived(other)
        with _memory(guest, "here") as here, _memory(other, "there") as there:
            compared = compare(here, there)
        after = _go_on(rig, guest, other, keeper)
        assert before
        return {
            "compared_bytes": compared,
            "rounds_of_sending": sent["ram"]["dirty-sync-count"],
            "sent_bytes": sent["ram"]["transferred"],
            "checked_since": after - before.checked,
        }


def snapshot_restore(rig: Rig) -> Facts:
    """Into a file, the QEMU ended, and back into another one; memory compared before and after."""
    with rig.guest() as guest, rig.kept(guest) as keeper:
        with rig.bouncing(guest):
            keeper.rounds(1)
        guest.qmp.execute("stop")
        file = "/tmp/snapshot"
        try:
            send(guest, f"exec:cat > {file}")
            size = int(rig.machine.run(["stat", "-c", "%s", file], check=True).stdout)
            channel = guest.channel
            with _memory(guest, "before") as before:
                guest.close()
                with _other(rig) as other:
                    listen(other, f"exec:cat {file}")
                    arrived(other)
                    with _memory(other, "after") as after:
                        compared = compare(before, after)
                    take_over(other, channel)
                    _run_there(rig, other, keeper)
        finally:
            rig.machine.run(["rm", "-f", file])
        return {"compared_bytes": compared, "file_bytes": size}


@contextmanager
def _memory(guest: SecondLevel, name: str) -> Iterator[Memory]:
    made = Memory(guest, name)
    try:
        yield made
    finally:
        made.remove()


@contextmanager
def _other(rig: Rig) -> Iterator[SecondLevel]:
    """A guest that waits for another one to arrive in it."""
    other = rig.guest(slot=1, qemu_args=INCOMING)
    other.boot(run=False)
    try:
        yield other
    finally:
        other.close()


def _go_on(rig: Rig, guest: SecondLevel, other: SecondLevel, keeper: Keeper) -> int:
    take_over(other, guest.channel)
    guest.close()
    return _run_there(rig, other, keeper)


def _run_there(rig: Rig, other: SecondLevel, keeper: Keeper) -> int:
    """Let a guest that has arrived run, and see all of its memory checked; the pages checked so far."""
    other.qmp.execute("cont")
    keeper.guest = other
    with rig.bouncing(other):
        said = keeper.rounds(1)
    rig.both_trees(other)
    keeper.finish()
    rig.quiet(other)
    return said.checked


def cpu_hotplug(rig: Rig) -> Facts:
    """A vCPU is added, works, and is taken away."""
    plugs = ("-smp", "maxcpus=3,sockets=3")
    with rig.guest(qemu_args=plugs) as guest, rig.kept(guest) as keeper:
        (free,) = [each for each in guest.qmp.execute("query-hotpluggable-cpus") if "qom-path" not in each]
        with rig.bouncing(guest):
            guest.qmp.execute("device_add", driver=free["type"], id="more", **free["props"])
            wait_until("the guest sees the vCPU", lambda: guest.run(["test", "-d", f"{_CPUS}/cpu2"]).ok, 120)
            guest.write_file(f"{_CPUS}/cpu2/online", b"1\n")
        told = sorted(guest.qmp.execute("query-cpus-fast"), key=lambda cpu: int(cpu["cpu-index"]))
        guest.threads = tuple(each["thread-id"] for each in told)
        guest.cpus.append([1])
        second = Keeper(guest, live=12, same=0, threads=3, name="three")
        with rig.bouncing(guest):
            second.rounds(1)
        node = rig.debug(guest).read("vcpu2/mmu_nid")
        second.finish()
        guest.write_file(f"{_CPUS}/cpu2/online", b"0\n")
        guest.qmp.execute("device_del", id="more")
        wait_until("the vCPU is gone", lambda: len(guest.qmp.execute("query-cpus-fast")) == 2, 120)
        guest.threads = guest.threads[:2]
        guest.cpus.pop()
        with rig.bouncing(guest):
            keeper.rounds(1)
        return {"vcpus": len(told), "node_of_the_new_one": node}


def memory_hotplug(rig: Rig) -> Facts:
    """Memory is added by virtio-mem, used, and taken away; a DIMM is added, which is a new memory slot."""
    more = 64 << 20
    plugs = (
        *("-m", "slots=2,maxmem=2G", "-object", f"memory-backend-memfd,share=on,id=hot,size={4 * more}"),
        *("-device", "virtio-mem-pci,id=plugged,memdev=hot,requested-size=0"),
    )
    # Movable, so that it can be taken away again.
    with rig.guest(qemu_args=plugs, append="memhp_default_state=online_movable") as guest, rig.kept(guest) as keeper:
        before = _memory_kib(guest)

        def resized(size: int) -> None:
            guest.qmp.execute("qom-set", path="/machine/peripheral/plugged", property="requested-size", value=size)
            wait_until(f"{size >> 20} MiB plugged in", lambda: _plugged(guest) == size, 240)

        with rig.bouncing(guest):
            resized(2 * more)
        with_more = _memory_kib(guest)
        second = Keeper(guest, live=2 * (more >> 20), same=0, name="more")
        dimm: Facts = {"qom-type": "memory-backend-memfd", "id": "dimm", "size": 2 * more}
        guest.qmp.execute("object-add", **dimm)
        with rig.bouncing(guest):
            guest.qmp.execute("device_add", driver="pc-dimm", id="dimm0", memdev="dimm")
            second.rounds(1)
        second.finish()
        with rig.bouncing(guest):
            resized(0)
            keeper.rounds(1)
        slots = [each["data"]["id"] for each in guest.qmp.execute("query-memory-devices")]
        return {"kib_before": before, "kib_with_more": with_more, "kib_after": _memory_kib(guest), "devices": slots}


def _plugged(guest: SecondLevel) -> int:
    return int(guest.qmp.execute("qom-get", path="/machine/peripheral/plugged", property="size"))


def _memory_kib(guest: SecondLevel) -> int:
    found = re.search(r"^MemTotal:\s+(\d+) kB", guest.read_file("/proc/meminfo").decode(), re.MULTILINE)
    assert found
    return int(found[1])


def balloon(rig: Rig) -> Facts:
    """Half of what the guest does not use is taken from it, given back, and used."""
    with (
        rig.guest(anonymous=True, qemu_args=("-device", "virtio-balloon-pci")) as guest,
        rig.kept(guest) as keeper,
    ):
        whole = guest.topology.memory
        small = whole - (48 << 20)
        entries = rig.debug(guest).number("pages_4k")

        def resized(size: int) -> None:
            guest.qmp.execute("balloon", value=size)
            wait_until(
                f"a balloon that leaves {size >> 20} MiB",
                lambda: guest.qmp.execute("query-balloon")["actual"] == size,
                240,
            )

        with rig.bouncing(guest):
            resized(small)
            keeper.rounds(1)
            resized(whole)
        Keeper(guest, live=40, same=0, name="back").finish()
        with rig.bouncing(guest):
            keeper.rounds(1)
        return {"bytes_taken": whole - small, "entries_before": entries}


def ksm(rig: Rig) -> Facts:
    """The machine merges equal pages of the guest, the guest writes to some, and all are parted again."""
    machine = rig.machine

    def says(name: str) -> int:
        return int(machine.read_file(f"{_KSM}/{name}"))

    def tell(**values: int) -> None:
        for name, value in values.items():
            machine.write_file(f"{_KSM}/{name}", f"{value}\n".encode())

    with rig.guest(anonymous=True) as guest, rig.kept(guest) as keeper:
        tell(pages_to_scan=5000, sleep_millisecs=20, run=1)
        try:
            with rig.bouncing(guest):
                wait_until("equal pages merged", lambda: says("pages_sharing") >= 0.8 * keeper.same_pages, 400)
                merged = says("pages_sharing")
                keeper.rounds(1)
            tell(run=2)
            with rig.bouncing(guest):
                keeper.rounds(1)
            wait_until("pages parted", lambda: not says("pages_sharing"), 120)
        finally:
            tell(run=0)
        return {"pages_alike": keeper.same_pages, "pages_merged": merged}


def collapse(rig: Rig) -> Facts:
    """Pages of the guest become huge ones in the machine under it, and are split again by a balloon."""
    with (
        rig.guest(anonymous=True, qemu_args=("-device", "virtio-balloon-pci")) as guest,
        rig.kept(guest) as keeper,
    ):
        files = rig.debug(guest)
        before = files.number("pages_2m")
        with rig.bouncing(guest):
            done = rig.machine.run([ADVISE, str(guest.qemu_pid), "collapse"], timeout=300, check=True)
            keeper.rounds(1)
        found = re.fullmatch(r"(\d+) steps, (\d+) done\n", done.stdout.decode())
        assert found
        huge = files.number("pages_2m")
        if not int(found[2]) or huge <= before:
            raise ExperimentError(f"no huge pages came to be: {found[0].strip()}, {huge} entries of 2M")
        with rig.bouncing(guest):
            guest.qmp.execute("balloon", value=guest.topology.memory - (48 << 20))
            keeper.rounds(1)
        return {"collapsed": int(found[2]), "entries_2m": huge, "entries_2m_after_balloon": files.number("pages_2m")}


def killed(rig: Rig) -> Facts:
    """The VMM is killed (SIGKILL) while vCPUs bounce; page tables of both kinds are given back."""
    before = page_table_kib(rig.machine)
    guest = rig.guest()
    with guest:
        Keeper(guest)
        rig.both_trees(guest)
        full = page_table_kib(rig.machine)
        with rig.bouncing(guest):
            guest.qmp.process.kill(9)
            guest.qmp.process.wait(120)
        rig.quiet(guest)
    time.sleep(1)
    wait_until(
        f"second-level tables given back: {before} {full} {page_table_kib(rig.machine)}",
        lambda: page_table_kib(rig.machine)[1] == before[1],
        30,
    )
    after = page_table_kib(rig.machine)
    if after[0] > before[0] + _NOISE_KIB:
        raise ExperimentError(f"page tables of processes were lost: {before[0]} KiB before, {after[0]} KiB after")
    left = rig.machine.run(["ls", "/sys/kernel/debug/kvm"]).stdout.decode().split()
    if any(re.match(r"\d+-\d+$", name) for name in left):
        raise ExperimentError(f"KVM still has a guest: {left}")
    return {"kib_before": before, "kib_running": full, "kib_after": after}


@dataclass(frozen=True)
class Scenario:
    """A scenario; `long` ones are for `make test-full`."""

    run: Callable[[Rig], Facts]
    long: bool = False

    @property
    def summary(self) -> str:
        """What happens, in a line."""
        return (self.run.__doc__ or "").strip()


SCENARIOS: Mapping[str, Scenario] = {
    "live-migration": Scenario(live_migration),
    "snapshot-restore": Scenario(snapshot_restore),
    "cpu-hotplug": Scenario(cpu_hotplug),
    "memory-hotplug": Scenario(memory_hotplug, long=True),
    "balloon": Scenario(balloon, long=True),
    "ksm": Scenario(ksm, long=True),
    "collapse": Scenario(collapse),
    "kill": Scenario(killed),
}
