"""The report: complete, self-contained, honest about failures and kinds; and the plots in it."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from analysis import dataset, plots, provenance, report, selection, style, summary, tables
from analysis.placement import Group, Placement
from numalab.errors import ExperimentError, UserError
from numalab.kinds import Kind
from tests.unit import synthetic_results as synthetic

SECTIONS = [
    "what",
    "placement",
    "comparisons",
    "published",
    "metrics",
    "outcomes",
    "wall-time",
    "provenance",
    "reproduce",
    "kinds",
]
VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """The structure of a page: sections, ids, references, text by section; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.tags: Counter[str] = Counter()
        self.text: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        values = dict(attrs)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self.sections.append(values["id"] or "")
        if values.get("id"):
            self.ids.append(values["id"] or "")
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            value = values.get(name)
            if value is not None:
                (self.links if value.startswith("#") else self.fetched).append(value)
        drawn = (values.get("style") or "") + (values.get("clip-path") or "")
        self.links += re.findall(r"url\((#[^)]+)\)", drawn)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        where = self.sections[-1] if "section" in self._open else "head"
        self.text[where] = self.text.get(where, "") + data


def page(directory: Path, results: list[synthetic.Json]) -> tuple[Page, str]:
    path, _ = report.write(synthetic.write(directory, results))
    text = path.read_text()
    return Page(text), text


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str]:
    results = synthetic.many(synthetic.emulated)
    results[5]["outcome"] = {
        "type": "panic",
        "status": None,
        "signal": None,
        "detail": "the guest's kernel panicked: <script>alert(1)</script>",
        "oops": "BUG: unable to handle page fault\nRIP: 0010:numa_replicate+0x3",
    }
    results[5]["samples"] = []
    results[6]["outcome"] |= {"type": "timeout", "status": None, "detail": "no end after 600 s"}
    return page(tmp_path_factory.mktemp("emulated"), results)


def test_all_sections_are_there_in_order(emulated: tuple[Page, str]) -> None:
    assert emulated[0].sections == SECTIONS
    assert [link for link in emulated[0].links if link.removeprefix("#") in SECTIONS][: len(SECTIONS)]


def test_the_page_needs_nothing_else(emulated: tuple[Page, str]) -> None:
    found, text = emulated
    assert found.fetched == []
    assert found.tags["script"] == found.tags["link"] == found.tags["img"] == found.tags["iframe"] == 0
    assert "@import" not in text
    assert re.findall(r"url\((?!#)[^)]*\)", text) == []


def test_ids_are_unique_and_links_lead_somewhere(emulated: tuple[Page, str]) -> None:
    found, _ = emulated
    assert [name for name, count in Counter(found.ids).items() if count > 1] == []
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)


def test_text_of_results_is_escaped(emulated: tuple[Page, str]) -> None:
    assert "<script>" not in emulated[1]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in emulated[1]


def test_failures_are_shown(emulated: tuple[Page, str]) -> None:
    text = emulated[0].text
    assert "2 of 24 cells did not end well" in text["head"]
    assert "RIP: 0010:numa_replicate+0x3" in text["outcomes"]
    assert "no end after 600 s" in text["outcomes"]
    assert "panic" in text["outcomes"] and "timeout" in text["outcomes"]


def test_every_picture_says_its_kind_and_n(emulated: tuple[Page, str]) -> None:
    _, text = emulated
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text, re.DOTALL)
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(captions) == len(drawings) >= 4
    for drawing in drawings:
        assert "counted in emulation" in drawing
        assert re.search(r"\d runs? per policy|n = \d|\d to \d runs", drawing)


