"""What agents keep of the past: episodes, generalised advantages, a replay memory, running moments.

Notation:
    T          steps of an episode
    F, A       numbers of an observation and of an action
    r, v       (T,) rewards, and values of the states they were earned in
    gamma      discount
    lam        lambda of GAE: 0 trusts the values, 1 the returns
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espalier.pruning.costs import Floats


@dataclass(frozen=True)
class Episode:
    """One episode, its actions as they were carried out.

    Attributes:
        observations: (T, F).
        actions: (T, A).
        rewards: (T,).
        log_probs: (T,) of the actions when they were drawn; None for what another policy did.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    log_probs: Tensor | None = None

    def state(self) -> dict[str, Tensor | None]:
        """For a checkpoint."""
        return dict(vars(self))


def generalized_advantages(rewards: Tensor, values: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns of one whole episode (GAE; Schulman et al., ICLR 2016, arXiv 1506.02438).

    A_t = d_t + gamma lam A_(t+1) with d_t = r_t + gamma v_(t+1) - v_t, and v = 0 behind the end.

    Args:
        rewards: (T,).
        values: (T,).
        gamma: discount.
        lam: lambda.

    Returns:
        (T,) advantages; (T,) returns to regress values on, A + v.
    """
    advantages = torch.zeros_like(values)
    following_value, following = 0.0, 0.0
    for step in reversed(range(len(rewards))):
        error = float(rewards[step]) + gamma * following_value - float(values[step])
        following = error + gamma * lam * following
        following_value = float(values[step])
        advantages[step] = following
    return advantages, advantages + values


def normal_scores(values: Tensor) -> Tensor:
    """Normal quantiles of the ranks, equal ones for equal values: (n,) with no unit and no outliers."""
    below = (values[:, None] > values[None]).sum(1)
    equal = (values[:, None] == values[None]).sum(1)
    scores: Tensor = torch.special.ndtri((below + equal / 2) / len(values)).to(values.dtype)
    return scores


class ReplayMemory:
    """The latest episodes, from which batches are drawn.

    Args:
        size: episodes kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.episodes: list[Episode] = []

    def __len__(self) -> int:
        return len(self.episodes)

    def add(self, episode: Episode) -> None:
        """Puts an episode in, and the oldest out where there is no room."""
        self.episodes = [*self.episodes, episode][-self._size :]

    def draw(self, count: int, rng: np.random.Generator) -> list[Episode]:
        """Different episodes, as many as there are at most."""
        chosen = rng.choice(len(self.episodes), min(count, len(self.episodes)), replace=False)
        return [self.episodes[index] for index in chosen.tolist()]


class Moments(nn.Module):
    """Running mean and standard deviation of vectors; part of a network's state.

    Args:
        size: numbers of a vector.
    """

    mean: Tensor
    square: Tensor
    count: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(size, dtype=torch.float64))  # sum of squares about the mean
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def update(self, values: Tensor) -> None:
        """Takes in vectors, (n, size)."""
        new, count = values.double(), len(values)
        shift = new.mean(0) - self.mean
        total = self.count + count
        self.square += ((new - new.mean(0)) ** 2).sum(0) + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count.copy_(total)

    def normalize(self, values: Tensor) -> Tensor:
        """Zero mean, unit variance; as they are while fewer than two vectors were seen."""
        return values if self.count < 2 else ((values - self.mean) / self.std).float()

    @property
    def std(self) -> Tensor:
        """(size,) 1 where nothing varied."""
        found = (self.square / self.count.clamp(min=1)).sqrt()
        return torch.where(found > 1e-8, found, torch.ones_like(found))


def episodes_state(episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """For a checkpoint; `episodes_of` reads it."""
    return [episode.state() for episode in episodes]


def episodes_of(state: Sequence[dict[str, Any]]) -> list[Episode]:
    """Back from a checkpoint."""
    return [Episode(**each) for each in state]


def uniform(rng: np.random.Generator, *shape: int) -> Tensor:
    """Numbers in (0, 1)."""
    drawn: Floats = rng.random(shape)
    return torch.from_numpy(drawn)
