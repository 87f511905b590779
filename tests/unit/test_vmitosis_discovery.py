"""NO-F: groups of vCPUs from latencies alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from numalab.errors import UserError
from numalab.run.policy import number_list
from vmitosis.chance import CRITICAL, LEVEL, critical
from vmitosis.discovery import discover, strongest
from vmitosis.latencies import flat, read, simulate

MACHINES = 1000


#: Seconds: ten of them alone, minutes on a host with ten times as much to do as it has cores.
PATIENT = pytest.mark.timeout(1800)


@PATIENT
def test_a_thousand_machines() -> None:
    """Of 2 to 8 nodes, 8 to 128 vCPUs: right for at least 99 in 100; says which are not. What is wrong is less sure."""
    wrong, sure, unsure = [], [], []
    for seed in range(MACHINES):
        machine = simulate(seed, nodes=2 + seed % 7)
        assert 2 <= len(machine.groups) <= 8
        assert 8 <= len(machine.node) <= 128
        found = discover(machine.latencies)
        assert 0.0 <= found.confidence <= 1.0
        assert sorted(vcpu for group in found.groups for vcpu in group) == list(range(len(machine.node)))
        if found.groups == machine.groups:
            sure.append(found.confidence)
        else:
            unsure.append(found.confidence)
            wrong.append(
                f"seed {seed}: {len(machine.node)} vCPUs on {len(machine.groups)} nodes, {machine.threads} to a core: "
                f"found {len(found.groups)} ({found.confidence:.2f}: {found.reason})"
            )
    assert len(wrong) <= MACHINES // 100, "\n".join(wrong)
    assert np.median(sure) > 0.9
    assert not unsure or np.median(unsure) < np.median(sure)


def test_one_node_is_not_divided() -> None:
    for seed in range(100):
        machine = simulate(seed, nodes=1)
        found = discover(machine.latencies)
        assert len(found.groups) == 1, f"seed {seed}: {len(machine.node)} vCPUs: {found.reason}"


def test_the_simulated_machines_differ() -> None:
    """A test of 1,000 alike would say nothing."""
    machines = [simulate(seed) for seed in range(200)]
    assert {len(machine.groups) for machine in machines} == set(range(1, 9))
    assert {machine.threads for machine in machines} == {1, 2}
    sizes = [len(machine.node) for machine in machines]
    assert min(sizes) < 20
    assert max(sizes) > 120
    assert any(not np.allclose(each.latencies, each.latencies.T, rtol=0.3) for each in machines)
    uneven = [np.ptp(np.bincount(machine.node)) > 4 for machine in machines]
    assert 0.1 < np.mean(uneven) < 0.9


@pytest.mark.parametrize("vcpus", [96, 192])
def test_the_published_machine(vcpus: int) -> None:
    """Four Xeon Gold 6252 of 24 cores and 48 threads; the authors' fixed limit between near and far was 100 ns."""
    for seed in range(10):
        machine = simulate(seed, nodes=4, vcpus=vcpus, threads=2, local=50, ratio=2.5, even=True)
        found = discover(machine.latencies)
        assert found.groups == machine.groups
        assert found.confidence > 0.8
        assert len(found.siblings) == vcpus // 2
        assert found.local is not None
        assert found.remote is not None
        assert found.local < 100 < found.remote[0]


@pytest.mark.parametrize("scale", [1e-9, 1.0, 40.0])
def test_no_limit_in_nanoseconds(scale: float) -> None:
    machine = simulate(3, nodes=4, vcpus=32)
    assert discover(machine.latencies * scale).groups == machine.groups


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1, 0.3, 0.6])
def test_flat_is_one_group(noise: float) -> None:
    """As in emulation, where every pair of CPUs is equally far apart."""
    for seed in range(20):
        vcpus = int(np.random.default_rng(seed).integers(4, 129))
        found = discover(flat(seed, vcpus, noise))
        assert found.groups == (tuple(range(vcpus)),), f"seed {seed}: {found.reason}"
        assert found.remote is None
        assert found.confidence > 0.5 or vcpus < 8