def test_wall_time_is_in_the_appendix_and_nowhere_else(emulated: tuple[Page, str]) -> None:
    found, text = emulated
    assert "updates_per_second" in found.text["wall-time"]
    assert "not the speed of the system under study" in found.text["wall-time"]
    assert all("updates_per_second" not in drawing for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    for section in ("placement", "comparisons", "metrics", "published", "what"):
        assert "updates_per_second" not in found.text[section]


def test_missing_counters_are_na(emulated: tuple[Page, str]) -> None:
    row = re.search(r"<tr>\s*<td>perf:cycles</td>.*?</tr>", emulated[1], re.DOTALL)
    assert row and ">NA</td>" in row[0]
    assert not re.search(r">0</td>", row[0].partition("0 (+")[0])


def test_provenance_and_reproduction_of_every_cell(emulated: tuple[Page, str]) -> None:
    found, text = emulated
    cells = [name for name in found.ids if name.startswith("cell-")]
    assert len(cells) == 24
    assert found.text["reproduce"].count("numalab run synthetic.toml --only") == 24
    assert "numalab run synthetic.toml\n" in found.text["reproduce"]
    assert '"numa_hit": 17000' in found.text["provenance"]
    assert "5f5f5f" in found.text["what"]
    assert text.count("pgtable_alloc_node") >= 24
    assert len(re.findall(r'<details id="machine-\d+">', text)) == 1, "what cells share stands once"


def test_published_values_stand_beside_ours(emulated: tuple[Page, str]) -> None:
    text = emulated[0].text["published"]
    assert "Mitosis, ASPLOS 2020, figure 4" in text
    assert "sizes of machine, memory and programs are not" in text
    drawing = re.search(r'id="published".*?(<svg.*?</svg>)', emulated[1], re.DOTALL)
    assert drawing
    for value in ("18%", "72%", "BTree", "published: measured on hardware"):
        assert value in drawing[1]


def test_light_dark_phone_and_print(emulated: tuple[Page, str]) -> None:
    for words in ("prefers-color-scheme: dark", "@media print", 'name="viewport"', "currentColor"):
        assert words in emulated[1]
    drawings = re.search(r"<svg.*</svg>", emulated[1], re.DOTALL)
    assert drawings
    assert style.INK not in drawings[0]


def test_hardware_results_are_compared_and_drawn(tmp_path: Path) -> None:
    results = synthetic.many(
        synthetic.on_hardware,
        repeats=5,
        accel="kvm",
        policies=("first-touch", "replicated", "placebo"),
    )
    found, text = page(tmp_path / "run", results)
    assert "updates_per_second: ratio to first-touch" in text
    assert "Geometric mean over workloads" in found.text["comparisons"]
    assert "noise floor" in found.text["comparisons"]
    assert "No number here is wall time" in found.text["wall-time"]
    assert "KVM on hardware" in found.text["what"]


def test_two_kernels_stand_side_by_side(tmp_path: Path) -> None:
    policies = ("first-touch", "interleave")
    results = [
        each
        for kernel in ("stock", "patched")
        for each in synthetic.many(synthetic.emulated, policies=policies, workloads=("gups",), kernel=kernel)
    ]
    found, text = page(tmp_path / "run", results)
    assert "By policy: against first-touch" in text and "By kernel: against stock" in text
    drawing = re.search(r"<svg.*?</svg>", text, re.DOTALL)
    assert drawing and Counter(texts(drawing[0]))["stock:"] == Counter(texts(drawing[0]))["patched:"] == 2
    assert "One and the same value in every run" not in found.text["comparisons"]


def test_what_never_moved_is_one_line(tmp_path: Path) -> None:
    results = synthetic.many(lambda *_: [synthetic.sample("updates", 2e6, "", "counted")], workloads=("gups",))
    found, text = page(tmp_path / "run", results)
    assert "One and the same value in every run: updates." in found.text["comparisons"]
    assert "updates: ratio" not in text


def test_pictures_as_files(tmp_path: Path) -> None:
    results = synthetic.many(synthetic.emulated, workloads=("gups",), policies=("first-touch", "interleave"))
    report.write(synthetic.write(tmp_path / "run", results), figures=tmp_path / "figures")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    stems = ("placement-gups", "published-figure-4", "ratio-policy-walk_references")
    assert names == {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "pdf")}
    assert (tmp_path / "figures" / "placement-gups.png").read_bytes().startswith(b"\x89PNG")


