"""Pruning as an episode: gymnasium environments whose every episode ends with widths that fill the budget.

    LayerwiseEnv       one group per step, as in AMC (He et al., ECCV 2018, arXiv 1802.03494)
    SimultaneousEnv    all groups move at every step, as in GNN-RL (Yu et al., ICML 2022)

Both published codes miss their target: one rounds channels up behind the wall, the other cuts on until it is below.
Here an action is moved to the nearest one that keeps the budget reachable, and what is left over at the end is
given back channel by channel. ``info["executed"]`` holds the action that was carried out, from which to learn.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from espalier.agents.graph.network_graph import GROUP_FEATURES, network_graph
from espalier.pruning.graph.allocation import check_budget, fill, narrowest
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats, Ints

Vector = npt.NDArray[np.float32]

Evaluate = Callable[[Ints], float]
"""Score of widths (G,), greater is better; on images held out of the training split, never on the test split."""

BOUND = 10.0
"""Observations lie within it; features are logarithms and shares."""

LEAST, MOST = 0.05, 0.5
"""Share of its channels that a group loses in a step of `SimultaneousEnv`: one group at least, and any at most."""


class PruningEnv(gymnasium.Env[Vector, Vector]):
    """An episode of pruning one network to one budget; actions are in [-1, 1].

    The last step's reward is the score of the widths, that of the others 0. Its info holds ``widths`` (G,).

    Args:
        graph: groups and costs.
        energies: (n_channels,) by which channels are ranked, not negative.
        budget: what the pruned network may cost; a whole number means MACs per example.
        evaluate: scores widths.
        floor: (G,) fewest channels per group; one each by default.
        round_to: what the widths of layers are multiples of.

    Raises:
        BudgetInfeasible: even the narrowest network exceeds the budget.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        energies: Floats,
        budget: Budget | int,
        evaluate: Evaluate,
        *,
        floor: Ints | None = None,
        round_to: int = 1,
    ) -> None:
        check_budget(graph, budget, floor, round_to)
        self.graph, self.budget = graph, Budget.of(budget, graph)
        self._energies, self._evaluate = energies, evaluate
        self._floor, self._round_to = floor, round_to
        self.narrow = narrowest(graph, floor, round_to)
        steps = graph.steps(round_to).tolist()
        self.choices: list[Ints] = [
            np.unique(np.append(np.arange(narrow, size, step), size)).astype(np.int64)
            for narrow, size, step in zip(self.narrow.tolist(), graph.sizes.tolist(), steps, strict=True)
        ]
        found = network_graph(graph, energies).x
        assert found is not None
        self.features: Vector = found[: len(graph.groups), : len(GROUP_FEATURES)].numpy()
        self._limits = self.budget.costs(graph, graph.sizes)
        shape = (self._observe_start().size,)
        self.observation_space = gymnasium.spaces.Box(-BOUND, BOUND, shape, np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self._n_actions,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Vector, dict[str, Any]]:
        """The dense network. Nothing is drawn: the seed only seeds what a caller draws from `np_random`."""
        super().reset(seed=seed)
        return self._observe_start(), {}

    def step(self, action: Vector) -> tuple[Vector, float, bool, bool, dict[str, Any]]:
        """Carries out an action, or the nearest one that keeps the budget reachable."""
        executed, widths = self._move(np.clip(np.asarray(action, dtype=np.float64), -1, 1))
        info: dict[str, Any] = {"executed": executed.astype(np.float32)}
        reward = 0.0
        if widths is not None:
            info["widths"] = fill(self.graph, widths, self._energies, self.budget, self._floor, self._round_to)
            reward = float(self._evaluate(info["widths"]))
        return self._observe(), reward, widths is not None, False, info

    def share_left(self, widths: Ints) -> float:
        """What widths (G,) cost against the dense network, by the limit of which they use the greatest share."""
        metric = self.budget.binding(self.graph, widths)
        return float(self.budget.costs(self.graph, widths)[metric] / self._limits[metric])

    @property
    @abstractmethod
    def _n_actions(self) -> int: ...

    @abstractmethod
    def _observe_start(self) -> Vector:
        """Begins an episode."""

    @abstractmethod
    def _observe(self) -> Vector: ...

    @abstractmethod
    def _move(self, action: Floats) -> tuple[Floats, Ints | None]:
        """The action as carried out, and at the end of an episode widths (G,) that fit."""


