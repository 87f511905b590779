"""Counting passes of KSM, one at a time, in a machine that counts instructions.

The processes whose memory is scanned wait at their mark "ready" and use no CPU. KSM may scan without end each time it
wakes (`pages_to_scan`), and sleeps for minutes in between: a batch ends with the pass, and so each wake-up is one whole
pass. Writing another `sleep_millisecs` wakes it at once.

What a pass takes is the CPU time of the kernel's threads for it (/proc/PID/schedstat): a nanosecond of such a machine
is one instruction, of whatever CPU. All those threads run on one CPU here, one at a time, so that no thread's time has
another's instructions in it; how long K of them would take on K CPUs is what the longest of them takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nuksm import kernel as ksm
from nuksm.cost.passes import Pass
from nuksm.policies import KSM
from numalab.errors import ExperimentError
from numalab.kernel.image import KernelImage
from numalab.machine.outcome import GuestFileError, Mark
from numalab.machine.topology import uniform
from numalab.run.counting import FACTS, STEADY, depends_on
from numalab.run.instances import Instance, Instances, place
from numalab.run.kept import Kept
from numalab.run.policy import NONE, Knob, Policy, applied
from numalab.run.together import Together

#: Four nodes of one CPU; memory is by first touch on two of them.
TOPOLOGY = uniform(4, 1, "1G")
NODES = (0, 1)
#: All threads that scan run here.
SCAN_CPU = 3
#: How often everything is taken apart and scanned anew. Two rounds differ by what interrupts add, 2 % of a small pass.
ROUNDS = 3
#: Seconds of wall time that one pass may take, and the processes in all.
PASS_SECONDS = 1800.0
RUN_SECONDS = 7200.0
#: More pages than any machine here has: a batch ends with the pass.
_ALL_PAGES = "1000000000"
#: ms of sleep; each pass after the first is begun by one millisecond more.
_LONG_SLEEP = 3_600_000

#: What is in the memory → seeds of the two processes: all pages are equal to one of the other, or none is.
CONTENTS: Mapping[str, tuple[int, int]] = {"merged": (1, 1), "unique": (1, 2)}


#: What places no pages: as KSM is where nobody asks for more.
NO_POLICY = "none"
#: ms between two looks at a page where a policy places pages: each pass looks at all of them.
_SAMPLE = 1


def knobs(threads: int, policy: str = NO_POLICY) -> tuple[Knob, ...]:
    """What is set for counting.

    `threads` above 1, and a `policy` (a word of numa_policy), take a kernel of the patch set; its files are left alone
    otherwise.
    """
    several = (Knob(f"{KSM}/scan_threads", str(threads), brought_by="the patch set nuksm"),) if threads > 1 else ()
    placing = {} if policy == NO_POLICY else {"numa_sample_millisecs": str(_SAMPLE), "numa_policy": policy}
    return (
        *STEADY,
        Knob(f"{KSM}/run", "2"),
        Knob(f"{KSM}/advisor_mode", "none", optional=True),
        Knob(f"{KSM}/merge_across_nodes", "1"),
        Knob(f"{KSM}/use_zero_pages", "0", optional=True),
        Knob(f"{KSM}/smart_scan", "0", optional=True),
        Knob(f"{KSM}/pages_to_scan", _ALL_PAGES),
        Knob(f"{KSM}/sleep_millisecs", str(_LONG_SLEEP)),
        *several,
        *(Knob(f"{KSM}/{name}", value, brought_by="the patch set nuksm") for name, value in placing.items()),
        Knob(f"{KSM}/run", "2"),
    )


def passes_on(
    kernel: KernelImage,
    size: str,
    content: str,
    threads: int,
    passes: int,
    *,
    policy: str = NO_POLICY,
    log_dir: Path,
    kept: Kept,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[list[Pass], dict[str, Any]]:
    """Boot `kernel` and count `passes` passes over two processes of `size` each; return them and the machine's facts.

    What is in `kept` is not counted again, and what is counted is put there.

    Raises:
        MissingError: the kernel does not have what `threads` or `policy` need.
        ExperimentError, MachineLostError: a process failed, or the machine was lost.
    """
    from numalab.machine.session import Machine
    from workloads import catalogue
    from workloads.build import binaries

    samepage = catalogue.get("samepage")
    given = {"size": size, "hot": 0, "seconds": 0.1, "mergeable": "region", "huge": "never"}
    each = [Instance(node, params={"seed": seed}) for node, seed in zip(NODES, CONTENTS[content], strict=True)]
    found: list[Pass] = []

    def count(mark: Mark, machine: Any) -> None:
        if mark.name == "ready":
            say(f"{kernel.name}: {size}, {content}, {threads} thread{'s' if threads > 1 else ''}, policy {policy}")
            found.extend(fewest([_drive(machine, passes) for _ in range(ROUNDS)]))

    placed = place(Instances(tuple(each)), samepage, given, NONE, TOPOLOGY)
    together = Together(placed, range(len(placed)), count, RUN_SECONDS)
    setting = Policy("scan cost", "", knobs(threads, policy))
    files = {"/bin/samepage": binaries()["samepage"]}
    what = {
        **depends_on(kernel, TOPOLOGY, setting.knobs, samepage=files["/bin/samepage"]),
        "commands": [one.command for one in placed],
        "passes": passes,
        "rounds": ROUNDS,
    }
    if known := kept.counted(what, "passes", Pass.from_json):
        return known
    with Machine(kernel, TOPOLOGY, count_instructions=True, extra_files=files, log_dir=log_dir) as machine:
        facts = machine.facts()
        with applied(machine, setting):
            together.run(machine)
            name, done = together.worst()
            if not done.ok:
                raise ExperimentError(f"{name}: {done}: {done.stderr.decode(errors='replace').strip()}")
        told = {name: facts[name] for name in FACTS} | {"complaints": machine.complaints}
    kept.put(what, {"passes": [each.to_json() for each in found], "facts": told})
    return found, told


def fewest(rounds: Sequence[Sequence[Pass]]) -> list[Pass]:
    """Return of each pass the round in which it took fewest instructions: the others have more interrupts in them.

    Raises:
        ExperimentError: the rounds did not scan, or save, the same.
    """
    found = []
    for same in zip(*rounds, strict=True):
        if len({(each.scanned, each.sharing) for each in same}) != 1:
            told = ", ".join(f"{each.scanned} scanned, {each.sharing} saved" for each in same)
            raise ExperimentError(f"pass {same[0].number} is not the same in all rounds: {told}")
        found.append(min(same, key=lambda each: each.instructions))
    return found


def _drive(machine: Any, passes: int) -> list[Pass]:
    """Let KSM make one pass after the other over memory of which nothing is merged, and count each."""
    machine.write_file(f"{KSM}/run", b"2\n")
    # Else it would sleep out its hour before it notices that `run` is 1 again.
    machine.write_file(f"{KSM}/sleep_millisecs", f"{_another_sleep(machine)}\n".encode())
    found = []
    before = _Reading(machine)
    for number in range(1, passes + 1):
        _one_pass(machine, number, before.full_scans + 1)
        after = _Reading(machine)
        if after.full_scans != before.full_scans + 1:
            raise ExperimentError(f"KSM has made {after.full_scans} passes, and was asked for {before.full_scans + 1}")
        found.append(after.since(before, number))
        before = after
    return found


#: Writes $1 into the file $0, which wakes KSM, and comes back when it has made $2 passes and sleeps again. Whatever
#: runs on any CPU meanwhile is counted, the clock being one for all: what waits is asleep before, for two billion
#: instructions or until everything else is idle, and looks once in a billion if that was not enough.
_PASS = f"""
sleep 2 &
sleep 0.3
echo "$1" > "$0" || exit
wait
while read -r passes < {KSM}/full_scans && [ "$passes" -lt "$2" ]; do
	sleep 1
