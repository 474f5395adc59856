"""What every agent does: acts, and learns from episodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from espalier.agents.actor_critics.actor_critic import ActorCritic
from espalier.agents.common.buffers import (
    Episode,
    Moments,
    episodes_of,
    episodes_state,
    generalized_advantages,
    uniform,
)
from espalier.agents.common.distributions import TruncatedNormal
from espalier.agents.common.schedules import Schedule, constant


class Agent(ABC):
    """Acts and learns. All randomness comes from generators that are passed in."""

    @abstractmethod
    def act(self, observations: Tensor, rng: np.random.Generator | None) -> Tensor:
        """The next action, (A,) in [-1, 1].

        Args:
            observations: (t, F) of the episode so far, the present one last.
            rng: explores; None for the likeliest action.
        """

    @abstractmethod
    def log_probs(self, observations: Tensor, actions: Tensor) -> Tensor | None:
        """Of actions (t, A) under the present policy, (t,); None where the agent needs none."""

    @abstractmethod
    def learn(self, episode: Episode, rng: np.random.Generator) -> dict[str, float]:
        """Takes in an episode, and updates itself when it has enough of them; returns what to log of an update."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that the agent has learned and keeps: weights, optimisers, buffers, counters."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The agent as it was."""


class Batch(NamedTuple):
    """All steps of some episodes, n of them.

    Attributes:
        observations: (n, F).
        actions: (n, A) that were asked for.
        log_probs: (n,) when they were drawn.
        advantages: (n,) in the reward's unit.
        returns: (n,) in units of their standard deviation so far, about their mean.
    """

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor


class OnPolicyAgent(Agent):
    """Learns from batches of its own episodes; those of others are left out.

    It learns from the actions that it asked for: what an environment makes of them belongs to the environment. The
    actions that were carried out are no draws from the policy. Where a budget forces them, their likelihood has a
    great gradient and says nothing of what was chosen.

    Values are learned in units of the returns' standard deviation so far, so that a reward's unit does not matter.

    Args:
        network: what is trained.
        batch: episodes per update.
        learning_rate: of Adam, by updates so far.
        gamma: discount.
        lam: lambda of the advantages; 1 for returns less values.
    """

    def __init__(
        self, network: ActorCritic, *, batch: int, learning_rate: float | Schedule, gamma: float, lam: float
    ) -> None:
        self.network, self.batch, self._rate = network, batch, constant(learning_rate)
        self._gamma, self._lam = gamma, lam
        self.returns = Moments(1)
        groups = [{"params": parameters, "factor": factor} for factor, parameters in network.rates()]
        self._optimizer = torch.optim.Adam(groups, lr=self._rate(0))
        self.updates = 0
        self._seen: tuple[Tensor, TruncatedNormal] | None = None
        self._episodes: list[Episode] = []

    def act(self, observations: Tensor, rng: np.random.Generator | None) -> Tensor:
        """A draw from the policy, or its mean."""
        distribution = self._distribution(observations[-1:])
        drawn = distribution.mean.clamp(-1, 1).float()
        if rng is not None:
            drawn = distribution.quantile(uniform(rng, *distribution.mean.shape))
        return drawn[0]

    def log_probs(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Of actions (t, A) under the present policy, (t,)."""
        found: Tensor = self._distribution(observations).log_prob(actions).sum(1)
        return found

    def _distribution(self, observations: Tensor) -> TruncatedNormal:
        """As of the last call where nothing has changed since: one-shot agents see the same network again."""
        if self._seen is None or not torch.equal(self._seen[0], observations):
            with torch.no_grad():
                self._seen = observations, self.network(observations)[0]
        return self._seen[1]

    def learn(self, episode: Episode, rng: np.random.Generator) -> dict[str, float]:
        """Updates the policy with every `batch`-th episode."""
        if episode.log_probs is None:
            return {}
        self._episodes.append(episode)
        if len(self._episodes) < self.batch:
            return {}
        episodes, self._episodes = self._episodes, []
        self.network.see(torch.cat([each.observations for each in episodes]))
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(self.updates) * group["factor"]
        self.updates += 1
        self._seen = None
        return self.update(self._batch_of(episodes), rng)

    @abstractmethod
    def update(self, batch: Batch, rng: np.random.Generator) -> dict[str, float]:
        """One update; returns what to log."""

    def step(self, loss: Tensor) -> None:
        """One step of the optimiser, the gradient's norm at most 1."""
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self._optimizer.step()

    def _batch_of(self, episodes: list[Episode]) -> Batch:
        observations = torch.cat([episode.observations for episode in episodes])
        with torch.no_grad():
            _, values = self.network(observations)
        values = values * float(self.returns.std) + float(self.returns.mean)
        found = [
            generalized_advantages(episode.rewards, own, gamma=self._gamma, lam=self._lam)
            for episode, own in zip(episodes, values.split([len(e.rewards) for e in episodes]), strict=True)
        ]
        advantages, returns = (torch.cat(list(column)) for column in zip(*found, strict=True))
        self.returns.update(returns[:, None])
        return Batch(
            observations,
            torch.cat([episode.actions if episode.asked is None else episode.asked for episode in episodes]),
            torch.cat([episode.log_probs for episode in episodes if episode.log_probs is not None]),
            advantages,
            self.returns.normalize(returns[:, None])[:, 0],
        )

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, the batch begun, moments of the returns, number of updates."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "episodes": episodes_state(self._episodes),
            "returns": self.returns.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The agent as it was."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._episodes = episodes_of(state["episodes"])
        self.returns.load_state_dict(state["returns"])
        self.updates = state["updates"]
        self._seen = None


def floats(**numbers: Tensor) -> dict[str, float]:
    """Numbers to log."""
    return {name: float(number.detach()) for name, number in numbers.items()}
