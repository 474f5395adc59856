"""Search spaces: from a vector that a sampler proposes to a candidate that fills the budget.

Every space gives each channel a score and lets the exact greedy allocation fill the budget with the best, so
that every vector is a feasible candidate, the budget is met and not missed by more than one channel, and the
same vector always means the same widths.

Notation:
    energies   (n_rungs, n_channels) channel energies of every rung
    x          (G,) one number per group, the vector's part that shapes the network
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna

from espalier.pruning.allocation import check_budget, greedy
from espalier.pruning.energy import Normalization, normalize
from espalier.pruning.graph import ChannelGraph, Floats, Ints
from espalier.search.candidate import Candidate

RUNG = "rung"
"""Name of the parameter that chooses the strength; absent where there is one."""


class Space(ABC):
    """What is searched.

    Args:
        graph: groups and costs.
        energies: (n_rungs, n_channels).
        normalization: how energies are made comparable across groups.
        budget: most MACs per example.
        floor: (G,) fewest channels per group.
        width: half-width of the range of each number.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        energies: Sequence[Floats],
        *,
        normalization: Normalization,
        budget: int,
        floor: Ints,
        width: float,
    ) -> None:
        check_budget(graph, budget, floor)
        self.graph, self.budget, self.floor, self.width = graph, budget, floor, width
        self.ranks = [graph.ranks(e) for e in energies]
        self.normalized = [normalize(e, graph, normalization) for e in energies]

    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """Range of each number of x."""

    @abstractmethod
    def scores(self, rung: int, x: Floats) -> Floats:
        """Score per channel, (n_channels,), falling with the rank inside each group."""

    @abstractmethod
    def greedy_vector(self, rung: int) -> Floats:
        """The x, (G,), whose candidate is greedy global pruning by normalised energy."""

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Asks a trial for its vector: group name -> number, and the rung."""
        low, high = self.bounds()
        params: dict[str, Any] = {}
        if len(self.ranks) > 1:
            params[RUNG] = trial.suggest_int(RUNG, 0, len(self.ranks) - 1)
        for group in self.graph.groups:
            params[group.name] = trial.suggest_float(group.name, low, high)
        return params

    def greedy_params(self, rung: int) -> dict[str, Any]:
        """The vector of greedy global pruning on one rung, as a trial's parameters."""
        vector = self.greedy_vector(rung).tolist()
        params: dict[str, Any] = {RUNG: rung} if len(self.ranks) > 1 else {}
        return params | {group.name: value for group, value in zip(self.graph.groups, vector, strict=True)}

    def decode(self, params: Mapping[str, Any]) -> Candidate:
        """The candidate that a vector means."""
        rung = int(params.get(RUNG, 0))
        x = np.array([params[group.name] for group in self.graph.groups])
        widths = greedy(self.graph, self.scores(rung, x), self.budget, self.floor)
        return Candidate(rung, tuple(widths.tolist()))


class Multipliers(Space):
    """Log-multipliers on the normalised energies: x = 0 is greedy global pruning."""

    def bounds(self) -> tuple[float, float]:
        """Natural logarithms: energies are scaled by up to e^width either way."""
        return -self.width, self.width

    def scores(self, rung: int, x: Floats) -> Floats:
        """exp(x_g) E_c."""
        scores: Floats = np.exp(x)[self.graph.group_of] * self.normalized[rung]
        return scores

    def greedy_vector(self, rung: int) -> Floats:
        """Zeros."""
        return np.zeros(len(self.graph.groups))


class Ratios(Space):
    """Keep ratios per group, scaled by one common factor until the budget is met: equal ratios are uniform."""

    smallest = 0.02

    def bounds(self) -> tuple[float, float]:
        """Fractions kept."""
        return self.smallest, 1.0

    def scores(self, rung: int, x: Floats) -> Floats:
        """A channel at place p in (0, 1) of its group stays while p < x_g / t, whatever the threshold t."""
        place = (self.ranks[rung] + 0.5) / self.graph.sizes[self.graph.group_of]
        scores: Floats = x[self.graph.group_of] / place
        return scores

    def greedy_vector(self, rung: int) -> Floats:
        """Greedy's own keep ratios."""
        widths = greedy(self.graph, self.normalized[rung], self.budget, self.floor)
        return np.clip(widths / self.graph.sizes, self.smallest, 1.0)


SPACES: dict[str, type[Space]] = {"multipliers": Multipliers, "ratios": Ratios}
"""Name in a config -> class."""
