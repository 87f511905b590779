"""The terminal view: numbers, colours, shades, ASCII."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from numalab.measure.render import _colour, render, to_svg
from numalab.measure.snapshot import Replication, Snapshot
from tests.unit.snapshots import lazily_replicated, replicated, snapshot, unreplicated


def printed(made: Snapshot, *, encoding: str = "utf-8", colour: bool = False) -> str:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(
        file=out, width=100, force_terminal=colour, color_system="truecolor" if colour else None, legacy_windows=False
    )
    render(made, console)
    out.flush()
    return raw.getvalue().decode(encoding)


def row(text: str, head: str) -> list[str]:
    """The cells of the line that starts with `head`."""
    line = next(line for line in text.splitlines() if line.strip().startswith(head))
    return line.strip()[len(head) :].split()


def test_heatmap_shows_every_count() -> None:
    text = printed(snapshot(unreplicated()))
    assert text.splitlines()[0] == "ready  3 nodes · 4-level page tables · Linux 6.12.117 · counted in emulation"
    assert row(text, "PGD") == ["██████", "1", "·", "·", "1"]
    assert row(text, "PTE") == ["·", "██████", "1", "·", "1"]
    assert row(text, "tables node 1")[:6] == ["▓▓▓▓▓▓", "4", "▒▒▒▒▒▒", "2", "·", "░░░░░░"]
    assert "      zero     other" in text
    assert "kept ready for splitting huge pages: 1 on node 1" in text
    assert "P4D" not in text


def test_shares_are_bars() -> None:
    text = printed(snapshot(unreplicated()))
    assert "node 0          " + "░" * 32 + "    0.0% local   100.0% remote" in text
    assert "node 1          " + "█" * 32 + "  100.0% local     0.0% remote" in text


def test_nodes_without_cpus_see_nothing() -> None:
    text = printed(replace(snapshot(unreplicated()), cpu_nodes=(0,)))
    assert text.count("% local") == 1


def test_replicas_are_a_block_of_their_own() -> None:
    text = printed(snapshot(lazily_replicated()))
    primary, replicas = text.index("table pages "), text.index("\n  replicas ")
    assert row(text[primary:replicas], "PTE") == ["▓▓▓▓▓▓", "1", "▓▓▓▓▓▓", "1", "·", "2"]
    assert row(text[replicas:], "PTE") == ["·", "██████", "2", "·", "2"]
    assert row(text[replicas:], "PGD") == ["·", "██████", "2", "·", "2"]
    assert "lazy replicas · walked by CPUs of node 1, 2 · 1 + 0 entries lead to a local + remote PTE table" in text
    assert "reached by no root: 1" in text


def test_unfilled_entries_are_a_third_class() -> None:
    text = printed(snapshot(lazily_replicated()))
    bars = {line.split()[1]: line for line in text.splitlines() if "% local" in line}
    assert bars["0"].endswith("81.8% local    18.2% remote")
    assert bars["1"].count("·") == 17
    assert bars["1"].endswith("45.5% local     0.0% remote    54.5% unfilled  (found: 0.0% remote)")
    assert bars["2"].endswith("0.0% local     0.0% remote   100.0% unfilled")


def test_a_process_without_replicas_has_no_block() -> None:
    assert "replica" not in printed(snapshot(unreplicated()))
    told = Replication("off", active=False, domains=())
    text = printed(snapshot(replace(unreplicated(), replication=told)))
    assert "replication off" in text
    assert "\n  replicas " not in text


def test_many_processes_are_an_overview() -> None:
    text = printed(snapshot(*(replace(unreplicated(), pid=pid, comm=f"job{pid}") for pid in range(5))))
    assert row(text, "4 job4") == ["▓▓▓▓▓▓", "2", "▓▓▓▓▓▓", "2", "·", "4"]
    assert "seen from" not in text


def test_no_process() -> None:
    assert "no process" in printed(snapshot())


def test_five_levels_have_a_p4d() -> None:
    process = replace(unreplicated(), levels=5)
    text = printed(replace(snapshot(process), levels=5))
    assert [name for name in ("PGD", "P4D", "PUD", "PMD", "PTE") if f"\n  {name} " in text] == [
        "PGD",
        "P4D",
        "PUD",
        "PMD",
        "PTE",
    ]


def test_ascii_terminals_get_ascii() -> None:
    text = printed(snapshot(unreplicated(), replicated()), encoding="ascii")
    assert row(text, "PGD") == ["######", "1", "-", "-", "1"]
    assert "#" * 32 in text
    assert "." * 32 in text


def test_colour_carries_the_share_on_a_terminal() -> None:
    text = printed(snapshot(unreplicated()), colour=True)
    assert "\x1b[38;2;0;0;0;48;2;254;232;56m" in text
    assert "▓" not in text


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(snapshot(unreplicated()), colour=True)
    assert not re.search(r"\x1b\[[0-9;]*[34]8;", text)
    assert "██████ 1" in re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_colours_get_lighter_and_stay_readable() -> None:
    lightness = []
    for share in np.linspace(0, 1, 21):
        back, front = _colour(float(share))
        red, green, blue = map(int, re.findall(r"\d+", back))
        light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        assert (light < 128) == (front == "#ffffff")
        lightness.append(light)
    assert lightness == sorted(lightness)


def test_nothing_of_the_svg_is_cut_off() -> None:
    """A long release name once made the headline longer than the picture was wide."""
    shown = snapshot(unreplicated())
    long = replace(shown, kernel={"release": "6.12.117+deb12-with-a-very-long-suffix-amd64"}, label="ready")
    text = re.sub(r"<[^>]*>", "", to_svg(long)).replace("&#160;", " ")
    assert long.kind.label in text


def test_svg() -> None:
    picture = to_svg(snapshot(unreplicated()))
    assert picture.startswith("<svg")
    assert "remote" in picture
    assert "unfilled" in to_svg(snapshot(lazily_replicated()))
