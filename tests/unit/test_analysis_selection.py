"""Which runs stand against which, and what may be said about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis import comparison, dataset, reference, report, selection
from analysis.comparison import Finding
from numalab.errors import UserError
from numalab.kinds import Kind
from tests.unit import synthetic_results as synthetic

WITH_PLACEBO = ("first-touch", "remote-tables", "interleave", "replicated", "placebo")


def load(directory: Path, results: list[synthetic.Json]) -> dataset.Dataset:
    return dataset.load(synthetic.write(directory, results))


@pytest.fixture(scope="module")
def hardware(tmp_path_factory: pytest.TempPathFactory) -> dataset.Dataset:
    results = synthetic.many(synthetic.on_hardware, repeats=10, accel="kvm", policies=WITH_PLACEBO)
    return load(tmp_path_factory.mktemp("hardware"), results)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> dataset.Dataset:
    return load(tmp_path_factory.mktemp("emulated"), synthetic.many(synthetic.emulated))


def test_policies_stand_against_the_baseline(hardware: dataset.Dataset) -> None:
    made = selection.along(hardware, "policy", metrics=["updates_per_second"])
    assert {each.a.name for each in made} == {"first-touch"}
    assert [each.b.name for each in made] == ["remote-tables"] * 2 + ["interleave"] * 2 + ["replicated"] * 2
    findings = {(each.b.name, each.point["workload"]): each.finding for each in made}
    assert findings["remote-tables", "gups"] is Finding.LOWER
    assert findings["replicated", "btree"] is Finding.HIGHER
    slower = next(each for each in made if each.b.name == "remote-tables")
    assert slower.ratio.estimate == pytest.approx(0.6, rel=0.05)
    assert slower.kind is Kind.MEASURED and slower.a.n == slower.b.n == 10


def test_the_placebo_gives_the_noise_floor_and_is_not_compared(hardware: dataset.Dataset) -> None:
    made = selection.along(hardware, "policy", metrics=["updates_per_second"])
    floors = selection.noise_floors(hardware, {"updates_per_second"})
    assert "placebo" not in {each.b.name for each in made}
    for each in made:
        assert each.floor is not None and each.floor.factor is not None
        assert 1.0 < each.floor.factor < 1.1
        assert each.floor == floors[each.point["workload"], "four", "none", "workload", "updates_per_second"]


def test_only_what_is_compared_is_measured(hardware: dataset.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result has a thousand counters: no interval is worth its time that nobody asked for."""
    measured: list[str] = []

    def measure(point: object, source: str, metric: str, *rest: Any) -> Any:
        measured.append(metric)
        return comparison_measure(point, source, metric, *rest)

    comparison_measure: Any = comparison.measure
    monkeypatch.setattr(comparison, "measure", measure)
    selection.along(hardware, "policy", metrics=["updates_per_second"])
    assert set(measured) == {"updates_per_second"}
    assert set(hardware.values["metric"]) > set(measured)


def test_another_baseline(hardware: dataset.Dataset) -> None:
    made = selection.along(hardware, "policy", "replicated", ["updates_per_second"])
    assert {each.a.name for each in made} == {"replicated"}
    assert all(each.ratio.estimate is not None and each.ratio.estimate < 1 for each in made)
    with pytest.raises(UserError, match="did you mean 'replicated'"):
        selection.along(hardware, "policy", "replicate")


def test_wall_time_is_left_out_unless_asked_for_and_never_judged(emulated: dataset.Dataset) -> None:
    assert "updates_per_second" not in {each.metric for each in selection.along(emulated, "policy")}
    asked = selection.along(emulated, "policy", metrics=["updates_per_second"])
    assert asked and {each.finding for each in asked} == {Finding.NOT_COMPARED}
    assert all(each.ratio.estimate is None for each in asked)


def test_counts_without_spread_are_told_plainly(emulated: dataset.Dataset) -> None:
    made = selection.along(emulated, "policy", metrics=["ready:remote_share:node0"])
    found = {each.b.name: each for each in made if each.point["workload"] == "gups"}
    assert found["replicated"].finding is Finding.LOWER
    assert found["replicated"].difference.estimate == pytest.approx(-0.5, abs=1e-3)
    assert found["replicated"].reason == "no spread in 3 and 3 runs"


def test_three_noisy_repeats_decide_nothing(emulated: dataset.Dataset) -> None:
    made = selection.along(emulated, "policy", metrics=["walk_references"])
    assert {each.finding for each in made} <= {Finding.UNDECIDED, Finding.NOTHING}


