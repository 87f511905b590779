"""Replicas in tables, frames and pictures: before and after, and what is not filled yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import dataset, frames, plots, report, style, summary, tables
from analysis.placement import Group, Placement, grouped, placements
from numalab.measure.process import ProcessPlacement
from numalab.results import PLACEMENT_METRICS, PLACEMENT_METRICS_BY_NODE
from tests.unit import synthetic_results as synthetic
from tests.unit.snapshots import lazily_replicated, replicated, snapshot, unreplicated


def result_of(*processes: ProcessPlacement, policy: str, repeat: int = 0) -> dict[str, Any]:
    """A result whose placement is a real snapshot's own JSON."""
    made = synthetic.result(policy=policy, repeat=repeat)
    taken = snapshot(*processes).to_json()
    made["placement"] = [{"mark": "ready", "file": "snapshot-ready.npz", "summary": taken}]
    return made


def placed(*processes: ProcessPlacement) -> Placement:
    [found] = placements(result_of(*processes, policy="p"), None)
    return found


def test_a_lazy_replica() -> None:
    found = placed(lazily_replicated())
    assert (found.mode, found.trees) == ("lazy", 3)
    assert found.replicas.tolist() == [[0, 2, 0], [0, 1, 0], [0, 1, 0], [0, 2, 0]]
    assert found.pages.sum() == 5 + found.replicas.sum()
    assert found.remote[:2] == pytest.approx([2 / 11, 0])
    assert np.isnan(found.remote[2]), "its replica is empty: a walk finds nothing"
    assert found.before == pytest.approx([2 / 11, 9 / 11, 1])
    assert found.unfilled == pytest.approx([0, 6 / 11, 1])


#: Six pages of 4K and one of 2M; the zero page and the device's count for nothing.
MAPPED = 6 * 4096 + (2 << 20)


def test_what_replicas_cost() -> None:
    plain, eager = placed(unreplicated()), placed(replicated())
    assert plain.mapped == eager.mapped == MAPPED
    assert plain.overhead == 1
    assert eager.overhead == pytest.approx((MAPPED + 2 * 4 * 4096) / (MAPPED + 4 * 4096))
    assert placed(unreplicated(), replicated()).mapped == 2 * MAPPED
    [old] = placements(synthetic.result(policy="first-touch"), None)  # a snapshot that does not say what is mapped
    assert old.mapped is None
    assert np.isnan(old.overhead)


def test_metrics_of_a_placement_have_the_names_that_experiments_know() -> None:
    found = {metric for metric, _, _ in frames.placement_metrics(placed(replicated()))}
    by_node = {f"{name}:node{node}" for name in PLACEMENT_METRICS_BY_NODE for node in range(3)}
    assert found == {*PLACEMENT_METRICS, *by_node}


def test_the_report_leads_with_a_metric_of_placement(tmp_path: Path) -> None:
    results = [result_of(each, policy=policy) for policy, each in (("off", unreplicated()), ("eager", replicated()))]
    lead = ["ready:table_overhead", "ready:table_bytes"]
    data = dataset.load(synthetic.write(tmp_path / "run", results, baseline="off", metrics=lead))
    shown = report.context(data)
    [part] = shown["comparisons"]
    assert part["own"].rows[0][0] == "ready:table_overhead (ratio)"
    assert "ready:table_bytes" in str(shown["metrics"].rows)
    assert "ready:table_overhead" not in str(part["placed"].rows)


def test_processes_weigh_what_they_have() -> None:
    """9 entries of a process without replicas beside 11 of one with them, of which node 1 finds 5."""
    found = placed(lazily_replicated(), unreplicated())
    assert found.unfilled == pytest.approx([0, 6 / 20, 11 / 20])
    assert found.before == pytest.approx([(2 + 9) / 20, 9 / 20, 1])
    assert found.remote == pytest.approx([(2 + 9) / 20, 0, 1])
    assert found.mode == "lazy"


def test_without_replicas_before_is_after() -> None:
    found = placed(unreplicated())
    assert found.mode == "" and not found.replicas.any() and not found.unfilled.any()
    assert found.before.tolist() == found.remote.tolist() == [1.0, 0.0, 1.0]
    [old] = placements(synthetic.result(policy="first-touch"), None)  # a snapshot of schema 1
    assert old.before.tolist() == old.remote.tolist()
    assert not old.unfilled.any()


