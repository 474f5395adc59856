"""Proximal policy optimisation (Schulman et al., 2017, arXiv 1707.06347)."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from espalier.agents.actor_critics.actor_critic import ActorCritic
from espalier.agents.algorithms.agent import Batch, OnPolicyAgent, floats
from espalier.agents.common.buffers import normal_scores
from espalier.agents.common.distributions import TruncatedNormal
from espalier.agents.common.schedules import Schedule


class Ppo(OnPolicyAgent):
    """Clipped surrogate objective, generalised advantages, a value network, an entropy bonus.

    Advantages are normalised over a batch: to normal scores of their ranks, so that neither the unit of a reward
    nor an outlier counts, or to zero mean and unit variance.

    Args:
        network: what is trained.
        batch: episodes per update.
        learning_rate: of Adam, by updates so far.
        epochs: passes over a batch.
        minibatch: steps of episodes per gradient; None for all at once.
        clip: of the likelihood ratio.
        gamma: discount.
        lam: lambda of the advantages.
        entropy: weight of the entropy.
        value: weight of the values' squared error.
        ranks: whether advantages count by their ranks.
        anchor: weight of the divergence, summed over actions, from the policy that the network begins with, so that
            it moves only where that pays (Jaques et al., ICML 2017, arXiv 1611.02796).
    """

    def __init__(
        self,
        network: ActorCritic,
        *,
        batch: int = 16,
        learning_rate: float | Schedule = 3e-3,
        epochs: int = 10,
        minibatch: int | None = None,
        clip: float = 0.2,
        gamma: float = 1.0,
        lam: float = 0.95,
        entropy: float = 0.0,
        value: float = 0.5,
        ranks: bool = False,
        anchor: float = 0.0,
    ) -> None:
        super().__init__(network, batch=batch, learning_rate=learning_rate, gamma=gamma, lam=lam)
        self._epochs, self._minibatch, self._clip = epochs, minibatch, clip
        self._entropy, self._value, self._ranks = entropy, value, ranks
        self._anchor, self._reference = anchor, copy.deepcopy(network) if anchor else None

    def update(self, batch: Batch, rng: np.random.Generator) -> dict[str, float]:
        """So many passes over the batch."""
        advantages = normal_scores(batch.advantages) if self._ranks else standardized(batch.advantages)
        logged: dict[str, float] = {}
        count = len(advantages)
        for _ in range(self._epochs):
            for part in torch.from_numpy(rng.permutation(count)).split(self._minibatch or count):
                distribution, values = self.network(batch.observations[part])
                ratio = (distribution.log_prob(batch.actions[part]).sum(1) - batch.log_probs[part]).exp()
                clipped = ratio.clamp(1 - self._clip, 1 + self._clip)
                gain = torch.minimum(ratio * advantages[part], clipped * advantages[part]).mean()
                entropy = distribution.entropy().mean()
                error = (values - batch.returns[part]).square().mean()
                distance = self._distance(batch.observations[part], distribution)
                self.step(-gain - self._entropy * entropy + self._value * error + self._anchor * distance)
                logged = floats(gain=gain, entropy=entropy, value_error=error)
                logged |= floats(std=distribution.std.mean(), clipped=(ratio != clipped).float().mean())
        return logged

    def _distance(self, observations: Tensor, distribution: TruncatedNormal) -> Tensor:
        """From the policy at the start, mean over observations."""
        if self._reference is None:
            return torch.zeros(())
        with torch.no_grad():
            start, _ = self._reference(observations)
        return distribution.divergence(start).sum(1).mean()


def standardized(advantages: Tensor) -> Tensor:
    """Zero mean and unit variance; zeros where nothing differs."""
    centred = advantages - advantages.mean()
    return centred / centred.square().mean().sqrt().clamp(min=1e-8)
