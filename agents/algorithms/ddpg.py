"""Deep deterministic policy gradient, as AMC prunes with it.

Lillicrap et al., ICLR 2016, arXiv 1509.02971; He et al., ECCV 2018, arXiv 1802.03494. Episodes are replayed whole,
so that with a recurrent network it is RDPG (Heess et al., 2015, arXiv 1512.04455).
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espalier.agents.actor_critics.deterministic import DeterministicActorCritic
from espalier.agents.algorithms.agent import Agent, floats
from espalier.agents.common.buffers import (
    Episode,
    ReplayMemory,
    episodes_of,
    episodes_state,
    generalized_advantages,
)
from espalier.agents.common.distributions import truncated_draw
from espalier.agents.common.schedules import Schedule, constant, exponential


class Ddpg(Agent):
    """An off-policy agent: it learns from every episode, whoever acted, again and again.

    What an episode earned counts at its end, by its rank among all that are remembered: that stands in for AMC's
    reward baseline, and neither unit nor outliers matter. By single steps of the targets it would come late to the
    first of many actions, so the critic learns lambda-returns along the replayed episodes: Peng's Q(lambda), which
    does not correct for what the actor would do by now (Kozuno et al., ICML 2021, arXiv 2103.00107). The actor's
    steps shrink with sigma, so that it stays where the critic has seen something.

    Args:
        network: what is trained.
        actor_rate: learning rate of the actor, in units of sigma.
        own: factor of that for the offsets of single steps.
        critic_rate: learning rate of the critic and of what makes states.
        batch: episodes per update.
        updates: per episode; at 0.5, one after every second.
        memory: episodes remembered.
        recent: an episode that is so many older than another is replayed 1 / e times as often.
        warmup: episodes before the first update, in which actions are uniform.
        sigma: standard deviation of the exploring truncated normal distribution, by episodes so far.
        tau: how far the target networks follow at an update.
        gamma: discount.
        lam: lambda of the returns: 0 trusts the targets, 1 the episodes.
    """

    def __init__(
        self,
        network: DeterministicActorCritic,
        *,
        actor_rate: float = 2e-4,
        own: float = 60.0,
        critic_rate: float = 1e-2,
        batch: int = 32,
        updates: float = 1,
        memory: int = 2000,
        recent: float = 60,
        warmup: int = 40,
        sigma: float | Schedule | None = None,
        tau: float = 0.2,
        gamma: float = 1.0,
        lam: float = 0.9,
    ) -> None:
        self.network, self.target = network, copy.deepcopy(network)
        self.target.moments = network.moments
        actor = [
            {"params": list(network.actor.parameters()), "rate": actor_rate},
            {"params": [network.own], "rate": actor_rate * own},
        ]
        rest = [p for name, p in network.named_parameters() if not name.startswith(("actor.", "own"))]
        self._actor = torch.optim.Adam(actor, fused=True)
        self._critic = torch.optim.Adam(rest, lr=critic_rate, fused=True)
        self._batch, self._updates, self._warmup = batch, updates, warmup
        self._sigma = constant(exponential(0.5, 0.995, after=warmup, least=0.05) if sigma is None else sigma)
        self._tau, self._gamma, self._lam = tau, gamma, lam
        self.memory = ReplayMemory(memory, recent)
        self.episodes = 0

    def act(self, observations: Tensor, rng: np.random.Generator | None) -> Tensor:
        """The actor's action, with noise where it explores."""
        with torch.no_grad():
            state = self.network.last_state(observations)
            action = self.network.actions(state[None, None], len(observations) - 1)[0, 0]
        if rng is None:
            return action
        shares = rng.random(len(action)).tolist()
        if self.episodes < self._warmup:
            return torch.tensor(shares) * 2 - 1
        sigma = self._sigma(self.episodes)
        drawn = [truncated_draw(mean, sigma, share) for mean, share in zip(action.tolist(), shares, strict=True)]
        return torch.tensor(drawn)

    def log_probs(self, observations: Tensor, actions: Tensor) -> None:
        """Not needed."""
        return None

    def learn(self, episode: Episode, rng: np.random.Generator) -> dict[str, float]:
        """Remembers the episode, then updates as often as is due."""
        self.memory.add(episode)
        self.network.moments.update(episode.observations)
        self.episodes += 1
        if self.episodes <= self._warmup:
            return {}
        due = int(self.episodes * self._updates) - int((self.episodes - 1) * self._updates)
        logged: dict[str, float] = {}
        for _ in range(due):
            logged = self.update(rng)
        return logged | {"sigma": self._sigma(self.episodes)} if due else {}

    def update(self, rng: np.random.Generator) -> dict[str, float]:
        """One step of critic and actor."""
        episodes, scores = self.memory.draw(self._batch, rng)
        observations = torch.stack([episode.observations for episode in episodes])  # (E, T, F)
        actions = torch.stack([episode.actions for episode in episodes])  # (E, T, A)
        with torch.no_grad():
            states = self.target.states(observations)
            values = self.target.values(states, self.target.actions(states))
            rewards = torch.nn.functional.pad(scores[:, None], (actions.shape[1] - 1, 0))
            _, returns = generalized_advantages(rewards, values, gamma=self._gamma, lam=self._lam)
        states = self.network.states(observations)
        error = (self.network.values(states, actions) - returns).square().mean()
        _step(self._critic, error)
        states = states.detach()
        value = self.network.values(states, self.network.actions(states)).mean()
        for group in self._actor.param_groups:
            group["lr"] = group["rate"] * self._sigma(self.episodes)
        _step(self._actor, -value)
        with torch.no_grad():
            for slow, quick in zip(self.target.parameters(), self.network.parameters(), strict=True):
                slow.lerp_(quick, self._tau)
        self.network.forget()
        self.target.forget()
        return floats(value=value, value_error=error)

    def state_dict(self) -> dict[str, Any]:
        """Networks and targets, optimisers, memory, number of episodes."""
        return {
            "network": self.network.state_dict(),
            "target": self.target.state_dict(),
            "optimizers": [self._actor.state_dict(), self._critic.state_dict()],
            "memory": episodes_state(self.memory.episodes),
            "episodes": self.episodes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The agent as it was."""
        self.network.load_state_dict(state["network"])
        self.target.load_state_dict(state["target"])
        for optimizer, saved in zip((self._actor, self._critic), state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.memory.clear()
        for episode in episodes_of(state["memory"]):
            self.memory.add(episode)
        self.episodes = state["episodes"]
        self.network.forget()
        self.target.forget()


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step, the gradient's norm at most 1."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([each for group in optimizer.param_groups for each in group["params"]], 1.0)
    optimizer.step()
