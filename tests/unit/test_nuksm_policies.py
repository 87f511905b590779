"""The policies and experiments of nuksm fit the laboratory, and leave a kernel as they found it."""

from __future__ import annotations

import errno
import re
import subprocess
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nuksm import policies
from nuksm.policies import COPIES, FAIR, FORCE_NODE, KSM, OFF, SCAN_THREADS, SEPARATE, STOCK
from nuksm.system import SYSTEM
from numalab.errors import ExperimentError, MissingError, UserError
from numalab.machine.outcome import Completed, GuestFileError
from numalab.machine.topology import uniform
from numalab.run import check, matrix, system
from numalab.run.lab import default_lab
from numalab.run.policy import Policy, applied
from numalab.run.spec import Experiment
from numalab.run.system import find_experiment
from numalab.units import parse_size
from tests.nuksm_files import NUKSM_FILES

LAB = replace(default_lab(download=False), host_memory=lambda: 16 << 30)
EXPERIMENTS = sorted(SYSTEM.experiments())
FIGURES = ("figure3", "figure4", "figure6", "figure7", "figure8")
FOUR = uniform(4, 2, "64M")
#: What stock 6.12 shows of KSM.
STOCK_FILES = {
    "run": "0",
    "advisor_mode": "[none] scan-time",
    "merge_across_nodes": "1",
    "use_zero_pages": "0",
    "smart_scan": "1",
    "pages_to_scan": "100",
    "sleep_millisecs": "20",
}


class Guest:
    """A kernel's files of KSM, with the refusals of the patch set."""

    def __init__(self, *, patched: bool, lacks: tuple[str, ...] = ()) -> None:
        files = {**STOCK_FILES, **(NUKSM_FILES if patched else {})}
        self.files = {name: text for name, text in files.items() if name not in lacks}
        self.written: list[tuple[str, str]] = []
        self.waiting: list[tuple[str, Any]] = []

    def read_file(self, path: str) -> bytes:
        name = path.removeprefix(f"{KSM}/")
        if name not in self.files:
            raise GuestFileError(path, errno.ENOENT)
        return self.files[name].encode() + b"\n"

    def write_file(self, path: str, data: bytes) -> None:
        name, value = path.removeprefix(f"{KSM}/"), data.decode().strip()
        self.read_file(path)
        self.written.append((name, value))
        busy = (
            self.files.get("numa_policy", "[none]")[:6] != "[none]" or self.files.get("numa_force_node", "-1") != "-1"
        )
        # Linux: not while anything is merged; the patch set: not under a policy.
        if name == "merge_across_nodes" and value != self.files[name] and (self.files["run"] != "2" or busy):
            raise GuestFileError(path, errno.EBUSY)
        if name == "numa_policy":
            words = re.findall(r"[a-z]+", self.files[name])
            if value not in words or (value != "none" and self.files["merge_across_nodes"] == "0"):
                raise GuestFileError(path, errno.EINVAL)
            value = " ".join(f"[{word}]" if word == value else word for word in words)
        elif name == "advisor_mode":
            value = "[none] scan-time" if value == "none" else "none [scan-time]"
        elif name == "pages_to_scan" and "[scan-time]" in self.files.get("advisor_mode", ""):
            raise GuestFileError(path, errno.EINVAL)
        self.files[name] = value

    def at_mark(self, name: str, action: Any) -> Any:
        self.waiting.append((name, action))
        return nullcontext()

    def run(self, argv: Any) -> Completed:
        self.write_file(argv[4], argv[5].encode())
        return Completed(list(argv), 0, None, b"", b"")


