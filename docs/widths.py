"""Draws docs/images/widths.svg, the widths that a search found, from its result: ``python docs/widths.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "fashion_mnist_keep15.json"
FILE = ROOT / "docs" / "images" / "widths.svg"
COLOURS = {"dense": "#c9d1d9", "greedy": "#d29922", "searched": "#0f9488"}
INK = "#6e7781"
"""Readable on white and on black."""
STEP, HEIGHT, TOP, LEFT = 58, 128, 40, 10


def picture(result: dict[str, Any]) -> str:
    """A bar for every channel group: its channels in the dense network, and what two methods keep of them."""
    groups: dict[str, int] = result["dense"]["widths"]
    scale, floor = HEIGHT / max(groups.values()), TOP + HEIGHT
    parts = [_text(LEFT, 16, "Channels of ResNet-20 on Fashion-MNIST, at 15 % of the MACs", bold=True)]
    for number, (method, colour) in enumerate(COLOURS.items()):
        x = 450 + 85 * number
        parts += [_box(x, 7, 10, 10, colour), _text(x + 15, 16, method)]
    for number, (group, channels) in enumerate(groups.items()):
        x = LEFT + number * STEP
        parts.append(_box(x, floor - scale * channels, 46, scale * channels, COLOURS["dense"]))
        for place, method in enumerate(("greedy", "searched")):
            kept = result[method]["widths"][group]
            parts.append(_box(x + 3 + 21 * place, floor - scale * kept, 19, scale * kept, COLOURS[method]))
            parts.append(_text(x + 12.5 + 21 * place, floor + 13, str(kept), anchor="middle"))
        parts.append(_text(x + 23, floor - scale * channels - 4, str(channels), anchor="middle"))
        parts.append(_text(x + 23, floor + 29, group.removeprefix("layer"), anchor="middle", size=9))
    width, height = LEFT + STEP * len(groups), floor + 38
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    )
    return f'{head} font-family="sans-serif" fill="{INK}">\n' + "\n".join(parts) + "\n</svg>\n"


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:g}" y="{y:.1f}" width="{width:g}" height="{height:.1f}" fill="{colour}"/>'


def _text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 11, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:g}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{weight}>{words}</text>'


if __name__ == "__main__":
    FILE.write_text(picture(json.loads(RESULT.read_text())), encoding="utf-8")
