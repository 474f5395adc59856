"""Methods that rank channels once, or draw a policy, and do not search."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from espalier.pruning.importance.normalizations import normalize
from espalier.search.methods.method import Choice, Material, Method, filled

LEAST_RATIO = 0.1
"""Of the widths that a random policy draws."""


class Greedy(Method):
    """Greedy global pruning as a search knows it: by energy, raw and normalised where it leaves that open."""

    words = (
        "one ranking of all channels by energy, raw or normalised by the group's mean, whichever is better on "
        "held-out data once fine-tuned"
    )

    def choose(self, material: Material, budget: str, seed: int) -> Choice:
        """The baseline that a search has, too."""
        found = material.best([material.baselines[budget]])
        return replace(found, seconds=material.baseline_seconds[budget])


class Ranked(Method):
    """Greedy global pruning by one criterion, made comparable across groups in one way."""

    def __init__(self, criterion: str, normalization: str) -> None:
        self.criterion, self._normalization = criterion, normalization
        how = "as it is" if normalization == "raw" else f"normalised: {normalization}"
        self.words = f"one ranking of all channels by {criterion}, {how}"

    def choose(self, material: Material, budget: str, seed: int) -> Choice:
        """One candidate per rung that is open."""
        space = material.spaces[budget]
        candidates = []
        of_rungs = material.scores_by(self.criterion)
        for rung in space.rungs:
            scores = normalize(of_rungs[rung], space.graph, self._normalization)
            candidates.append(filled(space, rung, scores))
        return material.best(candidates, self.criterion)


class Uniform(Method):
    """The same share of every group."""

    words = "the same share of every group, the most energetic channels of each"

    def choose(self, material: Material, budget: str, seed: int) -> Choice:
        """One candidate per rung that is open."""
        space = material.spaces[budget]
        return material.best(space.uniform_candidates())


class RandomPolicy(Method):
    """One random policy: the control of those that do not search."""

    words = "one draw: shares of the groups at random, scaled to the budget"
    seeded = True

    def choose(self, material: Material, budget: str, seed: int) -> Choice:
        """The same shares on every rung that is open."""
        space = material.spaces[budget]
        shares = np.random.default_rng([seed, 0]).uniform(LEAST_RATIO, 1.0, len(space.graph.groups))
        return material.best(
            [filled(space, rung, shares[space.graph.group_of] * space.evenly(rung)) for rung in space.rungs]
        )