done
sleep 0.3
"""


def _another_sleep(machine: Any) -> int:
    """A value of sleep_millisecs that differs from the present one: writing it wakes KSM."""
    return int(machine.read_file(f"{KSM}/sleep_millisecs")) + 1


def _one_pass(machine: Any, number: int, wanted: int) -> None:
    """Begin pass `number`, after which there are `wanted` in all; return when it is over."""
    file, value = ("run", "1") if number == 1 else ("sleep_millisecs", str(_another_sleep(machine)))
    done = machine.run(["sh", "-c", _PASS, f"{KSM}/{file}", value, str(wanted)], timeout=PASS_SECONDS)
    if not done.ok:
        raise ExperimentError(
            f"pass {number} of KSM could not be begun: {done.stderr.decode(errors='replace').strip()}"
        )


class _Reading:
    """What KSM and its threads have done so far."""

    def __init__(self, machine: Any) -> None:
        values = ksm.counters(machine)
        self.full_scans = values["full_scans"]
        self.scanned = values["pages_scanned"]
        self.sharing = values["pages_sharing"]
        self.threads = _threads(machine)
        try:
            said = machine.read_file(f"{KSM}/scan_workers").decode()
        except GuestFileError:
            said = ""
        self.workers = ksm.parse_workers(said) if said.strip() else None

    def since(self, before: _Reading, number: int) -> Pass:
        cost = {name: took - before.threads.get(name, 0) for name, took in self.threads.items()}
        workers = self.workers
        if workers is not None and before.workers is not None and len(workers.workers) == len(before.workers.workers):
            workers = workers.since(before.workers)
        return Pass(
            number,
            self.scanned - before.scanned,
            {name: took for name, took in cost.items() if took},
            self.sharing,
            workers,
        )


#: Pins each thread of KSM to the CPU $0 (one that may not be moved stays), and prints its name, number and CPU time.
_THREADS = """
for each in /proc/[0-9]*; do
	read -r comm 2>/dev/null < $each/comm || continue
	case $comm in
	ksmd*|ksm_*|ksm/*)
		taskset -pc $0 ${each#/proc/} > /dev/null 2>&1
		read -r ran _ < $each/schedstat
		echo "$comm ${each#/proc/} $ran"
	esac
done
"""


def _threads(machine: Any) -> dict[str, int]:
    """CPU time in ns of each thread of KSM, by name and number."""
    done = machine.run(["sh", "-c", _THREADS, str(SCAN_CPU)])
    lines = [line.split() for line in done.stdout.decode(errors="replace").splitlines()]
    if not done.ok or not lines or any(len(words) != 3 for words in lines):
        raise ExperimentError(f"the threads of KSM cannot be asked what they took: {done}: {done.stderr.decode()}")
    return {f"{comm}:{pid}": int(ran) for comm, pid, ran in lines}