def test_counters_by_pattern_and_unknown_metrics(emulated: dataset.Dataset) -> None:
    made = selection.along(emulated, "policy", metrics=["vmstat:*"])
    assert {each.metric for each in made} == {"vmstat:pgfault", "vmstat:numa_hit"}
    with pytest.raises(UserError, match="did you mean 'walk_references'"):
        selection.along(emulated, "policy", metrics=["walk_reference"])


def test_directories_are_compared_point_by_point(tmp_path: Path) -> None:
    a = load(tmp_path / "before", synthetic.many(synthetic.on_hardware, repeats=4, accel="kvm"))
    faster = synthetic.many(
        lambda *point: [sample | {"value": 2 * sample["value"]} for sample in synthetic.on_hardware(*point)],
        repeats=4,
        accel="kvm",
        policies=("first-touch", "new-policy"),
    )
    b = load(tmp_path / "after", faster)
    made = selection.between(a, b, ["updates_per_second"])
    assert {(each.a.name, each.b.name) for each in made} == {("before", "after")}
    assert {each.point["policy"] for each in made} == {"first-touch"}
    assert len(made) == 2
    for each in made:
        assert each.ratio.estimate == pytest.approx(2.0)
    same = selection.between(a, a, ["updates_per_second"])
    assert {each.finding for each in same} == {Finding.NOTHING}


def test_runs_that_were_not_interleaved_are_warned_about(tmp_path: Path) -> None:
    a = load(tmp_path / "a", synthetic.many(synthetic.on_hardware, accel="kvm", workloads=("gups",)))
    later = synthetic.many(synthetic.on_hardware, accel="kvm", workloads=("gups",))
    for result in later:
        result["started"] = result["started"].replace("2026-01-01", "2026-01-02")
    made = selection.between(a, load(tmp_path / "b", later), ["updates_per_second"])
    assert all(any("not interleaved" in line for line in each.warnings) for each in made)
    within = selection.along(a, "policy", metrics=["updates_per_second"])
    assert not any("not interleaved" in line for each in within for line in each.warnings)


def test_different_settings_are_warned_about(tmp_path: Path) -> None:
    a = load(tmp_path / "a", synthetic.many(synthetic.on_hardware, accel="kvm"))
    b = load(tmp_path / "b", synthetic.many(synthetic.on_hardware, accel="kvm", params={"size": 1 << 20}))
    made = selection.between(a, b, ["updates_per_second"])
    assert all(any("not the same" in line for line in each.warnings) for each in made)
    alike = selection.between(a, a, ["updates_per_second"])
    assert not any("not the same" in line for each in alike for line in each.warnings)


def test_different_kinds_are_not_compared(emulated: dataset.Dataset, hardware: dataset.Dataset) -> None:
    made = selection.between(emulated, hardware)
    assert made and {each.finding for each in made} == {Finding.NOT_COMPARED}
    pages = next(each for each in made if each.metric == "ready:table_pages")
    assert "counted in emulation" in pages.reason and "measured on hardware" in pages.reason


def test_nothing_in_common(tmp_path: Path, hardware: dataset.Dataset) -> None:
    other = load(tmp_path / "x", [synthetic.result(workload="stream", accel="kvm")])
    with pytest.raises(UserError, match="share no point"):
        selection.between(hardware, other)
    with pytest.raises(UserError, match="the only one"):
        selection.along(other, "policy")


def test_failed_cells_are_left_out_and_counted(tmp_path: Path) -> None:
    results = synthetic.many(synthetic.on_hardware, accel="kvm", repeats=4, workloads=("gups",))
    broken = next(each for each in results if each["cell"]["policy"] == "replicated")
    broken["outcome"] = {"type": "panic", "status": None, "signal": None, "detail": "BUG", "oops": "BUG"}
    broken["samples"][0]["value"] = 1.0
    made = selection.along(load(tmp_path / "run", results), "policy", metrics=["updates_per_second"])
    found = next(each for each in made if each.b.name == "replicated")
    assert found.b.n == 3 and found.b.failed == 1
    assert min(found.b.values) > 1e6
    assert any("1 cell failed" in line for line in found.warnings)


def test_missing_values_are_counted_not_used(tmp_path: Path) -> None:
    results = synthetic.many(synthetic.on_hardware, accel="kvm", repeats=4, workloads=("gups",))
    results[0]["samples"][0]["value"] = None
    made = selection.along(load(tmp_path / "run", results), "policy", metrics=["updates_per_second"])
    assert made[0].a.n == 3 and made[0].a.missing == 1
    assert all("1 missing value (NA)" in " ".join(each.warnings) for each in made)


