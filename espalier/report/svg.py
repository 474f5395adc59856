"""Matplotlib's SVG inside of a page: names that do not collide, and colours that follow the page's."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROLOGUE = re.compile(r"^.*?(?=<svg\b)", re.DOTALL)
METADATA = re.compile(r"<metadata>.*?</metadata>\s*", re.DOTALL)
NAMES = re.compile(r'(\bid="|url\(#|href="#)([^")]+)')
ROOT = re.compile(r"<svg\b[^>]*>")
BOX = re.compile(r'viewBox="([^"]+)"')

SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "espalier",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
}
"""Text stays text, and equal figures give equal files."""


def inline(text: str, name: str, title: str, colours: Mapping[str, str]) -> str:
    """An SVG file as an element of a page.

    Args:
        text: of the file.
        name: put before every name in it; once on a page.
        title: what the picture shows, for those who do not see it.
        colours: ``#rrggbb`` -> what stands in its place, such as ``var(--ink)``.
    """
    text = METADATA.sub("", PROLOGUE.sub("", text))
    text = NAMES.sub(lambda found: f"{found[1]}{name}-{found[2]}", text)
    for colour, instead in colours.items():
        text = re.sub(re.escape(colour), instead, text, flags=re.IGNORECASE)
    root = ROOT.search(text)
    box = BOX.search(text) if root else None
    assert root is not None and box is not None, "not an SVG of matplotlib"
    width = float(box[1].split()[2]) * 96 / 72
    opening = f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(title)}" style="--width: {width:.0f}px">'
    return text[: root.start()] + opening + text[root.end() :].strip()


def of_figure(figure: Figure, name: str, title: str, colours: Mapping[str, str]) -> str:
    """A figure as an element of a page; its background is the page's."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return inline(buffer.getvalue(), name, title, colours)
