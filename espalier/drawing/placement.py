"""Where the boxes and lines of a picture stand: rows of boxes from top to bottom, cut into columns.

Order and place in a row: K. Sugiyama, S. Tagawa, M. Toda, IEEE Trans. SMC 11(2), 1981, by igraph. Lengths are
inches, y grows downwards.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from espalier.drawing.dataflow import Box, Flow
from espalier.drawing.files import check_packages
from espalier.pruning.graph.costs import Floats

GAP = 0.25  # between the rows
SPACE = 0.16  # between neighbours in a row
GUTTER = 0.45  # between columns
LANE = 0.06  # between lines from one column to the next
FORM = 1.45  # width of the page by its height

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Channels that flow from one box to others, in one piece from row to row.

    Attributes:
        source: number of the box that writes them.
        target: number of the box that this piece ends in, None where it ends in a bend.
        groups: numbers of the groups that flow.
        label: number of channels, at the piece where it is written.
        points: corners (x, y) in inches; a curve joins two that lie neither above nor beside each other.
    """

    source: int
    target: int | None
    groups: tuple[int, ...]
    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Page:
    """Boxes and lines where they stand.

    Attributes:
        boxes: those that were given, in their order.
        lines: in pieces from row to row.
        width: inches.
        height: inches.
    """

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    width: float
    height: float