def test_geometric_mean_over_workloads(hardware: dataset.Dataset) -> None:
    made = selection.along(hardware, "policy", metrics=["updates_per_second"])
    means = {each.name: each for each in selection.overall(made)}
    assert means["replicated"].workloads == ("gups", "btree")
    assert means["replicated"].ratio.contains(1.3)
    assert selection.overall([each for each in made if each.point["workload"] == "gups"]) == []


def test_comparisons_as_json_hold_every_sample(hardware: dataset.Dataset) -> None:
    made = selection.along(hardware, "policy", metrics=["updates_per_second"])[0].to_json()
    assert len(made["a"]["samples"]) == made["a"]["n"] == 10
    assert made["kind"] == "measured" and made["ratio"]["level"] == 0.95
    assert made["mann_whitney"]["p_holm"] >= made["mann_whitney"]["p"]


# Published values.


def test_published_figure_4_is_a_share_of_one_whole() -> None:
    """Every leaf entry is local to one of four sockets: remote shares add up to 3 (within rounding)."""
    shares = reference.remote_shares()
    assert set(shares) == {"BTree", "Canneal", "Graph500", "HashJoin", "Memcached", "XSBench"}
    for values in shares.values():
        assert len(values) == 4 and sum(values) == pytest.approx(3.0, abs=0.11)
    assert shares["BTree"] == [0.18, 0.72, 1.0, 1.0]


def test_published_headlines_come_out_of_the_data() -> None:
    """Up to 1.34x on several sockets, up to 3.24x after a migration (the abstract's numbers)."""
    runs = reference.MITOSIS_RUNTIMES.table()
    assert len(runs) == len(runs.drop_duplicates(["figure", "workload", "config"]))
    cycles = runs.set_index(["figure", "workload", "config"])["runtime_cycles"]
    assert cycles["10", "GUPS", "RPI-LD"] / cycles["10", "GUPS", "RPI-LD+M"] == pytest.approx(3.24, abs=0.005)
    assert cycles["9", "Canneal", "F"] / cycles["9", "Canneal", "F+M"] == pytest.approx(1.34, abs=0.005)
    parts = (runs["walk_cycles"] + runs["non_walk_cycles"] - runs["runtime_cycles"]).abs() / runs["runtime_cycles"]
    assert (parts[runs["note"] == ""] < 1e-3).all()
    assert set(runs.loc[parts > 1e-3, "note"].str.partition(":")[0]) == {"suspect"}


def test_published_cost_of_mprotect() -> None:
    table = reference.MITOSIS_TABLE_5.table().set_index(["operation", "mapping", "pages", "replication"])["mean_cycles"]
    on, off = (table["mprotect", "private", 1 << 20, flag] for flag in (1, 0))
    assert on / off == pytest.approx(4.33, abs=0.005)
    assert len(table) == 3 * 2 * 3 * 2


def test_every_published_table_names_its_source() -> None:
    assert {path.stem for path in reference.DATA.glob("*.csv")} == {each.name for each in reference.CATALOGUE}
    readme = (reference.DATA / "README.md").read_text()
    for each in reference.CATALOGUE:
        assert f"{each.name}.csv" in readme
        assert "ASPLOS 2020" in each.source and "measured on hardware" in each.source
        assert len(each.table())


def test_what_ran_beside_a_program_is_an_axis_like_any_other(tmp_path: Path) -> None:
    """Cells with and without interference are never pooled, and can be compared with each other."""
    results = []
    for beside, factor in (("none", 1), ("far", 2)):
        for policy in ("first-touch", "remote-tables"):
            for repeat in range(4):
                samples = [synthetic.sample("walk_references", 1e6 * factor, "references", "counted")]
                results.append(synthetic.result(policy=policy, repeat=repeat, interference=beside, samples=samples))
    data = load(tmp_path, results)
    assert data.axis("interference") == ["none", "far"]
    for each in selection.along(data, "policy", metrics=["walk_references"]):
        assert (each.a.n, each.b.n, each.finding) == (4, 4, Finding.SAME)
    made = selection.along(data, "interference", metrics=["walk_references"])
    assert [(each.b.name, each.ratio.estimate) for each in made] == [("far", 2.0)] * 2
    html = report.render(data)
    assert "interference far" in html
    assert "<dt>interference</dt><dd>none, far</dd>" in html
