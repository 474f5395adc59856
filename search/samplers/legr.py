"""LeGR's regularised evolution (Real et al., AAAI 2019)."""

from __future__ import annotations

from typing import Any

import numpy as np

from espalier.pruning.graph.costs import Floats
from espalier.search.samplers.record import Observations, RecordSampler

POPULATION, TOURNAMENT = 64, 16
FIRST = 16
"""Trials before the first tournament; the population grows with the record until it is full."""
RATE = 0.1
"""Share of the numbers that a child changes."""
SPREAD = 1 / 3
"""Standard deviation of a first change, in ranges: a factor of e where they reach from e^-1.5 to e^1.5."""
HALVING = 150
"""Trials after which steps are half as long; the paper's shrink linearly over as many as there will be."""


class Legr(RecordSampler):
    """The best of a random few of the latest trials, changed in a few numbers, replaces the oldest.

    The first individuals are greedy pruning, changed in all numbers. On the space ``affine`` this is LeGR.
    """

    def propose(self, record: Observations, rng: np.random.Generator) -> tuple[Floats, Any]:
        """Mutates the winner of a tournament."""
        n = len(record)
        if n < FIRST:
            return self.cube.mutated(self.start(record), np.ones(self.cube.dim, dtype=np.bool_), SPREAD, rng), None
        alive = min(POPULATION, max(FIRST, n // 2))
        drawn = n - alive + rng.choice(alive, max(2, alive * TOURNAMENT // POPULATION), replace=False)
        parent = record.points[max(drawn.tolist(), key=lambda i: (record.values[i], -i))]
        return self.cube.mutated(parent, self.cube.some(RATE, rng), SPREAD * HALVING / (HALVING + n), rng), None
