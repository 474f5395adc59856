"""Evolution with crossover, as MetaPruning searches widths."""

from __future__ import annotations

from typing import Any

import numpy as np

from espalier.pruning.graph.costs import Floats
from espalier.search.samplers.record import Observations, RecordSampler

PARENTS = 8
FIRST = 16
"""Trials before the first selection."""
RATE = 0.15
"""Share of the numbers that a child changes."""
STEPS = (0.08, 0.35)
"""Least and greatest standard deviation of a change, in ranges; each child draws its own."""


class Evolution(RecordSampler):
    """(mu + lambda) evolution of the space's numbers: children of the best so far, half of them of two parents.

    The numbers, not the widths, are crossed: on the space ``widths`` they are the same, and elsewhere every child
    still fills the budget, while its parents' widths, crossed, would not. MetaPruning changes widths to any other;
    here the length of each change is drawn log-uniformly, so that children search far and near alike.
    """

    def propose(self, record: Observations, rng: np.random.Generator) -> tuple[Floats, Any]:
        """A child, or a neighbour of greedy pruning at first."""
        step = float(np.exp(rng.uniform(*np.log(STEPS))))
        if len(record) < FIRST:
            return self.cube.mutated(self.start(record), self.cube.some(RATE, rng), STEPS[1], rng), None
        first = [record.candidates.index(key) for key in dict.fromkeys(record.candidates)]  # the first of each
        parents = record.points[sorted(first, key=lambda i: -record.values[i])[:PARENTS]]
        if len(parents) < 2:
            parents = record.points
        one, other = parents[rng.choice(len(parents), 2, replace=False)]
        child = np.where(rng.random(self.cube.dim) < 0.5, one, other) if rng.random() < 0.5 else one
        return self.cube.mutated(child, self.cube.some(RATE, rng), step, rng), None