@pytest.fixture
def data(tmp_path: Path) -> dataset.Dataset:
    made = {"first-touch": unreplicated(), "lazy": lazily_replicated(), "eager": replicated()}
    results = [result_of(each, policy=policy, repeat=n) for policy, each in made.items() for n in range(2)]
    return dataset.load(synthetic.write(tmp_path / "run", results))


def test_the_table_has_before_and_after(data: dataset.Dataset) -> None:
    groups = by_policy(data)
    table = tables.placement_table(list(groups.values()), list(groups), title="gups")
    rows = {(name, row[1]): row[2:] for name, row in named(table.rows)}
    assert rows["first-touch", "remote share"] == ["100.0%", "0.0%", "100.0%", ""]
    assert ("first-touch", "of them replicas") not in rows
    assert rows["lazy", "of them replicas"] == ["0", "6", "0", "6"]
    assert rows["lazy", "remote share before"] == ["18.2%", "81.8%", "100.0%", ""]
    assert rows["lazy", "remote share after"] == ["18.2%", "0.0%", "NA", ""]
    assert rows["lazy", "not yet filled"] == ["0.0%", "54.5%", "100.0%", ""]
    assert rows["eager", "remote share before"] == ["0.0%", "100.0%", "100.0%", ""]
    assert rows["eager", "remote share after"] == ["0.0%", "0.0%", "100.0%", ""]
    assert rows["eager", "not yet filled"] == ["0.0%", "0.0%", "0.0%", ""]
    assert "before is what CPUs would see" in table.note
    plain = tables.placement_table([groups["first-touch"]], ["first-touch"], title="gups")
    assert "before" not in plain.note


def by_policy(data: dataset.Dataset) -> dict[str, Group]:
    return {group.point["policy"]: group for group in summary.ordered(grouped(data.placements), data)}


def named(rows: list[list[str]]) -> list[tuple[str, list[str]]]:
    """Rows with the policy they belong to, which stands in the first of each."""
    found, name = [], ""
    for row in rows:
        name = row[0] or name
        found.append((name, row))
    return found


def test_the_picture_has_two_bars_where_there_are_replicas(data: dataset.Dataset) -> None:
    groups = by_policy(data)
    one = style.to_svg(plots.placement_figure([groups["first-touch"]], ["first-touch"], title="T"), name="a", label="a")
    assert "before" not in one
    figure = plots.placement_figure(list(groups.values()), list(groups), title="T")
    bars = {}
    for name, axes in zip(groups, (axes for axes in figure.axes if axes.get_xlabel() == "node"), strict=True):
        bars[name] = len(axes.patches)
    # A bar of two parts per node, or two; a part more where something is not filled, which in node 2 of lazy is all.
    assert bars == {"first-touch": 3 * 2, "lazy": 3 * 2 + 2 + (2 + 1) + 1, "eager": 3 * 2 + 3 * 2}
    text = style.to_svg(figure, name="b", label="b")
    assert "before, of the primary alone" in text
    assert "not yet in the replica" in text


def test_frames_and_summary(data: dataset.Dataset) -> None:
    shares = frames.remote_shares(data.placements)
    lazy = shares[(shares["policy"] == "lazy") & (shares["repeat"] == 0)]
    assert lazy["before"].tolist() == pytest.approx([2 / 11, 9 / 11, 1])
    assert lazy["unfilled"].tolist() == pytest.approx([0, 6 / 11, 1])
    assert lazy["remote_share"].isna().tolist() == [False, False, True]
    pages = frames.table_pages(data.placements)
    assert pages.groupby("policy")["replicas"].sum().to_dict() == {"eager": 8, "first-touch": 0, "lazy": 12}
    metrics = data.values[data.values["metric"] == "ready:replica_pages"]
    assert sorted(set(metrics["policy"])) == ["eager", "lazy"]
    found = next(each for each in summary.as_json(data)["placement"] if each["policy"] == "lazy")
    assert found["remote_share_of_primary"] == pytest.approx([2 / 11, 9 / 11, 1])
    assert found["remote_share"][2] is None
    assert np.sum(found["replica_pages"]) == 6
    assert "remote share after" in report.render(data)