def test_registered() -> None:
    assert {policy.name for policy in SYSTEM.policies} <= set(system.policies())
    assert {f"nuksm/{name}" for name in ("orders", "fairness", "cgroups", "follow", "copies", *FIGURES)} == set(
        EXPERIMENTS
    )
    assert {feature.brought_by for feature in SYSTEM.features} == {"patch set nuksm"}
    assert find_experiment("nuksm/figure6") == SYSTEM.experiments()["nuksm/figure6"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_good(name: str) -> None:
    experiment = check.load(find_experiment(name), LAB)
    assert experiment.title
    assert matrix.points(experiment)
    assert all(len(variant.instances.each) == 2 for variant in experiment.workloads)


def test_on_servers_the_sizes_are_others(tmp_path: Path) -> None:
    for name in FIGURES:
        source = find_experiment(f"nuksm/{name}")
        [line] = [line for line in source.read_text().splitlines() if "sed -E" in line]
        command = line.lstrip("# ").replace(f"nuksm/experiments/{name}.toml", str(source))
        assert str(source) in command
        subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
        full = check.load(tmp_path / "full.toml", replace(LAB, host_memory=lambda: 2 << 40))
        small = check.load(source, LAB)
        assert full.axes == small.axes
        assert _memory(full) > 100 * _memory(small)
        node = next(iter(full.topologies.values())).nodes[0].memory
        for variant in full.workloads:
            # Before anything is merged, both have all their memory, and in figure 8 on one node.
            assert 2 * parse_size(variant.params["size"]) < node


def _memory(experiment: Experiment) -> int:
    return sum(topology.memory for topology in experiment.topologies.values())


def test_figure_7_has_the_papers_pairs_in_both_workloads() -> None:
    experiment = check.load(find_experiment("nuksm/figure7"), LAB)
    pairs = {variant.name: [one.nice for one in variant.instances.each] for variant in experiment.workloads}
    wanted = {"10:1": [-20, -11], "5:1": [-20, -16], "1:1": [-20, -20], "1:5": [-16, -20], "1:10": [-11, -20]}
    assert pairs == {**wanted, **{f"btree-{name}": nices for name, nices in wanted.items()}}


@pytest.mark.parametrize(("name", "kernel"), [("orders", "stock"), ("fairness", "patched")])
def test_ten_orders_that_are_not_all_alike(name: str, kernel: str) -> None:
    experiment = check.load(find_experiment(f"nuksm/{name}"), LAB)
    assert (experiment.kernels, experiment.repeats) == ((kernel,), 10)
    for variant in experiment.workloads:
        orders = {tuple(variant.instances.order(experiment.seed, variant.name, repeat)) for repeat in range(10)}
        assert orders == {(0, 1), (1, 0)}


@pytest.mark.parametrize("policy", SYSTEM.policies, ids=lambda policy: policy.name)
def test_only_what_needs_the_patch_set_asks_for_it(policy: Policy) -> None:
    files = {knob.path.removeprefix(f"{KSM}/") for knob in policy.bind({}, FOUR).knobs if not knob.dispensable}
    needed = bool(files & set(NUKSM_FILES))
    assert policy.requires == (("nuksm",) if needed else ())


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("policy", SYSTEM.policies, ids=lambda policy: policy.name)
def test_everything_is_put_back(policy: Policy, patched: bool) -> None:
    guest = Guest(patched=patched)
    guest.files |= {"run": "1", "merge_across_nodes": "0", "pages_to_scan": "77"}
    before = dict(guest.files)
    bound = policy.bind({}, FOUR)
    if policy.requires and not patched:
        with (
            pytest.raises(MissingError, match=r"this kernel has no /sys/kernel/mm/ksm/(numa_|scan_threads)") as caught,
            applied(guest, bound),
        ):
            pytest.fail("applied without the patch set")
        assert "'nuksm'" in caught.value.remedy
    else:
        with applied(guest, bound):
            assert guest.files["run"] == "2", "KSM waits until the programs are ready"
            for mark, action in guest.waiting:
                assert mark == "ready"
                action(7)
            assert guest.files["run"] == ("2" if policy is OFF else "1")
            guest.waiting.clear()
    assert guest.files == before


@pytest.mark.parametrize("values", [{"placement": "none"}, {"placement": "priority", "copies": 4, "percent": 50}])
def test_copies(values: dict[str, Any]) -> None:
    guest = Guest(patched=True)
    with applied(guest, COPIES.bind(values, FOUR)):
        assert f"[{values['placement']}]" in guest.files["numa_policy"]
        assert guest.files["numa_max_copies"] == str(values.get("copies", 2))
        assert guest.files["numa_copies_percent"] == str(values.get("percent", 10))


def test_what_each_policy_sets() -> None:
    def under(policy: Policy, **values: Any) -> dict[str, str]:
        guest = Guest(patched=True)
        with applied(guest, policy.bind(values, FOUR)):
            return dict(guest.files)

    for name in ("fair", "priority", "strict"):
        found = under(system.policies()[name], on="2,1", threads=4, rate=0, sample=50, hysteresis=10)
        assert f"[{name}]" in found["numa_policy"]
        assert (found["numa_nodes"], found["scan_threads"], found["numa_migrate_rate"]) == ("1-2", "4", "0")
        assert (found["numa_sample_millisecs"], found["numa_hysteresis"]) == ("50", "10")
        assert (found["numa_max_copies"], found["numa_force_node"], found["merge_across_nodes"]) == ("1", "-1", "1")
    assert under(FAIR)["numa_nodes"] == "0-3"
    assert under(FORCE_NODE, node=3)["numa_force_node"] == "3"
    assert under(SCAN_THREADS)["scan_threads"] == "2"
    assert under(SCAN_THREADS)["numa_policy"] == "[none] fair priority strict"
    assert under(SEPARATE)["merge_across_nodes"] == "0"
    scanning = under(STOCK, pages=5000, sleep=20, smart=0)
    assert (scanning["pages_to_scan"], scanning["sleep_millisecs"], scanning["smart_scan"]) == ("5000", "20", "0")
    with pytest.raises(UserError, match="there is no such node"):
        FORCE_NODE.bind({"node": 4}, FOUR)


def test_half_of_the_patch_set_will_do_for_what_it_brings() -> None:
    """A kernel may be built without the parallel scanner, or with it alone."""
    placing = Guest(patched=True, lacks=("scan_threads",))
    with applied(placing, FAIR.bind({}, FOUR)):
        assert "[fair]" in placing.files["numa_policy"]
    with pytest.raises(MissingError, match="scan_threads"), applied(placing, FAIR.bind({"threads": 2}, FOUR)):
        pass
    scanning = Guest(patched=True, lacks=tuple(name for name in NUKSM_FILES if name.startswith("numa")))
    with applied(scanning, SCAN_THREADS.bind({"threads": 4}, FOUR)):
        assert scanning.files["scan_threads"] == "4"
    with pytest.raises(MissingError, match="has no /sys/kernel/mm/ksm/numa"), applied(scanning, FAIR.bind({}, FOUR)):
        pass


def test_the_advisor_gives_way() -> None:
    guest = Guest(patched=False)
    guest.files["advisor_mode"] = "none [scan-time]"
    with applied(guest, STOCK.bind({"pages": 333}, FOUR)):
        assert guest.files["pages_to_scan"] == "333"
    assert guest.files["advisor_mode"] == "none [scan-time]"


def test_a_kernel_without_ksm_is_told_from_one_without_the_patch_set() -> None:
    with (
        pytest.raises(MissingError, match="/sys/kernel/mm/ksm/run") as caught,
        applied(Guest(patched=False, lacks=("run",)), OFF),
    ):
        pass
    assert "CONFIG_KSM" in caught.value.remedy


def test_older_kernels_lack_what_is_optional() -> None:
    guest = Guest(patched=False, lacks=("advisor_mode", "smart_scan", "use_zero_pages"))
    with applied(guest, STOCK.bind({}, FOUR)):
        assert guest.files["pages_to_scan"] == "1000"


def test_a_refusal_of_the_kernel_is_an_error_with_its_words() -> None:
    guest = Guest(patched=True)
    guest.files["numa_policy"] = "[none] fair"  # knows no priority
    words = r"numa_policy did not take: wanted 'priority', got 'none' \(Invalid"
    with pytest.raises(ExperimentError, match=words), applied(guest, policies.PRIORITY.bind({}, FOUR)):
        pass
    assert guest.files["run"] == "0"


def test_parameters_are_checked() -> None:
    assert COPIES.problems({"placement": "fare"}) == [
        ("placement", "'fare' is none of 'none', 'fair', 'priority', 'strict' (did you mean 'fair'?)")
    ]
    assert FAIR.problems({"threads": "4"})
    assert STOCK.problems({"threads": 4})[0][1].startswith("unknown parameter")
