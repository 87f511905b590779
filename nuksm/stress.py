"""Stress: merged memory changes in six ways at once, while settings of KSM change too; every content is checked.

    python -m nuksm.stress --kernel patched --seconds 60

The workload `churn` merges, unmerges, forks and copies on write, exits, migrates and swaps; here is what goes on beside
it: KSM's files get new values at random, and where the kernel can check its merged pages (ksm/verify) it is asked to.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from nuksm.policies import KSM
from numalab.cli.main import execute
from numalab.errors import ExperimentError
from numalab.kernel import races
from numalab.kernel.images import resolve
from numalab.machine import console
from numalab.machine.outcome import GuestFileError, Mark
from numalab.machine.swap import swap_on
from numalab.machine.topology import uniform
from numalab.measure.counters import parse_vmstat
from numalab.run.policy import NO_BALANCING, Knob, Policy, applied
from workloads import catalogue

#: The kernel's own check of its merged pages (CONFIG_KSM_NUMA_DEBUG).
VERIFY = "/sys/kernel/debug/ksm/verify"
#: Where KSM is written.
FILES = ("mm/ksm.c", "mm/ksm_numa.c", "mm/ksm_scan.c")
#: What KSM is told while it works: the first of each is what it begins with. Those that a kernel lacks are left out.
TURNS: Mapping[str, Sequence[str]] = {
    "smart_scan": ("0", "1"),
    "use_zero_pages": ("0", "1"),
    "scan_threads": ("1", "2", "4"),
    "numa_policy": ("fair", "priority", "strict", "none"),
    "numa_max_copies": ("4", "4", "2", "1"),
    "numa_copies_percent": ("100", "100", "50", "0"),
    # Forced to where it may be: the kernel's check of itself holds numa_nodes against forced pages too.
    "numa_force_node": ("-1", "-1", "-1", "0"),
    "numa_nodes": ("0-3", "0-3", "0-1", "0"),
    "numa_migrate_rate": ("100000", "0", "100"),
    "numa_hysteresis": ("0", "50"),
    "numa_cgroup_weight": ("0", "1"),
    # 2: everything is taken apart, by whoever writes.
    "run": ("1", "1", "1", "1", "2", "0"),
}
#: What is set once: scanned as fast as may be, every page sampled in each pass.
FIXED = {"advisor_mode": "none", "pages_to_scan": "2000", "sleep_millisecs": "5", "numa_sample_millisecs": "10"}
#: Seconds between two new settings at most, and of the guest between two checks by the kernel.
TURN_SECONDS = 0.5
VERIFY_SECONDS = 10.0
#: Passes after which KSM knows every mapping of memory at rest, and seconds of wall time that they may take.
SETTLED = 3
QUIET_SECONDS = 120.0
#: What is swapped out lies in the memory of the machine itself.
SWAP = "128M"


@dataclass
class Stressed:
    """What has happened.

    Attributes:
        counts: metrics of churn.
        turns: settings written, by file.
        verified: times that the kernel has checked itself and found nothing; None: it cannot.
        said: what it said the last time.
        wrong: what it found.
        vmstat: what the kernel has counted meanwhile: ksm_*, pswp*, pgmigrate_*.
    """

    counts: dict[str, Any] = field(default_factory=dict)
    turns: dict[str, int] = field(default_factory=dict)
    verified: int | None = None
    said: str = ""
    wrong: list[str] = field(default_factory=list)
    vmstat: dict[str, int] = field(default_factory=dict)


def data_races(machine: Any) -> list[str]:
    """Return the data races in KSM that a machine's kernel of the flavour "races" has reported.

    Those that have no foot in KSM are everybody's, and no matter here.
    """
    found = races.reported(console.read(machine.console))
    vmlinux = machine.kernel.vmlinux
    return [str(race) for race in (races.of_files(found, vmlinux, FILES) if vmlinux else found)]


def stress(
    machine: Any, seconds: float, *, seed: int = 1, size: str = "4M", say: Callable[[str], None] = lambda _: None
) -> Stressed:
    """Stress KSM for `seconds` of the machine's time; settings and swap are as before in the end.

    What ksm/verify complains of is in the result, and ends the stress; a wrong word in memory is an error of churn.

    Raises:
        ExperimentError: churn has failed: its last words say which word of which page was wrong.
        MachineLostError: the machine was lost.
        MissingError: the kernel has no KSM, or no zram.
    """
    churn = catalogue.get("churn")
    found = Stressed()
    dice = random.Random(seed)
    params = {"size": size, "seconds": seconds, "quiet": VERIFY_SECONDS, "mergeable": "region", "seed": seed}

    def on_mark(mark: Mark, _: Any) -> None:
        if mark.name in ("quiet", "done"):
            _verify(machine, found)
            say(f"{sum(found.turns.values())} settings, checked {found.verified} times; {found.said}")

    with swap_on(machine, SWAP), applied(machine, _settings()):
        there = {name: values for name, values in TURNS.items() if _has(machine, name)}
        before = _vmstat(machine)
        process = machine.start(churn.argv(params), on_mark=on_mark)
        try:
            _turn(machine, process, there, found, dice)
        except BaseException:
            process.kill()
            process.wait(60)
            raise
        done = process.wait(120)
        if not done.ok:
            raise ExperimentError(f"{done}: {done.stderr.decode(errors='replace').strip()}")
        after = _vmstat(machine)
    found.counts = {sample.metric: sample.value for sample in churn.parse(done.stdout)}
    found.vmstat = {name: after[name] - before[name] for name in after}
    return found


def _settings() -> Policy:
    """The values everything begins with; also what is put back in the end."""
    apart = Knob(f"{KSM}/run", "2", brought_by="KSM (CONFIG_KSM)")
    values = {**FIXED, **{name: values[0] for name, values in TURNS.items() if name != "run"}}
    knobs = (Knob(f"{KSM}/{name}", value, optional=True) for name, value in values.items())
    return Policy("stress", "", (NO_BALANCING, apart, *knobs, apart, Knob(f"{KSM}/run", "1")))


def _turn(
    machine: Any,
    process: Any,
    there: Mapping[str, Sequence[str]],
    found: Stressed,
    dice: random.Random,
) -> None:
    """Give KSM other values, one after the other, until the process has ended."""
    while not process.ended() and not found.wrong:
        name = dice.choice(sorted(there))
        value = dice.choice(there[name])
        try:
            machine.write_file(f"{KSM}/{name}", f"{value}\n".encode())
        except GuestFileError as error:
            raise ExperimentError(f"{value!r} could not be written to {KSM}/{name}: {error.strerror}") from error
        found.turns[name] = found.turns.get(name, 0) + 1
        time.sleep(TURN_SECONDS * dice.random())
    if not process.ended():
        process.kill(15)


def _verify(machine: Any, found: Stressed) -> None:
    """Let KSM scan what stands still, and the kernel check itself; what it finds is in `found`.

    Before that a mapping may be unknown to KSM, and be no fault: a child's, whose parent has written to its page.
    """
    run = machine.read_file(f"{KSM}/run")
    machine.write_file(f"{KSM}/run", b"1\n")
    wanted = _passes(machine) + SETTLED
    deadline = time.monotonic() + QUIET_SECONDS
    while _passes(machine) < wanted:
        if time.monotonic() > deadline:
            raise ExperimentError(f"KSM has not made {SETTLED} passes in {QUIET_SECONDS:g} s over memory at rest")
        time.sleep(0.1)
    done = machine.run(["cat", VERIFY])
    if done.ok:
        found.verified = (found.verified or 0) + 1
        found.said = done.stdout.decode(errors="replace").strip()
    elif b"No such file" not in done.stderr:
        said = done.stdout.decode(errors="replace").splitlines()
        found.wrong += said or [done.stderr.decode(errors="replace").strip()]
    machine.write_file(f"{KSM}/run", run)


def _passes(machine: Any) -> int:
    return int(machine.read_file(f"{KSM}/full_scans"))


def _has(machine: Any, name: str) -> bool:
    try:
        machine.read_file(f"{KSM}/{name}")
    except GuestFileError:
        return False
    return True


def _vmstat(machine: Any) -> dict[str, int]:
    counters = parse_vmstat(machine.read_file("/proc/vmstat").decode())
    return {name: n for name, n in counters.items() if name.startswith(("ksm_", "cow_ksm", "pswp", "pgmigrate_"))}


@click.command("stress", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--kernel", default="patched", show_default=True)
@click.option("--seconds", default=60.0, show_default=True, help="Of the machine's own time.")
@click.option("--seed", default=1, show_default=True)
@click.option("--size", default="4M", show_default=True, help="Of the memory of each of four processes.")
@click.option("--memory", default="512M", show_default=True, help="Of each of four nodes; a debug kernel needs 1G.")
def command(kernel: str, seconds: float, seed: int, size: str, memory: str) -> int:
    """Change merged memory in six ways at once in a machine; print what was done, as JSON.

    Exit status: 0 all contents were right and the kernel found nothing wrong with itself, 1 it did, or complained.
    """
    from numalab.machine.session import Machine
    from workloads.build import binaries

    files: dict[str, Path] = {"/bin/churn": binaries()["churn"]}
    with Machine(resolve(kernel), uniform(4, 1, memory), accel="tcg", extra_files=files) as machine:
        found = stress(machine, seconds, seed=seed, size=size, say=lambda text: click.echo(f"stress: {text}", err=True))
        complaints = [line for line in machine.complaints if "BUG: KCSAN: " not in line]
        complaints += data_races(machine)
    click.echo(json.dumps({**vars(found), "complaints": complaints}, indent=1))
    return 1 if found.wrong or complaints else 0


if __name__ == "__main__":
    execute(command, None, name="python -m nuksm.stress")
