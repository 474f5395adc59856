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

from espalier.agents.agent import Agent, floats
from espalier.agents.buffers import Episode, ReplayMemory, episodes_of, episodes_state
from espalier.agents.deterministic import DeterministicActorCritic
from espalier.agents.distributions import truncated_draw
from espalier.agents.schedules import Schedule, constant, exponential


class Ddpg(Agent):
    """An off-policy agent: it learns from every episode, whoever acted, again and again.

    As in AMC each step earns the same share of what the episode earned beyond a moving average; here also in units
    of the standard deviation of all episodes remembered.

    Args:
        network: what is trained.
        actor_rate: learning rate of the actor.
        critic_rate: learning rate of the critic and of what makes states.
        batch: episodes per update.
        updates: per episode; below 1, one update in so many episodes.
        memory: episodes remembered.
        warmup: episodes before the first update, in which actions are uniform.
        sigma: standard deviation of the exploring truncated normal distribution, by episodes so far.
        tau: how far the target networks follow at an update.
        gamma: discount.
        baseline: how slowly the moving average follows.
    """

    def __init__(
        self,
        network: DeterministicActorCritic,
        *,
        actor_rate: float = 1e-3,
        critic_rate: float = 1e-3,
        batch: int = 16,
        updates: float = 4,
        memory: int = 2000,
        warmup: int = 50,
        sigma: float | Schedule | None = None,
        tau: float = 0.01,
        gamma: float = 1.0,
        baseline: float = 0.95,
    ) -> None:
        self.network, self.target = network, copy.deepcopy(network)
        actor = list(network.actor.parameters())
        rest = [p for name, p in network.named_parameters() if not name.startswith("actor.")]
        self._optimizers = [torch.optim.Adam(actor, lr=actor_rate), torch.optim.Adam(rest, lr=critic_rate)]
        self._batch, self._updates, self._warmup = batch, updates, warmup
        self._sigma = constant(exponential(0.5, 0.98, after=warmup, least=0.02) if sigma is None else sigma)
        self._tau, self._gamma, self._decay = tau, gamma, baseline
        self.memory = ReplayMemory(memory)
        self.episodes = 0
        self.baseline = 0.0

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
        earned = float(episode.rewards.sum())
        self.baseline = self._decay * self.baseline + (1 - self._decay) * earned if self.episodes else earned
        self.memory.add(episode)
        self.network.see(episode.observations)
        self.target.see(episode.observations)
        self.episodes += 1
        if self.episodes <= self._warmup:
            return {}
        due = int(self.episodes * self._updates) - int((self.episodes - 1) * self._updates)
        logged: dict[str, float] = {}
        for _ in range(due):
            logged = self.update(rng)
        return logged | {"sigma": self._sigma(self.episodes), "baseline": self.baseline} if due else {}

    def update(self, rng: np.random.Generator) -> dict[str, float]:
        """One step of critic and actor."""
        episodes = self.memory.draw(self._batch, rng)
        observations = torch.stack([episode.observations for episode in episodes])  # (E, T, F)
        actions = torch.stack([episode.actions for episode in episodes])  # (E, T, A)
        earned = self._earned(episodes)[:, None] / actions.shape[1]  # (E, 1) per step
        with torch.no_grad():
            states = self.target.states(observations)[:, 1:]
            following = self.target.values(states, self.target.actions(states, 1))
            following = torch.nn.functional.pad(following, (0, 1))  # nothing behind the end
        states = self.network.states(observations)
        error = (self.network.values(states, actions) - earned - self._gamma * following).square().mean()
        self._step(self._optimizers[1], error)
        states = states.detach()
        value = self.network.values(states, self.network.actions(states)).mean()
        self._step(self._optimizers[0], -value)
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.network.parameters(), strict=True):
                slow.lerp_(fast, self._tau)
        self.network.forget()
        self.target.forget()
        return floats(value=value, value_error=error)

    def _earned(self, episodes: list[Episode]) -> Tensor:
        """What episodes earned beyond the baseline, (E,)."""
        returns = torch.stack([episode.rewards.sum() for episode in self.memory.episodes]).double()
        scale = returns.std(correction=0).clamp(min=1e-8)
        own = torch.stack([episode.rewards.sum() for episode in episodes]).double()
        return ((own - self.baseline) / scale).clamp(-5, 5).float()

    def _step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Networks and targets, optimisers, memory, counters."""
        return {
            "network": self.network.state_dict(),
            "target": self.target.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "memory": episodes_state(self.memory.episodes),
            "episodes": self.episodes,
            "baseline": self.baseline,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The agent as it was."""
        self.network.load_state_dict(state["network"])
        self.target.load_state_dict(state["target"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.memory.episodes = episodes_of(state["memory"])
        self.episodes, self.baseline = state["episodes"], state["baseline"]
        self.network.forget()
        self.target.forget()
