"""How our plots look, and how a figure becomes SVG that lives inside an HTML page.

Colours: Okabe and Ito's palette (jfly.uni-koeln.de/color), told apart by every common kind of colour vision; local and
remote differ in lightness too. Text and axes take the page's colour, so that a figure reads on light and dark.
"""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import rc_context
from matplotlib.figure import Figure

LOCAL = "#0072B2"
REMOTE = "#E69F00"
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
PAGES = "YlGnBu"
#: Stands for the page's text colour; replaced in the SVG, dark grey in a PNG.
INK = "#22282f"
FAINT = "#8a929b"

RC: Any = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.dpi": 100,
    "font.family": "sans-serif",
    "font.size": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a name is a dollar
    "xtick.color": INK,
    "ytick.color": INK,
}


def styled() -> Any:
    """Return a context in which matplotlib draws in our style."""
    return rc_context(RC)


def to_svg(figure: Figure, *, name: str, label: str) -> str:
    """Return the figure as an `<svg>` element to be put into HTML.

    Args:
        figure: what to draw.
        name: unique in the page; makes ids unique and the output reproducible.
        label: what the picture shows, in words, for those who do not see it.
    """
    buffer = io.StringIO()
    with rc_context(RC | {"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = text.replace(INK, "currentColor")
    label = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    size = re.match(r'<svg [^>]*?width="([\d.]+)pt"', text)
    width = float(size[1]) if size else 600.0
    text = re.sub(r'^(<svg [^>]*?)\bwidth="[\d.]+pt"', r"\1", text, count=1)
    text = re.sub(r'^(<svg [^>]*?)\bheight="[\d.]+pt"', r"\1", text, count=1)
    # A little larger than drawn at most, so that the text of all pictures has one size; on a phone not too small
    # to be read: then it scrolls.
    widest = f"{width * 1.15:.0f}pt"
    size_style = f"max-width: {widest}; min-width: min(34rem, {widest})"
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" style="{size_style}" ', 1)


def to_png(figure: Figure) -> bytes:
    """Return the figure as PNG on white."""
    return _saved(figure, format="png", dpi=150, facecolor="white")


def to_pdf(figure: Figure) -> bytes:
    """Return the figure as PDF, for papers."""
    return _saved(figure, format="pdf", metadata={"CreationDate": None})


def _saved(figure: Figure, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, bbox_inches="tight", **options)
    return buffer.getvalue()
