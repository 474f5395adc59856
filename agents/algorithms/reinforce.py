"""REINFORCE with a learned baseline (Williams, Machine Learning 8, 1992, doi:10.1007/BF00992696)."""

from __future__ import annotations

import numpy as np

from espalier.agents.actor_critics.actor_critic import ActorCritic
from espalier.agents.algorithms.agent import Batch, OnPolicyAgent, floats
from espalier.agents.algorithms.ppo import standardized
from espalier.agents.common.schedules import Schedule


class Reinforce(OnPolicyAgent):
    """One step per batch along the gradient of the log-likelihood, times return less baseline: the simplest agent.

    Args:
        network: what is trained; its values are the baseline.
        batch: episodes per update.
        learning_rate: of Adam, by updates so far.
        gamma: discount.
        value: weight of the baseline's squared error.
    """

    def __init__(
        self,
        network: ActorCritic,
        *,
        batch: int = 8,
        learning_rate: float | Schedule = 1e-2,
        gamma: float = 1.0,
        value: float = 0.5,
    ) -> None:
        super().__init__(network, batch=batch, learning_rate=learning_rate, gamma=gamma, lam=1.0)
        self._value = value

    def update(self, batch: Batch, rng: np.random.Generator) -> dict[str, float]:
        """One step."""
        distribution, values = self.network(batch.observations)
        likelihood = distribution.log_prob(batch.actions).sum(1)
        gain = (likelihood * standardized(batch.advantages)).mean()
        error = (values - batch.returns).square().mean()
        self.step(-gain + self._value * error)
        return floats(gain=gain, value_error=error, std=distribution.std.mean())
