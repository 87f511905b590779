"""A snapshot in the terminal: where the page tables are, and what each node sees of them.

Colour carries the share, from dark blue (little) to yellow (all), readable with any colour vision;
without colour (NO_COLOR, a pipe) shade characters carry it, without Unicode ASCII ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from numalab.measure.pagetable import LEAF_SIZES, LEVEL_NAMES, UNLINKED
from numalab.measure.snapshot import ProcessPlacement, Seen, Snapshot

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

#: With more processes than this, an overview with one line each is shown.
_DETAILED = 3
_BAR = 32
_HEAD = 16
_CELL = 10
#: A perceptually uniform ramp (after cividis), red, green, blue at shares 0, 1/4, 1/2, 3/4, 1.
_RAMP = np.array([(0, 34, 78), (59, 73, 107), (125, 124, 120), (188, 175, 111), (254, 232, 56)], float)
_SHADES = {True: " ░▒▓█", False: " .:+#"}
_BARS = {True: ("█", "░", "·"), False: ("#", ".", "-")}


def render(snapshot: Snapshot, console: Console) -> None:
    """Print `snapshot` on a rich console."""
    view = _View(console)
    view.headline(snapshot)
    if len(snapshot.processes) > _DETAILED:
        view.heatmap("table pages", _levels(snapshot.levels), snapshot.nodes, snapshot.table_pages)
        view.overview(snapshot)
        return
    for process in snapshot.processes:
        view.process(process, snapshot.cpu_nodes)
    if not snapshot.processes:
        view.line("  no process with memory of its own")


def to_svg(snapshot: Snapshot) -> str:
    """The picture that `render` prints, as an SVG document."""
    import io

    from rich.console import Console
    from rich.terminal_theme import DEFAULT_TERMINAL_THEME

    plain = io.StringIO()
    render(snapshot, Console(file=plain, width=1000, color_system=None))
    width = 2 + max(len(line) for line in plain.getvalue().splitlines())
    console = Console(
        file=io.StringIO(), record=True, width=width, force_terminal=True, color_system="truecolor", no_color=False
    )
    render(snapshot, console)
    return console.export_svg(title="numalab snapshot", theme=DEFAULT_TERMINAL_THEME)


def _levels(levels: int) -> list[str]:
    """Row heads, level 1 first; the top level is the PGD whatever the number of levels."""
    return [*LEVEL_NAMES[: levels - 1], LEVEL_NAMES[-1]]


def _colour(share: float) -> tuple[str, str]:
    """(background, readable foreground) for a share from 0 to 1."""
    at = min(max(share, 0.0), 1.0) * (len(_RAMP) - 1)
    low = min(int(at), len(_RAMP) - 2)
    red, green, blue = _RAMP[low] + (at - low) * (_RAMP[low + 1] - _RAMP[low])
    dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 128
    return f"rgb({red:.0f},{green:.0f},{blue:.0f})", "#ffffff" if dark else "#000000"


class _View:
    """Prints parts of a snapshot on one console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.unicode = not console.options.ascii_only
        self.colour = console.color_system is not None and not console.no_color

    def text(self, words: str = "", style: str = "") -> Text:
        """A piece of a line; characters outside ASCII are replaced where the terminal lacks them."""
        from rich.text import Text

        if not self.unicode:
            words = words.replace("·", "-").replace("→", "->").replace("×", "x")
        return Text(words, style=style, no_wrap=True, overflow="ignore")

    def line(self, *parts: str | Text) -> None:
        """Print a line made of pieces."""
        whole = self.text()
        for part in parts:
            whole.append_text(self.text(part) if isinstance(part, str) else part)
        self.console.print(whole, soft_wrap=True)

    def headline(self, snapshot: Snapshot) -> None:
        """What, where, when, and what kind of numbers."""
        facts = [
            f"{len(snapshot.nodes)} nodes",
            f"{snapshot.levels}-level page tables",
            f"Linux {snapshot.kernel.get('release', '?')}",
            *(["page-table isolation"] if snapshot.pti else []),
            snapshot.kind.label,
        ]
        label = [self.text(f"{snapshot.label}  ", "bold")] if snapshot.label else []
        self.line(*label, self.text(" · ".join(facts), "dim"))

    def heat(self, number: int, share: float, width: int = _CELL) -> Text:
        """One cell: a number on the colour, or behind the shade, of its share."""
        if number == 0:
            return self.text("·".rjust(width - 1) + " ", "dim")
        words = f"{number:,}".rjust(width - 1) + " "
        if self.colour:
            back, front = _colour(share)
            return self.text(words, f"{front} on {back}")
        shades = _SHADES[self.unicode]
        shade = shades[min(len(shades) - 1, 1 + int(share * (len(shades) - 1)))]
        blank = len(words) - len(words.lstrip())
        return self.text(" " + shade * (blank - 2) + words[blank - 1 :] if blank > 2 else words)

    def head(self, title: str, columns: Sequence[str]) -> None:
        """The head line of a table of cells."""
        cells = "".join(f"{column:>{_CELL - 1}} " for column in columns)
        self.line(self.text(f"  {title:<{_HEAD}}", "bold"), self.text(cells, "bold"))

    def heatmap(self, title: str, rows: Sequence[str], nodes: Sequence[int], counts: NDArray[np.int64]) -> None:
        """Level × node, top level first; the colour is the node's share of its level."""
        self.head(title, [*(f"node {node}" for node in nodes), "all"])
        for name, row in reversed(list(zip(rows, counts, strict=True))):
            total = int(row.sum())
            cells = [self.heat(int(number), number / max(total, 1)) for number in row]
            self.line(f"  {name:<{_HEAD}}", *cells, self.text(f"{total:>{_CELL - 1},} ", "dim"))
        self.line()

    def process(self, process: ProcessPlacement, cpu_nodes: Sequence[int]) -> None:
        """One process in full."""
        self.line(self.text(f"{process.comm}", "bold cyan"), f"  pid {process.pid}")
        self.line()
        self.heatmap("table pages", _levels(process.levels), process.nodes, process.table_pages_of(0))
        self.replicas(process)
        for index, size in enumerate(LEAF_SIZES):
            self.leaves(size, process, index)
        if process.deposited.any():
            kept = ", ".join(
                f"{number} on node {node}"
                for node, number in zip(process.nodes, process.deposited, strict=True)
                if number
            )
            self.line(self.text(f"  kept ready for splitting huge pages: {kept}", "dim"))
            self.line()
        self.shares(process, cpu_nodes)

    def replicas(self, process: ProcessPlacement) -> None:
        """How many pages replicas have, who walks them, and what they share with the primary."""
        told = process.replication
        if told is None:
            return
        pages = process.replica_pages
        if pages.any():
            self.heatmap("replicas", _levels(process.levels), process.nodes, pages)
        walking = [node for root in process.roots[1:] for node in root.nodes]
        facts = [f"{told.mode} replicas" if told.active else "replication off"]
        if told.active:
            facts.append(f"walked by CPUs of node {', '.join(map(str, walking))}" if walking else "walked by no CPU")
        local, remote = process.passthrough
        if local or remote:
            facts.append(f"{local:,} + {remote:,} entries lead to a local + remote PTE table of the primary")
        if unlinked := int(process.table_pages_of(UNLINKED).sum()):
            facts.append(f"reached by no root: {unlinked:,}")
        self.line(self.text(f"  {' · '.join(facts)}", "dim"))
        self.line()

    def leaves(self, size: str, process: ProcessPlacement, index: int) -> None:
        """Node of the table page × node of the data page, in the primary; the colour is the share of all of these."""
        columns = process.leaf_of(0)[index].T
        extra = {name: column for name, column in zip(("zero", "other"), columns[-2:], strict=True) if column.any()}
        counts = np.column_stack([*columns[:-2], *extra.values()])
        total = int(counts.sum())
        if not total:
            return
        self.head(f"{size} leaves", [*(f"data {node}" for node in process.nodes), *extra])
        for node, row in zip(process.nodes, counts, strict=True):
            cells = [self.heat(int(number), number / total) for number in row]
            self.line(f"  {f'tables node {node}':<{_HEAD}}", *cells)
        self.line()

    def bar(self, seen: Seen) -> Text:
        """A bar of leaf entries: filled those on local table pages, shaded remote, dotted not yet in the replica."""
        ends = [round(part / seen.entries * _BAR) for part in (seen.local, seen.local + seen.remote)]
        full, empty, none = _BARS[self.unicode]
        bar = self.text(full * ends[0], _colour(1.0)[0] if self.colour else "")
        bar.append_text(self.text(empty * (ends[1] - ends[0]), _colour(0.25)[0] if self.colour else ""))
        return bar.append_text(self.text(none * (_BAR - ends[1]), "dim"))

    def shares(self, process: ProcessPlacement, cpu_nodes: Sequence[int]) -> None:
        """Local and remote leaf entries as each node with CPUs sees them."""
        self.line(
            self.text(f"  {'seen from':<{_HEAD}}", "bold"), self.text("leaf entries in local table pages", "bold")
        )
        for node in cpu_nodes:
            seen = process.seen_from(node)
            if not seen.entries:
                self.line(f"  {f'node {node}':<{_HEAD}}", self.text("nothing is mapped", "dim"))
                continue
            words = f" {seen.local / seen.entries:7.1%} local  {seen.remote / seen.entries:7.1%} remote"
            if seen.unfilled:
                words += f"  {seen.unfilled / seen.entries:7.1%} unfilled"
                found = process.remote_share(node)
                words += "" if found is None else f"  (found: {found:.1%} remote)"
            self.line(f"  {f'node {node}':<{_HEAD}}", self.bar(seen), words)
        self.line()

    def overview(self, snapshot: Snapshot) -> None:
        """One line per process: its table pages by node."""
        self.head("processes", [*(f"node {node}" for node in snapshot.nodes), "all"])
        for process in snapshot.processes:
            by_node = process.table_pages.sum(axis=0)
            total = int(by_node.sum())
            cells = [self.heat(int(number), number / max(total, 1)) for number in by_node]
            name = f"{process.pid} {process.comm}"
            self.line(f"  {name[: _HEAD - 1]:<{_HEAD}}", *cells, self.text(f"{total:>{_CELL - 1},} ", "dim"))
        self.line()
