"""What happens to a guest: each scenario gives facts for people, and raises when something was lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from numalab.errors import ExperimentError
from numalab.machine.second import SecondLevel
from vmitosis.second_level import meminfo_kib, page_table_kib, wait_until
from vmitosis.survival.keeper import COLLAPSE, Keeper
from vmitosis.survival.migrations import Facts, live_migration, live_migration_all_trees, snapshot_restore
from vmitosis.survival.rig import Rig

_KSM = "/sys/kernel/mm/ksm"
_CPUS = "/sys/devices/system/cpu"
#: KiB of page tables by which processes that have nothing to do with a guest differ from one look to the next.
_NOISE_KIB = 512


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
        before = meminfo_kib(guest, "MemTotal")

        def resized(size: int) -> None:
            guest.qmp.execute("qom-set", path="/machine/peripheral/plugged", property="requested-size", value=size)
            wait_until(f"{size >> 20} MiB plugged in", lambda: _plugged(guest) == size, 240)

        with rig.bouncing(guest):
            resized(2 * more)
        with_more = meminfo_kib(guest, "MemTotal")
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
        return {
            "kib_before": before,
            "kib_with_more": with_more,
            "kib_after": meminfo_kib(guest, "MemTotal"),
            "devices": slots,
        }


def _plugged(guest: SecondLevel) -> int:
    return int(guest.qmp.execute("qom-get", path="/machine/peripheral/plugged", property="size"))


def balloon(rig: Rig) -> Facts:
    """48 MiB of what the guest does not use is taken from it, given back, and used."""
    with (
        rig.guest(anonymous=True, qemu_args=("-device", "virtio-balloon-pci")) as guest,
        rig.kept(guest) as keeper,
    ):
        whole = guest.topology.memory
        small = whole - (48 << 20)
        # Memory that was in use has entries, and free memory that was is what a balloon gets first.
        Keeper(guest, live=40, same=0, name="first").finish()
        entries, total = rig.debug(guest).number("pages_4k"), meminfo_kib(guest, "MemTotal")

        def resized(size: int) -> None:
            guest.qmp.execute("balloon", value=size)
            wait_until(
                f"a balloon that leaves {size >> 20} MiB",
                lambda: guest.qmp.execute("query-balloon")["actual"] == size,
                240,
            )

        with rig.bouncing(guest):
            resized(small)
            fewer, left = rig.debug(guest).number("pages_4k"), meminfo_kib(guest, "MemTotal")
            keeper.rounds(1)
            resized(whole)
        taken = (total - left) << 10
        if fewer >= entries:
            raise ExperimentError(f"the balloon took memory, and no entry: {entries} before, {fewer} after")
        if taken < 0.9 * (whole - small):
            raise ExperimentError(f"the guest has lost {taken >> 20} MiB of memory, not {(whole - small) >> 20}")
        Keeper(guest, live=40, same=0, name="back").finish()
        with rig.bouncing(guest):
            keeper.rounds(1)
        return {"bytes_taken": taken, "entries_before": entries, "entries_taken": entries - fewer}


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
            done = rig.machine.run([COLLAPSE, str(guest.qemu_pid)], timeout=300, check=True)
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
    _none_left(rig)  # of those that were here before
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
    _none_left(rig)
    after = page_table_kib(rig.machine)
    if full[1] <= 0:
        raise ExperimentError("the kernel counts no second-level tables while a guest runs")
    if after[0] > before[0] + _NOISE_KIB:
        raise ExperimentError(f"page tables of processes were lost: {before[0]} KiB before, {after[0]} KiB after")
    return {"kib_before": before, "kib_running": full, "kib_after": after}


def _none_left(rig: Rig) -> None:
    """Wait until KVM has no guest, and there is no second-level table.

    Raises:
        ExperimentError: there still is.
    """

    def left() -> str:
        listed = rig.machine.run(["ls", "/sys/kernel/debug/kvm"]).stdout.decode().split()
        guests = [name for name in listed if re.match(r"\d+-\d+$", name)]
        kib = meminfo_kib(rig.machine, "SecPageTables")
        return f"{guests}, {kib} KiB of second-level tables" if guests or kib else ""

    # A VM goes when the last file that refers to it does, which is some time after its process.
    wait_until(lambda: f"KVM has given everything back: {left()}", lambda: not left(), 60)


SCENARIOS: Mapping[str, Callable[[Rig], Facts]] = {
    "live-migration": live_migration,
    "live-migration-all-trees": live_migration_all_trees,
    "snapshot-restore": snapshot_restore,
    "cpu-hotplug": cpu_hotplug,
    "memory-hotplug": memory_hotplug,
    "balloon": balloon,
    "ksm": ksm,
    "collapse": collapse,
    "kill": killed,
}
