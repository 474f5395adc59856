"""Draws docs/images/map.svg, the packages and what they import, from the imports: ``make map``.

Each package stands below all that import it. An arrow that follows from two others is left out.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import grimp

FILE = Path(__file__).parent / "images" / "map.svg"
WIDE, HIGH, ACROSS, DOWN = 150, 30, 24, 30
"""Pixels: of a box, and between boxes."""
COLOURS = {"search": "#dbe9f6", "agents": "#e3f1dc", "pruning": "#fbe6d0"}
"""By folder; the rest is grey."""
SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}">
<style>text {{ font: 13px sans-serif; text-anchor: middle }} rect {{ stroke: #555 }}
path {{ fill: none; stroke: #777 }} .arrow {{ marker-end: url(#head) }}</style>
<marker id="head" viewBox="0 0 8 8" refX="2" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<polygon points="0,0 8,4 0,8" fill="#777"/></marker>
<rect width="{0}" height="{1}" fill="white" style="stroke: none"/>
{2}
</svg>
"""


def packages() -> dict[str, set[str]]:
    """Package, such as ``search/study`` -> those that it imports itself."""
    graph = grimp.build_graph("espalier", exclude_type_checking_imports=True, cache_dir=None)
    inner = {name for name in graph.modules if graph.find_children(name)}
    # A folder of nothing but packages is shown as its packages, any other as one box.
    opened = {name for name in inner if graph.find_children(name) <= inner}

    def box(module: str) -> str:
        parts = module.split(".")[1:]
        return "/".join(parts[: 2 if f"espalier.{parts[0]}" in opened else 1])

    boxes = {name: box(name) for name in graph.modules - opened - {"espalier", "espalier.__main__"}}
    found: dict[str, set[str]] = {own: set() for own in boxes.values()}
    for module, own in boxes.items():
        found[own] |= {boxes[other] for other in graph.find_modules_directly_imported_by(module) if other in boxes}
        found[own].discard(own)
    imported = set().union(*found.values())
    return {name: others for name, others in found.items() if others or name in imported}


def picture(imports: dict[str, set[str]]) -> str:
    """The SVG, the same for the same imports."""

    @cache
    def below(name: str) -> frozenset[str]:
        return frozenset(imports[name]).union(*(below(other) for other in imports[name]))

    @cache
    def row_of(name: str) -> int:
        return 1 + max((row_of(other) for other in imports if name in imports[other]), default=-1)

    def is_direct(name: str, other: str) -> bool:
        return not any(other in below(between) for between in imports[name])

    # An arrow over several rows has a narrow place of its own in each, shared with others to the same box.
    rows: list[set[str]] = [set() for _ in range(1 + max(map(row_of, imports)))]
    arrows: set[tuple[str, str]] = set()
    for name in imports:
        rows[row_of(name)].add(name)
        for other in filter(lambda other: is_direct(name, other), imports[name]):
            between = [f"{row} {other}" for row in range(row_of(name) + 1, row_of(other))]
            arrows |= set(pairwise([name, *between, other]))
            for row, passed in enumerate(between, row_of(name) + 1):
                rows[row].add(passed)

    def wide(name: str) -> int:
        return WIDE if name in imports else 0

    width = max(sum(wide(name) + ACROSS for name in row) for row in rows) + ACROSS
    place: dict[str, tuple[float, float]] = {}  # middle of the upper edge
    for number, row in enumerate(rows):
        above = {name: [place[other][0] for other, below_it in arrows if below_it == name] for name in row}
        left = (width - sum(wide(name) + ACROSS for name in row) + ACROSS) / 2
        for name in sorted(row, key=lambda name: (sum(above[name]) / max(1, len(above[name])), name)):
            place[name] = left + wide(name) / 2, ACROSS + number * (HIGH + DOWN)
            left += wide(name) + ACROSS
    lines = []
    for name, other in sorted(arrows):
        (x, y), (to, end) = place[name], place[other]
        start, stop = y + HIGH, end - 6 if other in imports else end
        bend = (stop - start) / 2
        through = f"M{x:g} {y:g} V{start:g} C{x:g} {start + bend:g} {to:g} {stop - bend:g} {to:g} {stop:g}"
        lines.append(f'<path class="{"arrow" if other in imports else "line"}" d="{through}"/>')
    for name in sorted(imports):
        x, y = place[name]
        fill = COLOURS.get(name.partition("/")[0], "#eeeeee")
        lines.append(f'<rect x="{x - WIDE / 2:g}" y="{y:g}" width="{WIDE}" height="{HIGH}" rx="5" fill="{fill}"/>')
        lines.append(f'<text x="{x:g}" y="{y + HIGH / 2 + 4.5:g}">{name}</text>')
    return SVG.format(width, len(rows) * (HIGH + DOWN) + ACROSS, "\n".join(lines))


if __name__ == "__main__":
    FILE.write_text(picture(packages()), encoding="utf-8")