SMALL = range(3, 17)


@PATIENT
@pytest.mark.parametrize("noise", [0.01, 0.1, 0.3, 0.6, 1.0])
def test_few_vcpus_of_a_flat_machine_are_one_group(noise: float) -> None:
    """Few pairs, in which chance finds groups easily: at most 1 in 100 of each size, 2 in 1,000 are expected.

    Of five kinds of disturbance, 100 matrices of each for each size; the level is `vmitosis.chance.LEVEL`.
    """
    wrong = {vcpus: sum(len(discover(flat(seed, vcpus, noise)).groups) != 1 for seed in range(100)) for vcpus in SMALL}
    assert max(wrong.values()) <= 1, wrong
    assert sum(wrong.values()) <= 100 * len(SMALL) // 100, wrong


@pytest.mark.parametrize("shape", ["adds", "even"])
def test_disturbance_of_another_shape_than_the_tables(shape: str) -> None:
    """Critical values come of log-normal matrices; disturbance that only adds, and one that is bounded."""
    for vcpus in (4, 5, 6, 8, 12):
        wrong = 0
        for seed in range(100):
            rng = np.random.default_rng(seed)
            size = (vcpus, vcpus)
            drawn = 60 * np.exp(rng.exponential(0.2, size)) if shape == "adds" else rng.uniform(40, 80, size)
            wrong += len(discover(drawn).groups) != 1
        assert wrong <= 1, f"{vcpus} vCPUs: {wrong}"


def test_small_machines_that_are_clear_are_found() -> None:
    """What the level costs: four vCPUs on two nodes are seen where latencies differ by far more than they spread."""
    right = {4: 0, 6: 0, 8: 0}
    for vcpus in right:
        for seed in range(50):
            rng = np.random.default_rng(seed)
            node = np.arange(vcpus) * 2 // vcpus
            exact = np.where(node[:, None] == node[None, :], 50.0, 120.0)
            found = discover(exact * np.exp(np.abs(rng.normal(0, 0.03, exact.shape))))
            right[vcpus] += found.labels == tuple(node)
    assert right[6] == right[8] == 50
    assert right[4] >= 40


@PATIENT
def test_critical_values_are_what_flat_matrices_give() -> None:
    """The table, for two sizes, from other matrices than it was made of: about as many exceed it as it says."""
    for vcpus in (4, 6):
        over = sum(strongest(flat(seed, vcpus, 0.2)) > CRITICAL[vcpus] for seed in range(500))
        assert over <= 5, f"{vcpus} vCPUs: {over} of 500, expected {500 * LEVEL:.0f}"
    assert critical(3) == np.inf, "three latencies say nothing of their spread"
    assert list(CRITICAL.values()) == sorted(CRITICAL.values(), reverse=True), "more vCPUs, more pairs, less chance"
    assert critical(128) == critical(max(CRITICAL))


def test_hyper_threads_are_no_nodes() -> None:
    for seed in range(20):
        machine = simulate(seed, nodes=1, vcpus=48, threads=2)
        found = discover(machine.latencies)
        assert len(found.groups) == 1
        assert len(found.siblings) == 24


@pytest.mark.parametrize("noise", [0.12, 0.2])
@pytest.mark.parametrize("ratio", [1.3, 2.0])
def test_worse_disturbance_than_that(noise: float, ratio: float) -> None:
    right = 0
    for seed in range(25):
        machine = simulate(seed, noise=noise, ratio=ratio)
        right += discover(machine.latencies).groups == machine.groups
    assert right >= 22


def test_pairs_alone_are_a_guess_and_say_so() -> None:
    """Cores of two threads on one node, or nodes of two vCPUs: latencies do not tell."""
    near = np.full((8, 8), 60.0)
    for first in range(0, 8, 2):
        near[first : first + 2, first : first + 2] = 30.0
    assert discover(near).groups == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert discover(near).confidence < 0.5
    near[near == 30] = 12.0
    assert discover(near).groups == (tuple(range(8)),)
    assert discover(near).confidence < 0.5