def test_one_cell_alone(tmp_path: Path) -> None:
    found, _ = page(tmp_path / "run", [synthetic.result(placement=False)])
    assert found.sections == SECTIONS
    assert "No snapshot of page tables was taken" in found.text["placement"]
    assert "nothing to compare" in found.text["comparisons"]
    assert found.tags["svg"] == 0


def test_everything_failed(tmp_path: Path) -> None:
    result = synthetic.result(placement=False, outcome={"type": "boot-failure", "status": None, "detail": "no answer"})
    result["provenance"]["machine"] = None
    result["counters"] = {"kind": None, "vmstat": None, "numastat": None, "measured": None, "perf": {}}
    found, _ = page(tmp_path / "run", [result])
    assert "boot-failure" in found.text["outcomes"] and "1 of 1 cells" in found.text["head"]


def test_unfinished_and_damaged_runs_say_so(tmp_path: Path) -> None:
    results = synthetic.many(synthetic.emulated, repeats=1, workloads=("gups",))
    directory = synthetic.write(tmp_path / "run", results)
    path = directory / "cells" / results[0]["cell"]["id"] / "result.json"
    path.write_text("{}")
    target, _ = report.write(directory, tmp_path / "elsewhere.html")
    found = Page(target.read_text())
    assert "unfinished run" in found.text["head"] and "1 damaged files" in found.text["head"]
    assert results[0]["cell"]["id"] in found.text["outcomes"]


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    directory = synthetic.write(tmp_path / "run", [synthetic.result(placement=False)])
    with pytest.raises(UserError):
        report.write(directory, tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        report.write(tmp_path / "nowhere")


def test_the_report_is_the_same_every_time(tmp_path: Path) -> None:
    results = synthetic.many(synthetic.emulated, repeats=1, workloads=("gups",), policies=("none", "interleave"))
    data = dataset.load(synthetic.write(tmp_path / "run", results))
    made = [re.sub(r"Made [^<]*", "", report.render(data)) for _ in range(2)]
    assert made[0] == made[1]


def test_json_lists_stand_on_one_line_and_strings_are_left_alone() -> None:
    value = {"distances": [[10, 20], [20, 10]], "text": "[ a,  b ]", "empty": [], "nested": [{"a": 1}]}
    text = provenance.to_text(value)
    assert "[10, 20]" in text and '"[ a,  b ]"' in text
    assert json.loads(text) == value


# Plots.


def group(pages: object, remote: object) -> Group:
    counts, shares = np.asarray(pages), np.asarray(remote, dtype=float)
    nodes = tuple(range(counts.shape[-1]))
    members = [
        Placement(
            cell={},
            mark="ready",
            kind=Kind.COUNTED,
            processes=("gups (1)",),
            nodes=nodes,
            cpu_nodes=nodes,
            levels=counts.shape[-2],
            pages=each,
            leaf=np.zeros((3, len(nodes), len(nodes)), np.int64),
            remote=share,
            trees=1,
            replicas=np.zeros_like(each),
            unfilled=np.zeros_like(share),
            before=share,
        )
        for each, share in zip(counts, shares, strict=True)
    ]
    return Group({"policy": "p", "workload": "w", "kernel": "k", "topology": "t"}, "ready", tuple(members))


def texts(svg: str) -> list[str]:
    return [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


@pytest.mark.parametrize(
    ("panels", "width", "columns", "rows"),
    [(1, 2.3, 1, 1), (4, 2.3, 4, 1), (5, 2.3, 5, 1), (6, 2.3, 3, 2), (7, 2.3, 4, 2), (11, 2.3, 4, 3), (3, 20.0, 1, 3)],
)
def test_panels_fill_their_rows(panels: int, width: float, columns: int, rows: int) -> None:
    """No panel alone on a last row: five stand beside each other, six in two rows of three."""
    assert plots.arrange(panels, width) == (columns, rows)


def test_placement_figure_shows_every_count_and_share() -> None:
    pages = [[[7, 8], [1, 0], [1, 0], [1, 0], [1, 0]]] * 2
    shares = [[0.125, np.nan], [0.375, np.nan]]
    figure = plots.placement_figure([group(pages, shares)], ["first-touch"], title="Test")
    words = texts(style.to_svg(figure, name="f", label="x"))
    for word in ("7", "8", "PTE", "P4D", "PGD", "25%", "NA", "first-touch", "counted in emulation, 2 runs per policy"):
        assert word in words


def test_counts_that_differ_between_runs_show_their_range() -> None:
    assert plots.count_text(12, 12, 12) == "12"
    assert plots.count_text(12, 11, 13) == "12\n(11–13)"
    assert plots.count_text(262144, 262144, 262144) == "262k"


@pytest.mark.parametrize(("nodes", "policies"), [(1, 1), (2, 3), (8, 5), (16, 2)])
def test_figures_of_all_sizes_can_be_drawn(nodes: int, policies: int) -> None:
    pages = np.arange(nodes * 4).reshape(1, 4, nodes)
    made = [group(pages, np.full((1, nodes), 0.5)) for _ in range(policies)]
    figure = plots.placement_figure(made, [f"policy-{n}" for n in range(policies)], title="T")
    words = texts(style.to_svg(figure, name="f", label='a "label" & <more>'))
    assert words.count("50%") >= nodes * policies
    assert {f"policy-{n}" for n in range(policies)} <= set(words)


def test_names_are_drawn_as_they_are() -> None:
    label = "<b>&$x$_1"
    figure = plots.placement_figure([group([[[1]] * 4], [[0.0]])], [label], title="T")
    svg = style.to_svg(figure, name="f", label=label)
    assert "&lt;b&gt;&amp;$x$_1" in svg and "<b>" not in svg
    assert 'aria-label="&lt;b>&amp;$x$_1"' in svg


def test_wall_time_of_emulation_cannot_be_drawn_as_a_ratio(tmp_path: Path) -> None:
    data = dataset.load(synthetic.write(tmp_path / "run", synthetic.many(synthetic.emulated, repeats=1)))
    made = selection.along(data, "policy", metrics=["updates_per_second"])
    with pytest.raises(ExperimentError, match="wall time"):
        plots.ratio_figure(made, ["x"] * len(made), title="speed")


def test_colours_are_told_apart_without_red_and_green() -> None:
    """Local and remote differ in lightness, and so do neighbours of the palette of the heatmap."""

    def lightness(colour: str) -> float:
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert abs(lightness(style.LOCAL) - lightness(style.REMOTE)) > 0.2


# Tables and summary.


def test_tables_are_rectangular_and_marked(tmp_path: Path) -> None:
    data = dataset.load(synthetic.write(tmp_path / "run", synthetic.many(synthetic.emulated)))
    wall_time = tables.wall_time_table(data)
    assert wall_time is not None
    made = [*summary.terminal_tables(data), wall_time]
    assert len(made) == 5
    for table in made:
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert "counted in emulation, n = 3" in made[0].title
    interleave = [row for row in made[0].rows if row[1] == "remote share"][2]
    assert interleave[2:6] == ["75.0%"] * 4
    assert [row[-1] for row in made[0].rows if row[1] == "PTE"] == ["16", "16", "16", "64"]


def test_summary_as_json(tmp_path: Path) -> None:
    data = dataset.load(synthetic.write(tmp_path / "run", synthetic.many(synthetic.emulated)))
    found = summary.as_json(data)
    assert found["cells"] == 24 and found["failed"] == 0
    replicated = next(each for each in found["placement"] if each["policy"] == "replicated")
    assert replicated["remote_share"] == [0.0] * 4 and replicated["trees"] == 4 and replicated["kind"] == "counted"
    assert np.sum(replicated["table_pages"]) == 80


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "1/s", "NA"),
        (float("nan"), "", "NA"),
        (0, "pages", "0 pages"),
        (0.75, "share", "75.0%"),
        (1234567, "", "1.235M"),
        (16384, "", "16,384"),
        (3.98e8, "1/s", "398M 1/s"),
        (0.00012, "s", "0.00012 s"),
        (12.5, "", "12.5"),
    ],
)
def test_values_as_text(value: float | None, unit: str, text: str) -> None:
    assert tables.value_text(value, unit) == text