def placed(boxes: Sequence[Box], flows: Mapping[Flow, set[int]]) -> Page:
    """Places boxes, each below all that flow into it, in as many columns as make a page of the usual form.

    Args:
        boxes: in the order of execution.
        flows: flow -> numbers of the boxes that it ends in.

    Raises:
        MissingPackage: igraph is not installed.
    """
    check_packages(("igraph",))
    rows = _Rows(boxes, flows)
    best, off = rows.page(1), math.inf
    for columns in range(1, max(2, len(rows.heights) // 3)):
        page = rows.page(columns)
        form = page.width / page.height / FORM
        if abs(math.log(form)) < off:
            best, off = page, abs(math.log(form))
        if form > 1:
            break
    return best


@dataclass(frozen=True)
class _Piece:
    """A piece of a line from one row to the next: numbers of nodes, which are boxes, then bends."""

    start: int
    end: int
    flow: Flow


class _Rows:
    """Rows of nodes, which are boxes and, where a line passes a row, bends."""

    def __init__(self, boxes: Sequence[Box], flows: Mapping[Flow, set[int]]) -> None:
        self.boxes = boxes
        self.row = _depths(boxes, flows)  # of every node
        self.pieces: list[_Piece] = []
        for flow, targets in flows.items():
            self._route(flow, targets)
        self.nodes: list[list[int]] = [[] for _ in range(max(self.row, default=0) + 1)]
        for node, row in enumerate(self.row):
            self.nodes[row].append(node)
        self.heights = [max((self._height(node) for node in row), default=0.0) for row in self.nodes]
        self.leaving: list[list[_Piece]] = [[] for _ in self.nodes]
        for piece in self.pieces:
            self.leaving[self.row[piece.start]].append(piece)

    def _route(self, flow: Flow, targets: set[int]) -> None:
        """One line down to the last target, with a branch to each: what flows alike is drawn once."""
        at = flow.source
        for target in sorted(targets, key=lambda target: (self.row[target], target)):
            while self.row[target] > self.row[at] + 1:
                self.row.append(self.row[at] + 1)
                self.pieces.append(_Piece(at, len(self.row) - 1, flow))
                at = len(self.row) - 1
            self.pieces.append(_Piece(at, target, flow))

    def _box(self, node: int) -> Box | None:
        return self.boxes[node] if node < len(self.boxes) else None

    def _height(self, node: int) -> float:
        box = self._box(node)
        return box.height if box else 0.0

    def _left(self, node: int) -> float:
        box = self._box(node)
        return box.width / 2 if box else 0.0

    def _right(self, node: int) -> float:
        box = self._box(node)
        return box.right if box else 0.0

    def page(self, n_columns: int) -> Page:
        """The page with about so many columns."""
        columns = self._columns(n_columns)
        x, y = np.zeros(len(self.row)), np.zeros(len(self.row))
        frames: list[tuple[float, float, float]] = []  # left, right and lower end
        start = 0.0
        for rows in columns:
            inside = [node for row in rows for node in self.nodes[row]]
            x[inside] = self._across(inside)
            near = min(x[node] - self._left(node) for node in inside)
            far = max(x[node] + self._right(node) for node in inside)
            x[inside] += start - near
            down = 0.0
            for row in rows:
                y[self.nodes[row]] = down + self.heights[row] / 2
                down += self.heights[row] + GAP
            frames.append((start, start + far - near, down - GAP))
            lanes = len(self._lanes(rows[-1], x))
            start += far - near + GUTTER + LANE * max(0, lanes - 1)
        lines = self._lines(x, y, columns, frames)
        boxes = [replace(box, x=float(x[n]), y=float(y[n])) for n, box in enumerate(self.boxes)]
        corners = [point for line in lines for point in line.points]
        top = min([0.0, *(y for _, y in corners)])
        low = max([bottom for _, _, bottom in frames] + [y for _, y in corners])
        boxes = [replace(box, y=box.y - top) for box in boxes]
        lines = [replace(line, points=tuple((x, y - top) for x, y in line.points)) for line in lines]
        return Page(tuple(boxes), tuple(lines), frames[-1][1], low - top)

    def _columns(self, count: int) -> list[range]:
        """The rows of each column, cut where few lines cross."""
        ends = np.cumsum(np.array(self.heights) + GAP)
        crossing = [len({(piece.start, piece.flow) for piece in leaving}) for leaving in self.leaving]
        cuts = [0]
        for number in range(1, count):
            ideal, slack = ends[-1] * number / count, 0.15 * ends[-1] / count
            near = [r for r in range(cuts[-1], len(ends) - 1) if abs(ends[r] - ideal) <= slack]
            if near:
                cuts.append(1 + min(near, key=lambda r: (crossing[r], abs(ends[r] - ideal))))
        return [range(a, b) for a, b in pairwise([*cuts, len(ends)])]

    def _across(self, inside: Sequence[int]) -> Floats:
        """Where the nodes of one column stand, from left to right: (len(inside),)."""
        import igraph

        place = {node: number for number, node in enumerate(inside)}
        pieces = [(place[p.start], place[p.end]) for p in self.pieces if p.start in place and p.end in place]
        top = min(self.row[node] for node in inside)
        graph = igraph.Graph(len(inside), pieces, directed=True)
        laid = graph.layout_sugiyama(layers=[self.row[node] - top for node in inside], maxiter=500)
        return self._spread(inside, np.array([point[0] for point in laid.coords[: len(inside)]]))

    def _spread(self, inside: Sequence[int], x: Floats) -> Floats:
        """Makes room for the widths of boxes: what stands in one line stays so, neighbours stay apart.

        Every line is pushed right as little as possible and, from the other side, left; the mean of both fits too.
        """
        lines, line = np.unique(np.round(x, 4), return_inverse=True)
        rows: dict[int, list[int]] = defaultdict(list)
        for number in np.argsort(x, kind="stable").tolist():
            rows[self.row[inside[number]]].append(number)
        pairs = [
            (int(line[a]), int(line[b]), self._right(inside[a]) + self._left(inside[b]) + SPACE)
            for row in rows.values()
            for a, b in pairwise(row)
        ]
        pairs += [(number, number + 1, 0.02) for number in range(len(lines) - 1)]
        left = np.zeros(len(lines))
        for a, b, room in sorted(pairs):
            left[b] = max(left[b], left[a] + room)
        right = np.full(len(lines), left.max())
        for a, b, room in sorted(pairs, key=lambda pair: -pair[1]):
            right[a] = min(right[a], right[b] - room)
        spread: Floats = ((left + right) / 2)[line]
        return spread

    def _lanes(self, row: int, x: Floats) -> list[tuple[int, Flow]]:
        """What goes on in the next column after a row, from left to right."""
        found = dict.fromkeys((piece.start, piece.flow) for piece in self.leaving[row])
        return sorted(found, key=lambda lane: float(x[lane[0]]))

    def _reach(self, node: int) -> float:
        """Half the height of a box; of a bend, half that of its row, so that it passes the boxes beside it."""
        return (self._height(node) if self._box(node) else self.heights[self.row[node]]) / 2

    def _lines(
        self, x: Floats, y: Floats, columns: Sequence[range], frames: Sequence[tuple[float, float, float]]
    ) -> list[Line]:
        column_of = {row: number for number, rows in enumerate(columns) for row in rows}
        labelled: set[Flow] = set()
        lines = []
        for piece in self.pieces:
            a, b = piece.start, piece.end
            begin = (float(x[a]), float(y[a]) + self._reach(a))
            end = (float(x[b]), float(y[b]) - self._reach(b))
            points: tuple[Point, ...] = (begin, end)
            column = column_of[self.row[a]]
            if column_of[self.row[b]] != column:
                lanes = self._lanes(self.row[a], x)
                place = lanes.index((a, piece.flow))  # nested, so that lanes do not cross
                middle = (frames[column][1] + frames[column + 1][0]) / 2 + LANE * ((len(lanes) - 1) / 2 - place)
                low = frames[column][2] + 0.12 + LANE * (len(lanes) - 1 - place)
                high = -0.15 - LANE * place
                points = (begin, (begin[0], low), (middle, low), (middle, high), (end[0], high), end)
            if not self._box(b):
                points = (*points, (end[0], float(y[b]) + self._reach(b)))
            label = "" if piece.flow in labelled else piece.flow.label
            labelled.add(piece.flow)
            lines.append(Line(piece.flow.source, b if self._box(b) else None, piece.flow.groups, label, points))
        return lines


def _depths(boxes: Sequence[Box], flows: Mapping[Flow, set[int]]) -> list[int]:
    """The row of every box: the longest way from the top; inputs stand right above what reads them."""
    depths = [0] * len(boxes)
    above: dict[int, set[int]] = defaultdict(set)
    below: dict[int, set[int]] = defaultdict(set)
    for flow, targets in flows.items():
        for target in targets:
            above[target].add(flow.source)
            below[flow.source].add(target)
    for number in range(len(boxes)):  # sources come first
        depths[number] = max((depths[source] + 1 for source in above[number]), default=0)
    for number, box in enumerate(boxes):
        if box.kind == "input" and below[number]:
            depths[number] = min(depths[target] for target in below[number]) - 1
    return depths
