"""What a picture of a network shows: boxes, and the channels that flow between them.

Operations with MACs are boxes, their area proportional to the share of the network's MACs; so are inputs and
outputs, and the joins of branches, at the smallest size. Everything else (norms, activations, pooling, views)
is passed through and becomes part of a line. Lengths are inches.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from espalier.inspection.document import Inspection
from espalier.inspection.tables import shortened

Kind = Literal["operation", "join", "input", "output"]

SYMBOLS = {"add": "+", "sub": "-", "mul": "x", "div": "/", "cat": "‖", "stack": "‖", "where": "?"}

AREA = 0.42  # of a box with the mean share of MACs, square inches
LARGEST = 4.0  # square inches
SMALLEST = 0.03  # square inches
ASPECT = 3.2  # width of a box by its height
JOIN = 0.19  # diameter
END = (0.62, 0.2)  # of the boxes of inputs and outputs
POINTS = 6.5  # size of names
LONGEST = 20  # letters of a name that stands beside its box


@dataclass(frozen=True)
class Box:
    """An operation, a join of branches, an input or an output.

    Attributes:
        kind: which of them.
        operation: its number; of an output, the number of what it gives out.
        name: the layer, or the symbol of a join.
        share: of the network's MACs, 0 .. 1.
        groups: numbers of the groups that it writes, with the share of its channels: none where all are frozen.
        kept: MACs kept by MACs of the dense network; 1 where no fewer channels were asked for.
        width: inches.
        height: inches.
        x: of the centre, inches.
        y: of the centre, inches.
    """

    kind: Kind
    operation: int
    name: str
    share: float
    groups: tuple[tuple[int, float], ...]
    kept: float
    width: float
    height: float
    x: float = 0.0
    y: float = 0.0

    @property
    def area(self) -> float:
        """Square inches."""
        return self.width * self.height

    @property
    def fits(self) -> bool:
        """Whether the name stands inside; beside it otherwise."""
        return self.kind != "operation" or _fits(self.name, self.width, self.height)

    @property
    def right(self) -> float:
        """From the centre to the right end of the box, or of the name beside it."""
        return self.width / 2 + (0.0 if self.fits else 0.04 + text_width(self.name, POINTS))


@dataclass(frozen=True)
class Flow:
    """Channels that leave a box, as they arrive at others.

    Attributes:
        source: number of the box.
        groups: numbers of the groups that they belong to.
        label: how many they are.
    """

    source: int
    groups: tuple[int, ...]
    label: str


def boxes_and_flows(inspection: Inspection) -> tuple[list[Box], dict[Flow, set[int]], float]:
    """The boxes in the order of execution, which flow ends in which boxes, and square inches per share of MACs."""
    operations = inspection.operations
    total = max(1, inspection.dense.macs)
    costly = [operation.dense.macs / total for operation in operations if operation.dense.macs]
    per_share = min(AREA * max(1, len(costly)), LARGEST / max(costly, default=1.0))
    boxes: list[Box] = []
    origins: dict[int, set[int]] = {}  # operation -> the boxes whose results it passes through
    flows: dict[Flow, set[int]] = defaultdict(set)

    def connect(value: int, target: int) -> None:
        groups, label = tuple(operations[value].writes), _channels(inspection, value)
        for source in origins[value]:
            flows[Flow(source, groups or operations[boxes[source].operation].writes, label)].add(target)

    for operation in operations:
        sources = set().union(*(origins[source] for source in operation.inputs))
        kind: Kind | None = None
        if operation.dense.macs:
            kind = "operation"
        elif operation.kind == "input":
            kind = "input"
        elif len(sources) > 1:
            kind = "join"
        if kind is None:
            origins[operation.number] = sources
            continue
        boxes.append(_box(inspection, kind, operation.number, per_share))
        origins[operation.number] = {len(boxes) - 1}
        for source in operation.inputs:
            connect(source, len(boxes) - 1)
    for number in inspection.graph.outputs:
        if origins[number]:
            boxes.append(_box(inspection, "output", number, per_share))
            connect(number, len(boxes) - 1)
    return boxes, flows, per_share


def _box(inspection: Inspection, kind: Kind, number: int, per_share: float) -> Box:
    operation = inspection.operations[number]
    share = operation.dense.macs / max(1, inspection.dense.macs)
    widths = [inspection.width(group) for group in operation.writes]
    groups = tuple((g, w / sum(widths)) for g, w in zip(operation.writes, widths, strict=True))
    kept = 1.0
    if operation.kept is not None and operation.dense.macs:
        kept = operation.kept.macs / operation.dense.macs
    area = max(share * per_share, SMALLEST)
    width, height, name = math.sqrt(area * ASPECT), math.sqrt(area / ASPECT), operation.layer or operation.kind
    if kind == "join":
        name = SYMBOLS.get(operation.kind.rstrip("_"), operation.kind)
        width, height = max(JOIN, text_width(name, POINTS) + 0.06), JOIN
    elif kind != "operation":
        name, (width, height) = kind, END
    if kind == "operation" and not _fits(name, width, height):
        inside = int((width - 0.06) / text_width("x", POINTS)) if height >= 0.13 else 0
        name = shortened(name, inside if inside >= LONGEST else LONGEST)
    return Box(kind, number, name, share if kind == "operation" else 0.0, groups, kept, width, height)


def _fits(name: str, width: float, height: float) -> bool:
    return text_width(name, POINTS) <= width - 0.06 and height >= 0.13


def _channels(inspection: Inspection, number: int) -> str:
    """Channels of a result: the indices of the dimensions that groups lie along, or of a usual one."""
    operation = inspection.graph.operations[number]
    dims = [
        dim
        for dim, size in enumerate(operation.sizes)
        if any(monomial and count for monomial, count in size.items())
    ]
    if not dims and operation.shape:
        dims = [1 if len(operation.shape) in (2, 4, 5) else len(operation.shape) - 1]
    dense = math.prod(operation.shape[dim] for dim in dims)
    if inspection.widths is None:
        return str(dense)
    shape = operation.shape_at(inspection.widths)
    kept = math.prod(shape[dim] for dim in dims)
    return f"{kept}/{dense}" if kept != dense else str(dense)


def text_width(text: str, points: float) -> float:
    """About how wide a text is, in inches: letters of a sans serif are 0.58 of their size wide."""
    return 0.58 * points / 72 * len(text)
