"""CMA-ES whose draws a surrogate screens: the sampler to take where nothing speaks for another.

Measured on a ResNet-20 (Fashion-MNIST, two rungs, 15 % of MACs, three searches each) and on the toy of
benchmarks/samplers_toy.py: screening halves the evaluations that CMA-ES needs, on both. A portfolio does not pay.
Local moves, for the first 40 or 100 trials or as a quarter or half of all draws, gain on the toy, where damage is
additive, and lose on the network; so does the pass of `sensitivity` before CMA-ES. Twelve draws did as six.
Least cross-entropy found on the network, mean of three searches, greedy pruning 1.642:

    trials        50     100     200     300
    auto        1.049   0.970   0.915   0.902
    cmaes       1.111   1.057   0.974   0.932
    evolution   1.128   1.069   1.010   0.951

These began with greedy pruning alone. A search begins with `Space.starts` too, uniform pruning and the other
normalisations of the energies; benchmarks/starts.py says what they are worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from espalier.pruning.graph.costs import Floats
from espalier.search.samplers.cmaes import CmaEs
from espalier.search.samplers.record import Observations
from espalier.search.samplers.surrogate import Surrogate, features

FIRST = 16
"""Finished trials before the surrogate is asked."""
POOL = 6
"""Draws per trial. Each costs a decoding, one to three milliseconds."""
OPTIMISM = 0.5
"""Standard deviations that are added to the surrogate's mean."""


class Auto(CmaEs):
    """For every trial several candidates are drawn, and the one that the surrogate expects most of is tried."""

    def draw(self, record: Observations, rng: np.random.Generator) -> tuple[Floats, Any]:
        """The most promising of several draws that no trial had."""
        drawn = {}
        for _ in range(POOL if len(record) >= FIRST else 0):
            point, mark = self.propose(record, rng)
            if (key := self.key(point)) not in record.known:
                drawn[key] = point, mark
        if not drawn:
            return super().draw(record, rng)
        surrogate = Surrogate(self._features(record.candidates), record.values)
        mean, spread = surrogate(self._features(list(drawn)))
        return list(drawn.values())[int((mean + OPTIMISM * spread).argmax())]

    def _features(self, keys: Sequence[str]) -> Floats:
        return features(keys, self.space.graph.sizes, self.space.rungs)
