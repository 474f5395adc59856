"""Search spaces: from a vector that a sampler proposes to a candidate that fills the budget.

Every space gives each channel a score and lets the exact greedy allocation fill the budget with the best, so
that every vector is a feasible candidate, the budget is met and not missed by more than one channel, and the
same vector always means the same widths.

Notation:
    energies   (n_rungs, n_channels) channel energies of every rung
    x          (G,) one number per group, the vector's part that shapes the network
    a          how far energies are normalised: 0 raw, 1 divided by their group's scale, in between E / scale^a
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import optuna

from espalier.pruning.allocation import check_budget, greedy
from espalier.pruning.costs import Floats, Ints
from espalier.pruning.energy import Normalization, scales
from espalier.pruning.graph import ChannelGraph
from espalier.search.candidate import Candidate

RUNG = "rung"
"""Name of the parameter that chooses the strength; absent where there is one."""

NORMALIZATION = "normalization"
"""Name of the parameter a; absent where the normalisation is fixed."""

SEARCHED = "searched"
"""Leaves a to the search: raw energies rank best where the regularisation left true zeros, normalised ones where
it did not, and which holds depends on the rung."""


class Space(ABC):
    """What is searched.

    Args:
        graph: groups and costs.
        energies: (n_rungs, n_channels).
        normalization: how energies are made comparable across groups, or `SEARCHED`.
        budget: most MACs per example.
        floor: (G,) fewest channels per group.
        round_to: what the widths of layers are multiples of.
        width: half-width of the range of each number.

    Raises:
        BudgetInfeasible: even `floor` exceeds the budget.
    """

    normalizes = True
    """Whether scores depend on a, so that it is worth a number of the vector."""

    def __init__(
        self,
        graph: ChannelGraph,
        energies: Sequence[Floats],
        *,
        normalization: Normalization | Literal["searched"],
        budget: int,
        floor: Ints,
        width: float,
        round_to: int = 1,
    ) -> None:
        check_budget(graph, budget, floor, round_to)
        self.graph, self.budget, self.floor, self.width, self.round_to = graph, budget, floor, width, round_to
        self.energies = [np.asarray(e, dtype=np.float64) for e in energies]
        self.ranks = [graph.ranks(e) for e in self.energies]
        self.normalization_is_searched = normalization == SEARCHED
        how = "mean" if normalization == "searched" else normalization
        self._scales = [scales(e, graph, how) for e in self.energies]

    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """Range of each number of x."""

    @abstractmethod
    def scores(self, rung: int, a: float, x: Floats) -> Floats:
        """Score per channel, (n_channels,), falling with the rank inside each group."""

    @abstractmethod
    def greedy_vector(self, rung: int, a: float) -> Floats:
        """The x, (G,), whose candidate is greedy global pruning by energies normalised to degree a."""

    def normalized(self, rung: int, a: float) -> Floats:
        """Energies that are comparable across groups: (n_channels,)."""
        normalized: Floats = self.energies[rung] / self._scales[rung][self.graph.group_of] ** a
        return normalized

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Asks a trial for its vector: group name -> number, the rung and the normalisation."""
        low, high = self.bounds()
        params: dict[str, Any] = {}
        if len(self.ranks) > 1:
            params[RUNG] = trial.suggest_int(RUNG, 0, len(self.ranks) - 1)
        if self.normalization_is_searched and self.normalizes:
            params[NORMALIZATION] = trial.suggest_float(NORMALIZATION, 0.0, 1.0)
        for group in self.graph.groups:
            params[group.name] = trial.suggest_float(group.name, low, high)
        return params

    def greedy_params(self) -> list[dict[str, Any]]:
        """The vectors of greedy global pruning: on every rung, by normalised and by raw energy if both are in."""
        degrees = (1.0, 0.0) if self.normalization_is_searched else (1.0,)
        return [self._greedy(rung, a) for rung in range(len(self.ranks)) for a in degrees]

    def _greedy(self, rung: int, a: float) -> dict[str, Any]:
        params: dict[str, Any] = {RUNG: rung} if len(self.ranks) > 1 else {}
        if self.normalization_is_searched and self.normalizes:
            params[NORMALIZATION] = a
        vector = self.greedy_vector(rung, a).tolist()
        return params | {group.name: value for group, value in zip(self.graph.groups, vector, strict=True)}

    def decode(self, params: Mapping[str, Any]) -> Candidate:
        """The candidate that a vector means."""
        rung, a = int(params.get(RUNG, 0)), float(params.get(NORMALIZATION, 1.0))
        x = np.array([params[group.name] for group in self.graph.groups])
        widths = greedy(self.graph, self.scores(rung, a, x), self.budget, self.floor, self.round_to)
        return Candidate(rung, tuple(widths.tolist()))


class Multipliers(Space):
    """Log-multipliers on the normalised energies: x = 0 is greedy global pruning."""

    def bounds(self) -> tuple[float, float]:
        """Natural logarithms: energies are scaled by up to e^width either way."""
        return -self.width, self.width

    def scores(self, rung: int, a: float, x: Floats) -> Floats:
        """exp(x_g) E_c / scale_g^a."""
        scores: Floats = np.exp(x)[self.graph.group_of] * self.normalized(rung, a)
        return scores

    def greedy_vector(self, rung: int, a: float) -> Floats:
        """Zeros."""
        return np.zeros(len(self.graph.groups))


class Ratios(Space):
    """Keep ratios per group, scaled by one common factor until the budget is met: equal ratios are uniform."""

    normalizes = False
    smallest = 0.02

    def bounds(self) -> tuple[float, float]:
        """Fractions kept."""
        return self.smallest, 1.0

    def scores(self, rung: int, a: float, x: Floats) -> Floats:
        """A channel at place p in (0, 1) of its group stays while p < x_g / t, whatever the threshold t."""
        place = (self.ranks[rung] + 0.5) / self.graph.sizes[self.graph.group_of]
        scores: Floats = x[self.graph.group_of] / place
        return scores

    def greedy_vector(self, rung: int, a: float) -> Floats:
        """Greedy's own keep ratios."""
        widths = greedy(self.graph, self.normalized(rung, a), self.budget, self.floor)
        return np.clip(widths / self.graph.sizes, self.smallest, 1.0)


SPACES: dict[str, type[Space]] = {"multipliers": Multipliers, "ratios": Ratios}
"""Name in a config -> class."""
