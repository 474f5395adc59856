"""One pass over the groups, each alone, then all that helped at once.

FastNAS, of NVIDIA's Model Optimizer, scores every width of each layer alone with the others dense. Here each axis
is scored alone from greedy pruning, within the budget, as what a group is worth depends on how narrow the others
are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from espalier.pruning.graph.costs import Floats
from espalier.search.samplers.local import Local
from espalier.search.samplers.record import Observations
from espalier.search.spaces.space import Space

DELTA = 0.2
"""How far an axis is raised and lowered in the pass, in ranges."""
REACH = 1.5
"""How far past these an axis may be sent, in DELTA."""
SHARES = (1.0, 0.5, 1.5, 0.25)
"""Of the way to where each axis is best alone: the joint optimum is nearer than that where groups compensate."""


class Sensitivity(Local):
    """Two trials per axis, parabolas through them, four trials on the way to their tops, then local moves."""

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space, seed)
        self._steps = np.maximum(DELTA, self.cube.cells)  # (d,)
        self._about: tuple[Floats, list[_Alone]] | None = None  # the pass about the start it was made for

    def propose(self, record: Observations, rng: np.random.Generator) -> tuple[Floats, Any]:
        """What the pass still lacks, or what follows it; points of candidates that are known are left out."""
        if "move" in record.marks:
            return super().propose(record, rng)
        start = self.start(record)
        alone = self._alone(start)
        for each in alone:
            if each.key not in record.known:
                return each.point, "alone"
        best_alone = self._tops(start, alone, record)
        for share in SHARES:
            point = self.cube.settled(start + share * best_alone)
            if self.key(point) not in record.known:
                return point, "together"
        return super().propose(record, rng)

    def _alone(self, start: Floats) -> list[_Alone]:
        if self._about is None or not np.array_equal(self._about[0], start):
            points = []
            for axis in self._axes.tolist():
                for sign in (1, -1):
                    moved = start.copy()
                    moved[axis] += sign * self._steps[axis]
                    points.append((axis, self.cube.settled(moved)))
            self._about = start, [_Alone(axis, point, self.key(point)) for axis, point in points]
        return self._about[1]

    def _tops(self, start: Floats, alone: list[_Alone], record: Observations) -> Floats:
        """How far to move every axis, (d,); zero for those whose trials failed or are running."""
        moves = np.zeros(self.cube.dim)
        value_of = dict(zip(reversed(record.candidates), reversed(record.values.tolist()), strict=True))
        here = value_of.get(self.key(start))
        for axis in self._axes.tolist():
            found = {each.point[axis] - start[axis]: value_of.get(each.key) for each in alone if each.axis == axis}
            known = {length: value for length, value in (found | {0.0: here}).items() if value is not None}
            lengths, values = np.array(list(known)), np.array(list(known.values()))
            if len(known) < 3 or not np.isfinite(values).all():
                continue
            curvature, slope, _ = np.polyfit(lengths, values / max(float(np.abs(values).max()), 1e-300), 2)
            bound = REACH * self._steps[axis]
            if curvature < 0:
                moves[axis] = np.clip(-slope / (2 * curvature), -bound, bound)
            else:
                moves[axis] = lengths[values.argmax()]
        return moves


class _Alone(NamedTuple):
    axis: int
    point: Floats
    key: str
