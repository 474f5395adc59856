"""Local moves: MACs go from one group to another while that pays."""

from __future__ import annotations

from typing import Any

import numpy as np

from espalier.pruning.graph.costs import Floats
from espalier.search.samplers.record import Observations, RecordSampler
from espalier.search.spaces.space import DEPTH, EVENNESS, NORMALIZATION, RUNG, Space

FIRST, LEAST, GREATEST = 0.25, 0.1, 0.4
"""Lengths of moves, in ranges: where they begin, and how far success and failure take them."""
GROWTH = 1.5
"""A success makes moves so much longer, which eight failures undo: moves succeed less often than the one in five of
Rechenberg's rule (1973), as two axes of many are tried at a time."""
OTHERWISE = 1 / 8
"""Share of moves that change the rung or how energies are ranked."""


class Local(RecordSampler):
    """The best so far with one axis raised and another one lowered; the length of moves follows their success.

    On spaces of multipliers axes are logarithms, on ``widths`` and ``ratios`` they are what groups keep. The
    allocation fills the budget either way, so that what one group gives up another one gets.
    """

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space, seed)
        ranking = np.array(
            [name in (RUNG, NORMALIZATION, EVENNESS, DEPTH) for name in self.cube.ranges], dtype=np.bool_
        )
        self._ranking, self._axes = np.flatnonzero(ranking), np.flatnonzero(~ranking)

    def propose(self, record: Observations, rng: np.random.Generator) -> tuple[Floats, Any]:
        """A move from the best so far."""
        best = record.points[record.best] if len(record) else self.anchors[0]
        return self._move(best, self._length(record) * float(np.exp(0.5 * rng.standard_normal())), rng), "move"

    def _move(self, point: Floats, length: float, rng: np.random.Generator) -> Floats:
        if len(self._ranking) and (rng.random() < OTHERWISE or len(self._axes) < 2):
            which = np.zeros(self.cube.dim, dtype=np.bool_)
            which[rng.choice(self._ranking)] = True
            return self.cube.mutated(point, which, 2 * length, rng)
        pair = rng.choice(self._axes, min(2, len(self._axes)), replace=False)
        signs = rng.choice([-1, 1]) * np.array([1, -1])[: len(pair)]
        moved = point.copy()
        moved[pair] += signs * np.maximum(np.abs(rng.standard_normal(len(pair))) * length, self.cube.cells[pair])
        clipped: Floats = np.clip(moved, 0, 1)
        return clipped

    def _length(self, record: Observations) -> float:
        length, best = FIRST, -np.inf
        for value, mark in zip(record.values.tolist(), record.marks, strict=True):
            if mark == "move":
                length *= GROWTH if value > best else GROWTH ** (-1 / 8)
                length = min(max(length, LEAST), GREATEST)
            best = max(best, value)
        return length