def test_one_direction_is_enough() -> None:
    machine = simulate(5, nodes=3, vcpus=24)
    one = np.where(np.triu(np.ones((24, 24), bool)), machine.latencies, np.nan)
    assert discover(one).groups == machine.groups


def test_small_machines() -> None:
    assert discover([[0.0]]).groups == ((0,),)
    two = discover([[0.0, 50.0], [50.0, 0.0]])
    assert (two.groups, two.confidence) == (((0, 1),), 0.0)


@pytest.mark.parametrize(
    ("matrix", "word"),
    [
        ([[0.0, 1.0]], "square"),
        ([[0.0, np.nan, 1], [np.nan, 0, 1], [1, 1, 0]], "vCPU 0 and vCPU 1"),
        ([[0.0, -1.0], [-1.0, 0.0]], "positive"),
        ([[0.0, np.inf], [np.inf, 0.0]], "positive"),
    ],
)
def test_what_is_no_matrix(matrix: list[list[float]], word: str) -> None:
    with pytest.raises(UserError, match=word):
        discover(matrix)


def test_lists_as_the_kernel_takes_them() -> None:
    machine = simulate(0, nodes=2, vcpus=8, threads=1)
    found = discover(machine.latencies)
    assert found.lists() == " ".join(number_list(group) for group in machine.groups)
    assert found.labels[machine.groups[1][0]] == 1


MATRIX = [[0, 50, 130, 131], [51, 0, 129, 130], [128, 131, 0, 50], [131, 130, 52, 0]]
MATRIX = [[value for value in row for _ in (0, 1)] for row in MATRIX for _ in (0, 1)]
for _at in range(8):
    MATRIX[_at][_at ^ 1] = 49


def _csv(header: bool, labels: bool) -> str:
    cpus = [0, 1, 2, 3, 8, 9, 10, 11]
    lines = ["# cpus 8"]
    if header:
        lines.append(",".join([*(["cpu"] if labels else []), *map(str, cpus)]))
    for cpu, row in zip(cpus, MATRIX, strict=True):
        fields = ["" if not value else str(value) for value in row]
        lines.append(",".join([*([str(cpu)] if labels else []), *fields]))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("header", [True, False])
def test_matrix_files(header: bool, labels: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(_csv(header, labels))
    matrix, cpus = read(path)
    assert np.array_equal(np.nan_to_num(matrix), MATRIX)
    assert cpus == ((0, 1, 2, 3, 8, 9, 10, 11) if header or labels else tuple(range(8)))
    groups = discover(matrix).renumbered(cpus).groups
    assert groups == (((0, 1, 2, 3), (8, 9, 10, 11)) if header or labels else ((0, 1, 2, 3), (4, 5, 6, 7)))


@pytest.mark.parametrize("text", ["", "1,2\n3\n", "0,a\nb,0\n", "# only words\n"])
def test_files_that_are_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"m\.csv"):
        read(path)


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(_csv(True, True))
    command = [sys.executable, "-m", "vmitosis.discovery"]
    plain = subprocess.run([*command, path], capture_output=True, text=True, check=True).stdout.splitlines()
    assert plain[:2] == ["group 0: 0-3", "group 1: 8-11"]
    assert plain[2].startswith("confidence ")
    told = subprocess.run([*command, "--json", path], capture_output=True, text=True, check=True).stdout
    assert json.loads(told)["groups"] == [[0, 1, 2, 3], [8, 9, 10, 11]]
    lists = subprocess.run([*command, "--lists", path], capture_output=True, text=True, check=True).stdout
    assert lists == "0-3 8-11\n"
    missing = subprocess.run([*command, tmp_path / "none.csv"], capture_output=True, check=False)
    assert missing.returncode == 2
