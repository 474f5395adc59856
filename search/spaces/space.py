"""Search spaces: from a vector that a sampler proposes to a candidate that fills the budget.

Every space gives each channel a score and lets the exact greedy allocation fill the budget with the best, so
that every vector is a feasible candidate, the budget is met and not missed by more than one channel, and the
same vector always means the same widths. Greedy global pruning and uniform pruning have a vector each.

Notation:
    energies   (n_rungs, n_channels) channel energies of every rung
    x          (A,) the vector's part that shapes the network, a number per axis of the space
    a          how far energies are normalised: 0 raw, 1 divided by their group's mean, in between E / mean^a
    e          evenness: how far a channel's place in its group counts in place of its energy
    d          depth: the share of the residual branches that may go which goes, the least worth first
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from espalier.pruning.graph.allocation import (
    branch_order,
    branches_allowed,
    check_budget,
    evenness,
    fewest_removed,
    greedy,
)
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats, Ints
from espalier.pruning.importance.normalizations import NORMALIZATIONS, group_means, normalize
from espalier.search.spaces.candidate import Candidate

RUNG = "rung"
"""Name of the parameter that chooses the strength, by its place among those allowed; absent where there is one."""

NORMALIZATION = "normalization"
"""Name of the parameter a; absent where the normalisation is fixed."""

EVENNESS = "evenness"
"""Name of the parameter e."""

BUDGET = "budget"
"""Name of the parameter that says where a candidate's budget lies: 0 at the widest, 1 at the tightest."""

DEPTH = "depth"
"""Name of the parameter d; absent where no branch can go."""

SEARCHED = "searched"
"""Leaves a to the search: raw energies rank best where the regularisation left true zeros, normalised ones where
it did not, and which holds depends on the rung."""


@dataclass(frozen=True)
class Ranking:
    """How channels are compared across groups, before a vector shapes it.

    Attributes:
        rung: whose energies, by its place on the ladder.
        a: degree of normalisation.
        e: evenness.
    """

    rung: int
    a: float = 1.0
    e: float = 0.0