class LayerwiseEnv(PruningEnv):
    """One group per step, in the order of the data flow; action a keeps (a + 1) / 2 of its channels.

    The wall: no wider than what still fits with every later group at its narrowest, and no narrower than what uses
    the budget up with every later group dense.
    """

    @property
    def _n_actions(self) -> int:
        return 1

    def _observe_start(self) -> Vector:
        self._widths, self._step, self._last = self.graph.sizes.copy(), 0, 1.0
        return self._observe()

    def _observe(self) -> Vector:
        """Features of the group whose turn it is; costs so far, and with the rest at its narrowest."""
        rest = np.where(np.arange(len(self._widths)) < self._step, self._widths, self.narrow)
        ended = self._step == len(self._widths)
        own = np.zeros_like(self.features[0]) if ended else self.features[self._step]
        state = [self.share_left(self._widths), self.share_left(rest), self._last, self._step / len(self._widths)]
        observation: Vector = np.clip(np.concatenate([own, state]), -BOUND, BOUND).astype(np.float32)
        return observation

    def _move(self, action: Floats) -> tuple[Floats, Ints | None]:
        group, choices = self._step, self.choices[self._step]
        later = np.arange(len(self._widths)) > group
        tried = np.repeat(np.where(later, self.narrow, self._widths)[None], len(choices), 0)
        tried[:, group] = choices
        high = int(np.flatnonzero(self.budget.fits(self.graph, tried)).max())
        tried[:, later] = self.graph.sizes[later]
        unused = np.flatnonzero(self.budget.fits(self.graph, tried))
        low = int(unused.max()) if len(unused) else 0
        wanted = (action[0] + 1) / 2 * self.graph.sizes[group]
        chosen = int(choices[low + int(np.abs(choices[low : high + 1] - wanted).argmin())])
        self._widths[group] = chosen
        self._last = 2 * chosen / float(self.graph.sizes[group]) - 1
        self._step += 1
        return np.array([self._last]), self._widths.copy() if self._step == len(self._widths) else None


class SimultaneousEnv(PruningEnv):
    """Every group at every step; action a removes `MOST` (a + 1) / 2 of what a group still has.

    The step that would fall below the budget is shortened, by one factor for all groups, and ends the episode.
    Where an action removes less than `LEAST` of every group, the group it removes most of loses that much, so that
    episodes end.
    """

    @property
    def _n_actions(self) -> int:
        return len(self.graph.groups)

    def _observe_start(self) -> Vector:
        self._keep = np.ones(len(self.graph.groups))
        return self._observe()

    def _observe(self) -> Vector:
        """What every group keeps, and what the network costs."""
        return np.append(self._keep, self.share_left(self._rounded(self._keep))).astype(np.float32)

    def _move(self, action: Floats) -> tuple[Floats, Ints | None]:
        removed = MOST * (action + 1) / 2
        can = self._keep * self.graph.sizes > self.narrow
        removed[~can] = 0.0
        if removed.max() < LEAST and can.any():
            removed[int(np.where(can, removed, -1.0).argmax())] = LEAST
        removed = _single(removed)
        ended = self._fits(removed)
        if ended:
            low, high = 0.0, 1.0  # of the way; it fits at the upper one
            for _ in range(40):
                middle = (low + high) / 2
                low, high = (low, middle) if self._fits(_single(middle * removed)) else (middle, high)
            removed = _single(high * removed)
        self._keep = np.maximum(self._keep * (1 - removed), self.narrow / self.graph.sizes)
        return 2 * removed / MOST - 1, self._rounded(self._keep) if ended else None

    def _fits(self, removed: Floats) -> bool:
        return bool(self.budget.fits(self.graph, self._rounded(self._keep * (1 - removed))))

    def _rounded(self, keep: Floats) -> Ints:
        """The widest choices not above."""
        wanted = keep * self.graph.sizes + 1e-9
        places = [np.searchsorted(found, w, "right") - 1 for found, w in zip(self.choices, wanted, strict=True)]
        chosen = [found[max(0, int(place))] for found, place in zip(self.choices, places, strict=True)]
        return np.array(chosen, dtype=np.int64)


def _single(removed: Floats) -> Floats:
    """The shares that an action in single precision can ask for."""
    found: Floats = MOST * ((2 * removed / MOST - 1).astype(np.float32).astype(np.float64) + 1) / 2
    return found
