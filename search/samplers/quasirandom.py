"""Points that fill the cube evenly: a baseline for spaces of few numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from espalier.pruning.graph.costs import Floats
from espalier.search.samplers.record import Observations, RecordSampler


class Quasirandom(RecordSampler):
    """Sobol points, scrambled by the seed; the trial's number is the place in the sequence.

    Optuna's QMCSampler counts places in the study instead, so that a trial whose driver died while it was drawn
    would get another point.
    """

    def propose(self, record: Observations, rng: np.random.Generator) -> tuple[Floats, Any]:
        """The point of the trial's number."""
        from scipy.stats import qmc  # slow to import

        sequence = qmc.Sobol(self.cube.dim, rng=self.seed)
        if record.number:
            sequence.fast_forward(record.number)
        point: Floats = sequence.random(1)[0]
        return point, None

    def draw(self, record: Observations, rng: np.random.Generator) -> tuple[Floats, Any]:
        """The point, whatever was tried before."""
        return self.propose(record, rng)
