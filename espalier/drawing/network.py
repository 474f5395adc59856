"""Draws an `espalier.drawing.picture.Picture` with matplotlib, as SVG, in which text stays text, or as PNG."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espalier.drawing.dataflow import POINTS, Box
from espalier.drawing.files import NETWORK, check_picture
from espalier.drawing.legend import Notes
from espalier.drawing.picture import FROZEN, INK, Picture, picture
from espalier.drawing.placement import Line
from espalier.inspection.document import Inspection

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARGIN = 0.25
DPI = 160
MOST_PIXELS = 12000  # of the longer side of a PNG


def draw(inspection: Inspection, path: Path) -> Picture:
    """Draws a network into a file, and returns what it drew.

    Raises:
        ConfigError: the file is neither .png nor .svg.
        MissingPackage: matplotlib or igraph is not installed.
    """
    check_picture(path, NETWORK)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    made = picture(inspection)
    notes = Notes(inspection, made)
    width = max(made.width, notes.width) + 2 * MARGIN
    height = made.height + notes.above + notes.below + 2 * MARGIN
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "espalier", "font.family": "sans-serif"}
    settings |= {"font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"], "hatch.linewidth": 0.6}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width, height), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        left = MARGIN + max(0.0, (notes.width - made.width) / 2)
        axes.set_xlim(-left, width - left)
        axes.set_ylim(height - MARGIN - notes.above, -MARGIN - notes.above)
        axes.axis("off")
        for line in made.lines:
            _draw_line(axes, made, line)
        for line in made.lines:
            _draw_label(axes, line)
        for box in made.boxes:
            _draw_box(axes, made, box)
        notes.draw(axes, MARGIN - left)
        dpi = min(DPI, MOST_PIXELS / max(width, height))
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None  # equal networks, equal files
        figure.savefig(path, dpi=dpi, metadata=metadata)
    return made


def _draw_box(axes: Axes, made: Picture, box: Box) -> None:
    from matplotlib.patches import FancyBboxPatch, Rectangle, Wedge

    left, top = box.x - box.width / 2, box.y - box.height / 2
    frozen = not box.groups or all(made.colours[group] == FROZEN for group, _ in box.groups)
    shades = [FROZEN] if not box.groups else made.shades([group for group, _ in box.groups])
    shares = [1.0] if len(shades) == 1 else [share for _, share in box.groups]
    if box.kind != "operation":
        style = f"round,pad=0,rounding_size={min(box.width, box.height) / 2}"
        if box.kind == "join" and len(shades) > 1:
            turn = 90.0
            for shade, share in zip(shades, shares, strict=True):
                axes.add_patch(Wedge((box.x, box.y), box.height / 2, turn, turn + 360 * share, facecolor=shade))
                turn += 360 * share
        axes.add_patch(
            FancyBboxPatch(
                (left, top),
                box.width,
                box.height,
                style,
                facecolor=shades[0] if box.kind == "join" and len(shades) == 1 else "none",
                edgecolor=INK,
                linewidth=0.7,
            )
        )
        if box.kind == "join":
            inner = 0.72 * box.height / 2
            rim = (left + box.height / 2 - inner, box.y - inner)
            wide = box.width - box.height + 2 * inner
            axes.add_patch(
                FancyBboxPatch(
                    rim, wide, 2 * inner, f"round,pad=0,rounding_size={inner}", facecolor="white", linewidth=0
                )
            )
        axes.text(box.x, box.y, box.name, fontsize=POINTS, ha="center", va="center_baseline", color=INK)
        return
    at = left
    for shade, share in zip(shades, shares, strict=True):
        part = share * box.width
        hatch = "////" if frozen else None
        axes.add_patch(
            Rectangle((at, top), part, box.height, facecolor=shade, edgecolor="#8a8a8a", hatch=hatch, linewidth=0)
        )
        at += part
    if box.kept < 1:  # what would be gone
        gone = box.height * (1 - box.kept)
        axes.add_patch(Rectangle((left, top), box.width, gone, facecolor="white", alpha=0.72, linewidth=0))
    axes.add_patch(Rectangle((left, top), box.width, box.height, fill=False, edgecolor=INK, linewidth=0.7))
    if box.fits:
        plain = len(shades) == 1 and not frozen and box.kept == 1
        background = None if plain else {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
        ink = _readable(shades[0]) if plain else INK
        axes.text(
            box.x, box.y, box.name, fontsize=POINTS, ha="center", va="center_baseline", color=ink, bbox=background
        )
    else:
        axes.text(
            box.x + box.width / 2 + 0.04,
            box.y,
            box.name,
            fontsize=POINTS,
            ha="left",
            va="center_baseline",
            color=INK,
        )


def _draw_line(axes: Axes, made: Picture, line: Line) -> None:
    from matplotlib.patches import PathPatch, Polygon

    path = _path(line.points)
    shades = made.shades(line.groups) or [FROZEN]
    dash = 4.0
    for number, shade in enumerate(shades):
        style: Any = "solid" if len(shades) == 1 else (number * dash, (dash, (len(shades) - 1) * dash))
        axes.add_patch(
            PathPatch(
                path,
                fill=False,
                edgecolor=shade,
                linewidth=1.7,
                linestyle=style,
                capstyle="projecting" if len(shades) == 1 else "butt",
                zorder=0.5,
            )
        )
    if line.target is not None:
        x, y = line.points[-1]
        axes.add_patch(
            Polygon(
                [(x - 0.032, y - 0.07), (x + 0.032, y - 0.07), (x, y)], color=shades[-1], linewidth=0, zorder=0.6
            )
        )


def _draw_label(axes: Axes, line: Line) -> None:
    if not line.label:
        return
    (x, y), (to, below) = line.points[0], line.points[1]
    along = 0.5
    if abs(to - x) < 1e-6 and len(line.points) > 3:  # on its way to the next column
        below = y + 0.16
    curve = 3 * along**2 - 2 * along**3
    axes.text(
        x + curve * (to - x),
        (y + below) / 2,
        line.label,
        fontsize=POINTS - 1.3,
        ha="center",
        va="center_baseline",
        color=INK,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        zorder=0.8,
    )


def _path(points: tuple[tuple[float, float], ...]) -> Any:
    """Straight lines with round corners, and curves that start and end downwards."""
    from matplotlib.path import Path as Curve

    vertices, codes = [points[0]], [Curve.MOVETO]
    for number, ((x, y), (to, below)) in enumerate(pairwise(points), 1):
        if abs(x - to) > 1e-6 and abs(y - below) > 1e-6:
            vertices += [(x, (y + below) / 2), (to, (y + below) / 2), (to, below)]
            codes += [Curve.CURVE4] * 3
        elif number + 1 < len(points) and abs(points[number + 1][0] - x) > 1e-6 and len(points) > 3:
            corner = (to, below)
            vertices += [_towards(corner, (x, y), 0.07), corner, _towards(corner, points[number + 1], 0.07)]
            codes += [Curve.LINETO, Curve.CURVE3, Curve.CURVE3]
        else:
            vertices.append((to, below))
            codes.append(Curve.LINETO)
    return Curve(vertices, codes)


def _towards(start: tuple[float, float], end: tuple[float, float], length: float) -> tuple[float, float]:
    x, y = end[0] - start[0], end[1] - start[1]
    part = min(0.5, length / max(1e-9, (x * x + y * y) ** 0.5))
    return start[0] + part * x, start[1] + part * y


def _readable(colour: str) -> str:
    """Black or white, whichever is read better on a colour."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
