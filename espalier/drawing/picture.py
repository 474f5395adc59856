"""The network as a picture: boxes and lines on a page, in the colours of the channel groups.

A box has the colours of the groups that it writes, a line those of the groups that flow along it.
`espalier.drawing.network` puts it on paper.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from espalier.drawing.dataflow import Box, Flow, boxes_and_flows
from espalier.drawing.placement import Line, placed
from espalier.inspection.document import Inspection

PALETTE = (
    "#332288",
    "#88ccee",
    "#117733",
    "#ddcc77",
    "#cc6677",
    "#44aa99",
    "#aa4499",
    "#999933",
    "#882255",
)
"""The qualitative scheme "muted" for all kinds of colour vision, of P. Tol, SRON/EPS/TN/09-002."""

FROZEN = "#c8c8c8"
SEVERAL = "#555555"
INK = "#222222"
MOST_COLOURS = 3
"""Boxes and lines show at most so many groups; more are one dark grey."""


@dataclass(frozen=True)
class Picture:
    """Boxes and lines on a page, and a colour for each group.

    Attributes:
        boxes: in the order of execution.
        lines: pieces of lines.
        colours: number of a group -> colour.
        width: inches.
        height: inches.
        per_share: square inches of a box with all MACs.
    """

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    colours: dict[int, str]
    width: float
    height: float
    per_share: float

    def shades(self, groups: Sequence[int]) -> list[str]:
        """The colours of some groups together."""
        return [self.colours[group] for group in groups] if len(groups) <= MOST_COLOURS else [SEVERAL]


def picture(inspection: Inspection) -> Picture:
    """Lays a network out on a page.

    Raises:
        MissingPackage: igraph is not installed.
    """
    boxes, flows, per_share = boxes_and_flows(inspection)
    page = placed(boxes, flows)
    return Picture(page.boxes, page.lines, _colours(inspection, boxes, flows), page.width, page.height, per_share)


def _colours(inspection: Inspection, boxes: Sequence[Box], flows: dict[Flow, set[int]]) -> dict[int, str]:
    """A colour per group: groups that meet at a box differ, as far as the palette goes."""
    n_prunable = len(inspection.graph.groups)
    meets = neighbours(boxes, [(flow.groups, target) for flow, targets in flows.items() for target in targets])
    shown = [group for group in range(n_prunable) if group in meets]
    chosen: dict[int, int] = {}
    for group in sorted(shown, key=lambda group: (-len(meets[group]), group)):
        taken = [chosen[other] for other in meets[group] if other in chosen]
        chosen[group] = min(
            range(len(PALETTE)), key=lambda colour: (taken.count(colour), *_wear(chosen, group, colour))
        )
    colours = {group: PALETTE[chosen.get(group, group % len(PALETTE))] for group in range(n_prunable)}
    return colours | {group: FROZEN for group in range(n_prunable, len(inspection.groups))}


def _wear(chosen: dict[int, int], group: int, colour: int) -> tuple[int, int]:
    """How many groups have a colour, and how near the nearest of them is."""
    others = [other for other, taken in chosen.items() if taken == colour]
    return len(others), -min((abs(group - other) for other in others), default=0)


def neighbours(boxes: Sequence[Box], ends: Iterable[tuple[Sequence[int], int]]) -> dict[int, set[int]]:
    """Which groups are seen side by side: at one box, or on the lines that end in it.

    Args:
        boxes: those of the picture.
        ends: groups of a line and the number of the box that it ends in.
    """
    seen: dict[int, set[int]] = {number: set() for number in range(len(boxes))}
    for number, box in enumerate(boxes):
        if len(box.groups) <= MOST_COLOURS:
            seen[number] |= {group for group, _ in box.groups}
    for groups, target in ends:
        if len(groups) <= MOST_COLOURS:
            seen[target] |= set(groups)
    found: dict[int, set[int]] = defaultdict(set)
    for together in seen.values():
        for group in together:
            found[group] |= together - {group}
    return found
