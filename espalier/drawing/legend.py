"""The title and the legend of a picture."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

from espalier.drawing.dataflow import ASPECT, POINTS, SMALLEST, text_width
from espalier.drawing.picture import FROZEN, INK, SEVERAL, Picture
from espalier.inspection.document import Inspection
from espalier.inspection.tables import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Notes:
    """The title above a picture and the legend below.

    Attributes:
        above: inches that the title needs.
        below: inches that the legend needs.
        width: inches that both need at least.
    """

    def __init__(self, inspection: Inspection, made: Picture) -> None:
        dense, kept = inspection.dense, inspection.kept
        self.made = made
        self.title = f"{inspection.network}: {short(dense.macs)} MACs, {short(dense.parameters)} parameters"
        if kept is not None:
            self.title += f"; kept: {short(kept.macs)} MACs, {short(kept.parameters)} parameters"
        wide = max(made.width, 5.2)
        self.entries = self._entries(inspection, made)
        self.columns = max(1, int(wide // 3.4))
        letters = int(min(wide / self.columns, 6.0) / text_width("x", POINTS)) - 8
        self.texts = [textwrap.wrap(text, letters) for _, text in self.entries]
        self.rows = [
            max(len(text) for text in self.texts[start : start + self.columns])
            for start in range(0, len(self.texts), self.columns)
        ]
        self.width = max(5.2, 1.25 * text_width(self.title, 9.5))
        self.wide = max(wide, self.width)
        self.above = 0.4
        self.below = 0.2 + sum(0.125 * lines + 0.09 for lines in self.rows)

    def _entries(self, inspection: Inspection, made: Picture) -> list[tuple[str, str]]:
        least = SMALLEST / made.per_share
        round_ones = (part for part in (0.05, 0.02, 0.01, 0.005, 0.002, 0.001) if part * made.per_share <= 0.035)
        part = max(next(round_ones, least), least)
        self.sample = part * made.per_share  # square inches
        smallest = " or less" if part == least else f", the smallest boxes {100 * least:.2g} % or less"
        entries = [
            ("area", f"area of a box: its share of the MACs; this one is {100 * part:.2g} %{smallest}"),
            (
                "colour",
                "colour: the channel group that a box writes and that flows along a line; it is pruned as one",
            ),
            ("number", "number on a line: channels" + (", kept/all" if inspection.widths is not None else "")),
        ]
        groups = {group for box in made.boxes for group, _ in box.groups}
        if inspection.widths is not None:
            entries.append(("kept", "filled part of a box: the MACs that are kept"))
        if any(2 <= len(box.groups) <= 3 for box in made.boxes):
            entries.append(("two", "two or three colours: channels of so many groups"))
        if any(len(line.groups) > 3 for line in made.lines) or any(len(box.groups) > 3 for box in made.boxes):
            entries.append(("several", "dark grey: channels of more than three groups"))
        if any(not box.groups or made.colours[box.groups[0][0]] == FROZEN for box in made.boxes):
            entries.append(("frozen", "light grey, hatched: frozen, it cannot be pruned"))
        if len({group for group in groups if made.colours[group] != FROZEN}) > len(set(made.colours.values())) - 1:
            entries.append(("repeat", "colours repeat: the same one elsewhere may be another group"))
        if any(box.kind == "join" for box in made.boxes):
            entries.append(("join", "circle: where branches join, + add, x multiply, ‖ concatenate"))
        return entries

    def draw(self, axes: Axes, left: float) -> None:
        """Draws them with their left end at `left`."""
        axes.text(left, -0.28, self.title, fontsize=9.5, ha="left", va="center", color=INK, fontweight="bold")
        y = self.made.height + 0.2
        for start, lines in zip(range(0, len(self.entries), self.columns), self.rows, strict=True):
            for number in range(start, min(start + self.columns, len(self.entries))):
                x = left + (number - start) * self.wide / self.columns
                self._sample(axes, self.entries[number][0], x, y + 0.06)
                for line, text in enumerate(self.texts[number]):
                    below = y + 0.06 + 0.125 * line
                    axes.text(x + 0.42, below, text, fontsize=POINTS, ha="left", va="center_baseline", color=INK)
            y += 0.125 * lines + 0.09

    def _sample(self, axes: Axes, kind: str, x: float, y: float) -> None:
        """What an entry of the legend explains, drawn 0.34 inches wide around y."""
        from matplotlib.patches import Circle, Rectangle

        first = self.made.colours.get(0, SEVERAL)
        second = next((c for c in self.made.colours.values() if c not in (first, FROZEN)), SEVERAL)

        def box(width: float, height: float, colour: str, start: float = 0.0, **style: Any) -> None:
            shape = Rectangle((x + start, y - height / 2), width, height, facecolor=colour)
            shape.update({"edgecolor": INK, "linewidth": 0.7} | style)
            axes.add_patch(shape)

        def line(start: float, colour: str, style: Any = "solid") -> None:
            axes.plot([x + start, x + 0.34], [y, y], color=colour, linewidth=1.7, linestyle=style)

        def text(label: str, points: float, **style: Any) -> None:
            axes.text(x + 0.17, y, label, fontsize=points, ha="center", va="center_baseline", color=INK, **style)

        if kind == "area":
            width, height = math.sqrt(self.sample * ASPECT), math.sqrt(self.sample / ASPECT)
            box(width, height, "white", 0.17 - width / 2)
        elif kind == "colour":
            box(0.15, 0.1, first)
            line(0.15, first)
        elif kind == "number":
            line(0.0, first)
            text("16", POINTS - 1.3, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
        elif kind == "kept":
            box(0.34, 0.1, "white")
            axes.add_patch(Rectangle((x, y), 0.34, 0.05, facecolor=first, edgecolor=INK, linewidth=0.7))
        elif kind == "two":
            line(0.0, first, (0, (4, 4)))
            line(0.0, second, (4, (4, 4)))
        elif kind == "several":
            line(0.0, SEVERAL)
        elif kind == "frozen":
            box(0.34, 0.1, FROZEN, edgecolor="#8a8a8a", hatch="////", linewidth=0)
            box(0.34, 0.1, "none")
        elif kind == "join":
            axes.add_patch(Circle((x + 0.17, y), 0.08, facecolor="white", edgecolor=first, linewidth=2))
            text("+", POINTS)