class Space(ABC):
    """What is searched.

    Args:
        graph: groups and costs.
        energies: of every rung of the ladder, (n_channels,).
        normalization: how energies are made comparable across groups: a name in `NORMALIZATIONS`, or `SEARCHED`.
        budget: what a candidate may cost; a whole number means MACs per example.
        floor: (G,) fewest channels per group; a group that must keep all of them has no axis.
        round_to: what the widths of layers are multiples of.
        front: budgets to search between, falling, the last of them `budget`; empty to search under that alone.
        width: half-width of the range of log-multipliers.
        rungs: which rungs candidates may be cut from, rising; all by default.

    Raises:
        BudgetInfeasible: even `floor` exceeds the budget.
    """

    ranks_by_energy = True
    """Whether scores depend on a and e, so that they are worth a number of the vector each."""

    def __init__(
        self,
        graph: ChannelGraph,
        energies: Sequence[Floats],
        *,
        normalization: str,
        budget: Budget | int,
        floor: Ints,
        width: float,
        round_to: int = 1,
        front: Sequence[Budget] = (),
        rungs: Sequence[int] | None = None,
    ) -> None:
        check_budget(graph, budget, floor, round_to, depth=True)
        self._n_branches = len(branches_allowed(graph, floor))
        self.graph, self.floor, self.width, self.round_to = graph, floor, width, round_to
        self.budget = Budget.of(budget, graph)
        self.budgets = tuple(front) or (self.budget,)
        self.rungs = tuple(range(len(energies)) if rungs is None else rungs)
        self.energies = [np.asarray(e, dtype=np.float64) for e in energies]
        self.free: Ints = np.flatnonzero(floor < graph.sizes)
        self._evenness = [evenness(graph, graph.ranks(e)) for e in self.energies]
        self._searches_normalization = normalization == SEARCHED
        self._means = [group_means(e, graph) for e in self.energies]
        fixed = "mean" if self._searches_normalization else normalization
        self._normalized = [normalize(e, graph, fixed) for e in self.energies]
        self._axes = self.axes()

    @abstractmethod
    def axes(self) -> dict[str, BaseDistribution]:
        """Name and range of every number of x; called once."""

    @abstractmethod
    def scores(self, ranking: Ranking, x: Floats) -> Floats:
        """Score per channel, (n_channels,), falling with the rank inside each group."""

    @abstractmethod
    def at_widths(self, widths: Ints) -> Floats | None:
        """The x, (A,), of these widths, or None where energies, not x, say what they are: x = `origin` then."""

    def nearest(self, widths: Ints, rung: int) -> Floats:
        """The x, (A,), of the widths nearest to these that the space has, with `Ranking(rung)`."""
        x = self.at_widths(widths)
        assert x is not None
        return x

    @property
    def seeks_front(self) -> bool:
        """Whether candidates of many costs are searched, for high value at low cost, and not under one budget."""
        return len(self.budgets) > 1

    def moves(self) -> dict[str, list[int]]:
        """Axis -> the groups that its number moves: the free group of its name, here."""
        names = {self.graph.groups[group].name: [group] for group in self.free.tolist()}
        return {axis: names[axis] for axis in self._axes if axis in names}

    def origin(self) -> Floats:
        """The x, (A,), that leaves a ranking as it is."""
        return np.zeros(len(self._axes))

    # -- between vectors and candidates

    def distributions(self) -> dict[str, BaseDistribution]:
        """Name and range of every parameter."""
        found: dict[str, BaseDistribution] = {}
        if len(self.rungs) > 1:
            found[RUNG] = IntDistribution(0, len(self.rungs) - 1)
        if self.ranks_by_energy:
            if self._searches_normalization:
                found[NORMALIZATION] = FloatDistribution(0.0, 1.0)
            found[EVENNESS] = FloatDistribution(0.0, 1.0)
        if self.seeks_front:
            found[BUDGET] = FloatDistribution(0.0, 1.0)
        if self._n_branches:
            found[DEPTH] = FloatDistribution(0.0, 1.0)
        return found | self._axes

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Asks a trial for its vector."""
        params: dict[str, Any] = {}
        for name, distribution in self.distributions().items():
            if isinstance(distribution, IntDistribution):
                params[name] = trial.suggest_int(name, distribution.low, distribution.high)
            elif isinstance(distribution, FloatDistribution):
                params[name] = trial.suggest_float(name, distribution.low, distribution.high)
        return params

    def decode(self, params: Mapping[str, Any]) -> Candidate:
        """The candidate that a vector means; that of another search's space where the axes are the same.

        A strength, or a place between budgets, that it names counts where this space leaves them open.
        """
        rung = self.rungs[int(params.get(RUNG, 0)) if len(self.rungs) > 1 else 0]
        ranking = Ranking(rung, float(params.get(NORMALIZATION, 1.0)), float(params.get(EVENNESS, 0.0)))
        x = np.array([float(params[name]) for name in self._axes])
        budget = self.budgets[0].between(self.budget, float(params.get(BUDGET, 1.0)))
        widths = self.filled(self.scores(ranking, x), budget, float(params.get(DEPTH, 0.0)))
        return Candidate(rung, tuple(widths.tolist()))

    def greedy_params(self) -> list[dict[str, Any]]:
        """The vectors of greedy global pruning: on every rung, by normalised and by raw energy if both are in.

        Under every budget of a front, the tightest first; where branches can go, with those out that `greedy` takes
        out, and with as few as the budget allows.
        """
        return [
            self._params(ranking, self.filled(self.ranked(ranking), budget, depth), budget, depth)
            for budget in reversed(self.budgets)
            for ranking in self._greedy_rankings()
            for depth in self._greedy_depths(ranking, budget)
        ]

    def greedy_candidates(self) -> list[Candidate]:
        """What greedy global pruning keeps, in the order of its vectors."""
        return [self.decode(params) for params in self.greedy_params()]

    def uniform_candidates(self) -> list[Candidate]:
        """What uniform pruning keeps, in the order of its vectors."""
        return [self.decode(params) for params in self.uniform_params()]

    def starts(self) -> list[dict[str, Any]]:
        """Vectors to begin from besides greedy's, on every rung: uniform pruning, and rankings by the other norms.

        Of these a space may have the nearest widths alone.
        """
        found = []
        for rung in self.rungs:
            for how in [name for name in NORMALIZATIONS if name not in ("raw", "mean")]:
                widths = self.filled(normalize(self.energies[rung], self.graph, how))
                found.append(self._params(Ranking(rung), widths, self.budget, x=self.nearest(widths, rung)))
        return [*self.uniform_params(), *found]

    def _greedy_rankings(self) -> list[Ranking]:
        degrees = (1.0, 0.0) if self._searches_normalization else (1.0,)
        return [Ranking(rung, a) for rung in self.rungs for a in degrees]

    def uniform_params(self) -> list[dict[str, Any]]:
        """The vectors of uniform pruning, one on every rung."""
        return [
            self._params(Ranking(rung, 1.0, 1.0), self._uniform(budget), budget)
            for budget in reversed(self.budgets)
            for rung in self.rungs
        ]

    def ranked(self, ranking: Ranking) -> Floats:
        """Positive scores that are comparable across groups, x left out: (n_channels,)."""
        normalized = self._normalized[ranking.rung]
        if self._searches_normalization:
            normalized = self.energies[ranking.rung] / self._means[ranking.rung][self.graph.group_of] ** ranking.a
        blended: Floats = normalized ** (1 - ranking.e) * self._evenness[ranking.rung] ** ranking.e
        return blended

    def evenly(self, rung: int) -> Floats:
        """Scores by the place in the group alone: (n_channels,)."""
        return self._evenness[rung]

    def filled(self, scores: Floats, budget: Budget | None = None, depth: float = 0.0) -> Ints:
        """Widths (G,) that fill a budget, by default the tightest, by scores (n_channels,).

        Args:
            scores: higher is kept longer.
            budget: what they may cost.
            depth: share of the branches that goes; more where the budget cannot be met otherwise.
        """
        budget = budget or self.budget
        removed: list[int] = []
        if self._n_branches:
            order = branch_order(self.graph, scores, budget, self.floor)
            fewest = fewest_removed(self.graph, order, budget, self.floor, self.round_to)
            removed = order[: max(round(depth * len(order)), fewest or 0)]
        return greedy(self.graph, scores, budget, self.floor, self.round_to, removed=removed)

    def _greedy_depths(self, ranking: Ranking, budget: Budget) -> list[float]:
        """The d of greedy pruning."""
        if not self._n_branches:
            return [0.0]
        scores = self.ranked(ranking)
        widths = greedy(self.graph, scores, budget, self.floor, self.round_to, depth=True)
        order = branch_order(self.graph, scores, budget, self.floor)
        out = next(n for n in range(len(order) + 1) if (self.graph.gone(order[:n]) == (widths == 0)).all())
        return list(dict.fromkeys([out / len(order), 0.0]))

    def _uniform(self, budget: Budget) -> Ints:
        place = np.arange(self.graph.n_channels) - self.graph.offsets[self.graph.group_of]
        return self.filled(evenness(self.graph, place), budget)

    def _params(
        self, ranking: Ranking, widths: Ints, budget: Budget, depth: float = 0.0, x: Floats | None = None
    ) -> dict[str, Any]:
        x = self.at_widths(widths) if x is None else x
        values = {RUNG: self.rungs.index(ranking.rung), NORMALIZATION: ranking.a, EVENNESS: ranking.e, DEPTH: depth}
        values[BUDGET] = self.budgets[0].share(budget, self.budget)
        values |= dict(zip(self._axes, (self.origin() if x is None else x).tolist(), strict=True))
        found = self.distributions()
        whole = {name for name, distribution in found.items() if isinstance(distribution, IntDistribution)}
        return {name: round(values[name]) if name in whole else values[name] for name in found}
