"""Experiment files: what is wrong is said with file and key, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from numalab.errors import UserError
from numalab.machine.topology import uniform
from numalab.run.check import load
from numalab.run.spec import Experiment
from tests.unit.fake_lab import QUICK, World, make_lab


def read(tmp_path: Path, text: str, world: World | None = None) -> Experiment:
    file = tmp_path / "exp.toml"
    file.write_text(text)
    return load(file, make_lab(world or World(), tmp_path))


def complaints(tmp_path: Path, text: str, world: World | None = None) -> list[str]:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text, world)
    assert caught.value.exit_status == 2
    return [line.replace(f"{tmp_path}/", "") for line in str(caught.value).splitlines()]


def matrix(more: str = "", *, workload: str = '"gups"') -> str:
    return f"[matrix]\nworkload = [{workload}]\n{more}\n"


def test_a_whole_file(tmp_path: Path) -> None:
    experiment = read(
        tmp_path,
        """
        name = "whole"
        title = "all keys"
        seed = 3
        repeats = 5
        placebo = true
        baseline = { kernel = "patched", policy = "far" }
        [matrix]
        kernel = ["stock", "patched"]
        policy = ["none", "far"]
        workload = ["small", "btree"]
        topology = ["odd"]
        [[exclude]]
        because = "stock has no knob"
        kernel = "stock"
        policy = ["far"]
        [policies.far]
        policy = "remote"
        node = 0
        [workloads.small]
        workload = "gups"
        size = "1M"
        [topologies.odd]
        nodes = [{ cpus = 2, memory = "64M" }, { cpus = 0, memory = 1048576 }]
        distances = [[10, 30], [40, 10]]
        asymmetric = true
        paging_levels = 5
        visible = false
        [measure]
        snapshots = ["ready", "done"]
        perf = []
        metrics = ["updates"]
        [run]
        timeout = 5
        boot_timeout = 7.5
        fresh_machine = true
        append = "quiet"
        nested = true
        mirror_host = false
        huge_pages = false
        """,
    )
    odd = experiment.topologies["odd"]
    assert [(node.cpus, node.memory) for node in odd.nodes] == [(2, 64 << 20), (0, 1 << 20)]
    assert odd.distances == ((10, 30), (40, 10))
    assert (odd.paging_levels, odd.visible) == (5, False)
    assert (experiment.baseline_kernel, experiment.baseline_policy) == ("patched", "far")
    assert experiment.workloads[0].params == {"size": "1M"}
    assert [axes["policy"] for axes in experiment.kept() if axes["kernel"] == "stock"] == ["none", "none"]
    assert (experiment.running.timeout, experiment.running.boot_timeout) == (5, 7.5)


def test_interference(tmp_path: Path) -> None:
    text = matrix('interference = ["none", "near", "both"]') + "[interference.both]\nnode = [0, 1]\n"
    experiment = read(tmp_path, text + '[interference.near]\nworkload = "noise"\nnode = 0\nsize = "2M"\n')
    none, near, both = experiment.interferences
    assert (none.name, none.nodes) == ("none", ())
    assert (near.name, near.workload, near.nodes, near.params) == ("near", "noise", (0,), {"size": "2M"})
    assert (both.workload, both.nodes) == ("stream", (0, 1))
    assert experiment.to_json()["interference"] == {
        "near": {"workload": "noise", "node": [0], "size": "2M"},
        "both": {"workload": "stream", "node": [0, 1]},
    }


def test_defaults(tmp_path: Path) -> None:
    experiment = read(tmp_path, 'matrix = { workload = "gups" }')
    assert experiment.name == "exp"
    assert experiment.axes == {
        "kernel": ("stock",),
        "policy": ("none",),
        "workload": ("gups",),
        "topology": ("four",),
        "interference": ("none",),
    }
    assert experiment.topologies["four"] == uniform()
    assert (experiment.baseline_kernel, experiment.baseline_policy) == ("stock", "none")
    assert experiment.measure.snapshots == ("ready",)


def beside(described: str, *, axis: str = "far") -> str:
    return matrix(f'interference = ["none", "{axis}"]\n' + (f"[interference.far]\n{described}" if described else ""))


GOLDEN = {
    "unknown policy": (
        matrix('policy = ["none", "mitoss"]'),
        "exp.toml: matrix.policy[1]: unknown policy 'mitoss' (did you mean 'mitosis'?)",
    ),
    "unknown base policy": (
        matrix('policy = ["far"]\n[policies.far]\npolicy = "remotely"'),
        "exp.toml: policies.far.policy: unknown policy 'remotely' (did you mean 'remote'?)",
    ),
    "unknown workload": (
        matrix(workload='"gups", "btee"'),
        "exp.toml: matrix.workload[1]: unknown workload 'btee' (did you mean 'btree'?)",
    ),
    "unknown kernel": (
        matrix('kernel = ["stok"]'),
        "exp.toml: matrix.kernel[0]: unknown kernel 'stok' (did you mean 'stock'?) "
        "(kernels: stock, patched, debug, or a path)",
    ),
    "unknown topology": (
        matrix('topology = "for"'),
        "exp.toml: matrix.topology[0]: unknown topology 'for' (did you mean 'four'?)",
    ),
    "unknown metric": (
        matrix() + '[measure]\nmetrics = ["updats"]',
        "exp.toml: measure.metrics[0]: unknown metric 'updats' (did you mean 'updates'?) (metrics: updates)",
    ),
    "unknown metric of a placement": (
        matrix() + '[measure]\nsnapshots = ["ready"]\nmetrics = ["ready:table_pages:node0", "ready:table_byte"]',
        "exp.toml: measure.metrics[1]: unknown metric 'ready:table_byte' (did you mean 'ready:table_bytes'?) "
        "(metrics: updates)",
    ),
    "metric of a mark without a snapshot": (
        matrix() + '[measure]\nsnapshots = ["ready"]\nmetrics = ["done:table_bytes"]',
        "exp.toml: measure.metrics[0]: unknown metric 'done:table_bytes' (did you mean 'ready:table_bytes'?) "
        "(metrics: updates)",
    ),
    "unknown mark": (
        matrix() + '[measure]\nsnapshots = ["redy"]',
        "exp.toml: measure.snapshots[0]: unknown mark 'redy' (did you mean 'ready'?) (marks: init, ready, done)",
    ),
    "several events in one": (
        matrix() + '[measure]\nperf = ["cycles,instructions"]',
        "exp.toml: measure.perf[0]: perf: 'cycles,instructions' is not the name of one event",
    ),
    "mistyped top key": (
        "repeets = 3\n" + matrix(),
        "exp.toml: repeets: unknown key (did you mean 'repeats'?)",
    ),
    "mistyped deep key": (
        matrix() + "[run]\ntimeot = 3",
        "exp.toml: run.timeot: unknown key (did you mean 'timeout'?)",
    ),
    "mistyped topology key": (
        matrix() + "[topologies.four]\nnods = 3",
        "exp.toml: topologies.four.nods: unknown key (did you mean 'nodes'?)",
    ),
    "wrong type": (
        'repeats = "three"\n' + matrix(),
        "exp.toml: repeats: must be an integer, not a string ('three')",
    ),
    "true is no integer": (
        "repeats = true\n" + matrix(),
        "exp.toml: repeats: must be an integer, not true or false (true)",
    ),
    "word in an array": (
        matrix("kernel = [1]"),
        "exp.toml: matrix.kernel[0]: must be a string, not an integer (1)",
    ),
    "too few repeats": ("repeats = 0\n" + matrix(), "exp.toml: repeats: must be at least 1, not 0"),
    "no time": (matrix() + "[run]\ntimeout = 0", "exp.toml: run.timeout: must be more than 0 seconds, not 0"),
    "twice": (
        matrix('kernel = ["stock", "stock"]'),
        "exp.toml: matrix.kernel[1]: 'stock' is there twice",
    ),
    "no workload": ("[matrix]\nkernel = 'stock'", "exp.toml: matrix.workload: is missing"),
    "empty axis": ("[matrix]\nworkload = []", "exp.toml: matrix.workload: must name at least one"),
    "zero CPUs": (
        matrix() + "[topologies.four]\nnodes = 2\ncpus_per_node = 0",
        "exp.toml: topologies.four: a machine needs at least one CPU; all its nodes have 0",
    ),
    "zero CPUs, node by node": (
        matrix() + '[topologies.four]\nnodes = [{ cpus = 0, memory = "64M" }]',
        "exp.toml: topologies.four: a machine needs at least one CPU; all its nodes have 0",
    ),
    "negative CPUs": (
        matrix() + '[topologies.four]\nnodes = [{ cpus = -1, memory = "64M" }]',
        "exp.toml: topologies.four.nodes[0].cpus: must be at least 0, not -1",
    ),
    "node without memory key": (
        matrix() + "[topologies.four]\nnodes = [{ cpus = 1 }]",
        "exp.toml: topologies.four.nodes[0].memory: is missing",
    ),
    "no size": (
        matrix() + '[topologies.four]\nnode_memory = "much"',
        "exp.toml: topologies.four.node_memory: 'much' is not a size (write 4096, 64K, 512M or 2G)",
    ),
    "distances not square": (
        matrix() + "[topologies.four]\nnodes = 2\ndistances = [[10, 20]]",
        "exp.toml: topologies.four: distances must be a square of 2 × 2 (one row per node), got rows of [2]",
    ),
    "distances ragged": (
        matrix() + "[topologies.four]\nnodes = 2\ndistances = [[10, 20], [20]]",
        "exp.toml: topologies.four: distances must be a square of 2 × 2 (one row per node), got rows of [2, 1]",
    ),
    "distances of another type": (
        matrix() + '[topologies.four]\nnodes = 2\ndistances = [[10, "far"], [20, 10]]',
        "exp.toml: topologies.four.distances[0][1]: must be an integer, not a string",
    ),
    "asymmetric by accident": (
        matrix() + "[topologies.four]\nnodes = 2\ndistances = [[10, 20], [21, 10]]",
        "exp.toml: topologies.four: distances are not symmetric: 0→1 is 20, 1→0 is 21; "
        "set asymmetric = true (--asymmetric) if that is meant",
    ),
    "too much memory": (
        matrix() + '[topologies.four]\nnodes = 4\nnode_memory = "8G"',
        "exp.toml: topologies.four: its nodes have 32 GiB of memory in all (and QEMU takes up to 512 MiB); "
        "this host has 16 GiB",
    ),
    "unused workload": (
        matrix() + '[workloads.gupss]\nsize = "1M"',
        "exp.toml: workloads.gupss: is described here and not used in matrix.workload (did you mean 'gups'?)",
    ),
    "unknown workload parameter": (
        matrix() + '[workloads.gups]\nsiez = "1M"',
        "exp.toml: workloads.gups.siez: unknown parameter (did you mean 'size'?)",
    ),
    "bad workload parameter": (
        matrix() + '[workloads.gups]\nsize = "big"',
        "exp.toml: workloads.gups: size: 'big' is not a size",
    ),
    "unknown policy parameter": (
        matrix('policy = "far"') + '[policies.far]\npolicy = "remote"\nnoed = 1',
        "exp.toml: policies.far.noed: unknown parameter (did you mean 'node'?); policy 'remote' has node",
    ),
    "policy parameter of another type": (
        matrix('policy = "far"') + '[policies.far]\npolicy = "remote"\nnode = "1"',
        "exp.toml: policies.far.node: must be a node's number, not a string ('1')",
    ),
    "no such node": (
        matrix('policy = "far"') + '[policies.far]\npolicy = "remote"\nnode = 4',
        "exp.toml: policies.far: policy 'far' on topology 'four': node = 4: there is no such node "
        "(the topology has nodes 0-3)",
    ),
    "unknown interference": (
        beside("", axis="fra") + "[interference.far]\nnode = 1",
        "exp.toml: matrix.interference[1]: unknown interference 'fra' (did you mean 'far'?) "
        "(describe it: [interference.fra] node = 1)",
    ),
    "unused interference": (
        beside("", axis="fra") + "[interference.far]\nnode = 1",
        "exp.toml: interference.far: is described here and not used in matrix.interference (did you mean 'fra'?)",
    ),
    "interference without node": (beside('workload = "noise"'), "exp.toml: interference.far.node: is missing"),
    "interference on no node": (beside("node = []"), "exp.toml: interference.far.node: must name at least one"),
    "interference on a word": (
        beside('node = ["1"]'),
        "exp.toml: interference.far.node[0]: must be an integer, not a string",
    ),
    "interference twice on a node": (
        beside("node = [1, 1]"),
        "exp.toml: interference.far.node[1]: node 1 is there twice",
    ),
    "interference on a node that is not there": (
        beside('workload = "noise"\nnode = 4'),
        "exp.toml: interference.far: on topology 'four': node = 4: there is no such node (the topology has nodes 0-3)",
    ),
    "interference of an unknown workload": (
        beside('workload = "nois"\nnode = 1'),
        "exp.toml: interference.far.workload: unknown workload 'nois' (did you mean 'noise'?)",
    ),
    "interference that ends by itself": (
        beside('workload = "gups"\nnode = 1'),
        "exp.toml: interference.far.workload: 'gups' ends by itself; what can run beside a program: stream, noise",
    ),
    "unknown parameter of an interference": (
        beside('workload = "noise"\nnode = 1\nsiez = "1M"'),
        "exp.toml: interference.far: on topology 'four': siez: unknown parameter (did you mean 'size'?) of workload "
        "'noise'",
    ),
    "interference too large for its node": (
        beside('workload = "noise"\nnode = 1\nsize = "512M"'),
        "exp.toml: interference.far: on topology 'four': size: '512M' does not fit into node 1, which has 512 MiB",
    ),
    "interference without CPUs": (
        beside('workload = "noise"\nnode = 1')
        + '[topologies.four]\nnodes = [{ cpus = 1, memory = "64M" }, { cpus = 0, memory = "64M" }]',
        "exp.toml: interference.far: on topology 'four': node = 1: this node has no CPUs to run on; name others with "
        "cpus",
    ),
    "interference without memory": (
        beside('workload = "noise"\nnode = 1')
        + '[topologies.four]\nnodes = [{ cpus = 1, memory = "64M" }, { cpus = 1, memory = 0 }]',
        "exp.toml: interference.far: on topology 'four': node = 1: this node has no memory to load",
    ),
    "interference on a hidden node": (
        beside('workload = "noise"\nnode = 1') + "[topologies.four]\nvisible = false",
        "exp.toml: interference.far: on topology 'four': node = 1: nodes are hidden from this guest (visible = false)",
    ),
    "reserved interference": (
        beside("node = 1") + "[interference.none]\nnode = 1",
        "exp.toml: interference.none: 'none' means that nothing runs beside the program; take another name",
    ),
    "interference of a policy": (
        matrix('policy = "crowded"') + "[policies.crowded]\naway = 4",
        "exp.toml: policies.crowded: policy 'crowded' on topology 'four': away = 4: there is no such node "
        "(the topology has nodes 0-3)",
    ),
    "option the workload lacks": (
        matrix('policy = "spread"', workload='"btree"'),
        "exp.toml: matrix.workload (btree): policy 'spread' sets the option 'memory', which workload 'btree' does "
        "not have; exclude the pair, or choose another policy",
    ),
    "option set twice": (
        matrix('policy = "spread"') + '[workloads.gups]\nmemory = "bind:0"',
        "exp.toml: workloads.gups.memory: policy 'spread' sets 'memory' too (to 'interleave:0-3'); leave one out",
    ),
    "exclude of nothing": (
        matrix() + '[[exclude]]\npolicy = "nome"',
        "exp.toml: exclude[0].policy: 'nome' is not in matrix.policy (did you mean 'none'?)",
    ),
    "empty exclude": (
        matrix() + '[[exclude]]\nbecause = "why not"',
        "exp.toml: exclude[0]: must name at least one of kernel, policy, workload, topology, interference",
    ),
    "all excluded": (
        matrix() + '[[exclude]]\nkernel = "stock"',
        "exp.toml: exclude: leaves no point of the matrix",
    ),
    "baseline elsewhere": (
        "baseline = { policy = 'mitosis' }\n" + matrix(),
        "exp.toml: baseline.policy: 'mitosis' is not in matrix.policy",
    ),
    "name": ('name = "a/b"\n' + matrix(), None),
    "reserved label": (
        matrix('policy = "placebo"') + '[policies.placebo]\npolicy = "none"',
        "exp.toml: matrix.policy: 'placebo' is the label of the A/A repetition (set placebo = true)",
    ),
    "no table": ("matrix = 3", "exp.toml: matrix: must be a table, not an integer (3)"),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_message(case: str, tmp_path: Path) -> None:
    text, wanted = GOLDEN[case]
    if wanted is None:
        wanted = "exp.toml: name: 'a/b' cannot name a directory (use letters, digits and . _ + -)"
    assert wanted in complaints(tmp_path, text)


def test_all_complaints_at_once(tmp_path: Path) -> None:
    found = complaints(
        tmp_path,
        'repeets = 1\nseed = "x"\n[matrix]\nworkload = ["gup"]\npolicy = ["mitoss"]\n[topologies.four]\nnodes = 0\n',
    )
    assert len(found) == 5
    for part in ("repeets", "seed", "matrix.workload[0]", "matrix.policy[0]", "topologies.four.nodes"):
        assert any(line.startswith(f"exp.toml: {part}: ") for line in found), part


def test_an_asymmetric_machine_can_be_meant(tmp_path: Path) -> None:
    text = matrix() + "[topologies.four]\nnodes = 2\nasymmetric = true\ndistances = [[10, 20], [21, 10]]"
    assert read(tmp_path, text).topologies["four"].distances == ((10, 20), (21, 10))


def test_a_policy_is_only_checked_where_it_is_used(tmp_path: Path) -> None:
    """Node 1 does not exist on the small machine, but the pair is excluded."""
    text = matrix('policy = ["none", "remote"]\ntopology = ["four", "one"]\nkernel = "patched"')
    text += "[topologies.one]\nnodes = 1\n"
    assert "no such node" in complaints(tmp_path, text)[0]
    read(tmp_path, text + '[[exclude]]\npolicy = "remote"\ntopology = "one"')


def test_no_toml(tmp_path: Path) -> None:
    found = complaints(tmp_path, "name = 1\nname ? 2\n")
    assert found[0].startswith("exp.toml: not TOML: ")
    assert "line 2" in found[0]


def test_not_text(tmp_path: Path) -> None:
    file = tmp_path / "exp.toml"
    file.write_bytes(b"name = '\xff'")
    with pytest.raises(UserError, match=r"not UTF-8 text \(byte 8\)"):
        load(file, make_lab(World(), tmp_path))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.toml: no such file"):
        load(tmp_path / "none.toml", make_lab(World(), tmp_path))


def test_the_memory_of_the_host_decides(tmp_path: Path) -> None:
    assert read(tmp_path, QUICK, World(total=1 << 30))
    assert "has 600 MiB" in complaints(tmp_path, QUICK, World(total=600 << 20))[0]
