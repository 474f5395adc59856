"""What agents keep of the past: episodes, generalised advantages, a replay memory, running moments.

Notation:
    T          steps of an episode
    F, A       numbers of an observation and of an action
    r, v       (T,) rewards, and values of the states they were earned in
    gamma      discount
    lam        lambda of GAE: 0 trusts the values, 1 the returns
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espalier.persistence import record_from
from espalier.pruning.graph.costs import Floats


@dataclass(frozen=True)
class Episode:
    """One episode, its actions as they were carried out.

    Attributes:
        observations: (T, F).
        actions: (T, A).
        rewards: (T,).
        log_probs: (T,) of the actions asked for, when they were drawn; None for what another policy did.
        asked: (T, A) the actions asked for, where an environment may carry out others; None where they are equal.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    log_probs: Tensor | None = None
    asked: Tensor | None = None

    def state(self) -> dict[str, Tensor | None]:
        """For a checkpoint."""
        return dict(vars(self))


def generalized_advantages(rewards: Tensor, values: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns of whole episodes (GAE; Schulman et al., ICLR 2016, arXiv 1506.02438).

    A_t = d_t + gamma lam A_(t+1) with d_t = r_t + gamma v_(t+1) - v_t, and v = 0 behind the end.

    Args:
        rewards: (..., T).
        values: (..., T).
        gamma: discount.
        lam: lambda.

    Returns:
        (..., T) advantages; (..., T) returns to regress values on, A + v.
    """
    advantages = rewards + gamma * torch.nn.functional.pad(values[..., 1:], (0, 1)) - values  # d
    for step in reversed(range(rewards.shape[-1] - 1)):
        advantages[..., step] += gamma * lam * advantages[..., step + 1]
    return advantages, advantages + values


def normal_scores(values: Tensor) -> Tensor:
    """Normal quantiles of the ranks, equal ones for equal values: (n,) with no unit and no outliers."""
    ordered = values.sort().values
    below, to = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    scores: Tensor = torch.special.ndtri((below + to).double() / (2 * len(values))).to(values.dtype)
    return scores


class ReplayMemory:
    """The latest episodes, from which batches are drawn.

    Args:
        size: episodes kept.
        recent: an episode that is so many older than another is drawn 1 / e times as often.
    """

    def __init__(self, size: int, recent: float = math.inf) -> None:
        self._recent = recent
        self.episodes: deque[Episode] = deque(maxlen=size)
        self.returns: deque[float] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self.episodes)

    def add(self, episode: Episode) -> None:
        """Puts an episode in, and the oldest out where there is no room."""
        self.episodes.append(episode)
        self.returns.append(float(episode.rewards.sum()))

    def clear(self) -> None:
        """Forgets all."""
        self.episodes.clear()
        self.returns.clear()

    def draw(self, count: int, rng: np.random.Generator) -> tuple[list[Episode], Tensor]:
        """Different episodes, n of them, as many as there are at most; normal scores of what they earned, (n,)."""
        weights = np.exp(np.arange(1 - len(self), 1) / self._recent)
        chosen = rng.choice(len(self), min(count, len(self)), replace=False, p=weights / weights.sum())
        scores = normal_scores(torch.tensor(self.returns, dtype=torch.float64)).float()
        return [self.episodes[index] for index in chosen.tolist()], scores[torch.from_numpy(chosen)]


class Moments(nn.Module):
    """Running mean and standard deviation of vectors; part of a network's state.

    Args:
        size: numbers of a vector.
    """

    mean: Tensor
    square: Tensor
    count: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(size, dtype=torch.float64))  # sum of squares about the mean
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("std", torch.ones(size, dtype=torch.float64))  # 1 where nothing varied

    def update(self, values: Tensor) -> None:
        """Takes in vectors, (n, size)."""
        new, count = values.double(), len(values)
        shift = new.mean(0) - self.mean
        total = self.count + count
        self.square += ((new - new.mean(0)) ** 2).sum(0) + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count.copy_(total)
        found = (self.square / total).sqrt()
        self.std.copy_(torch.where(found > 1e-8, found, torch.ones_like(found)))

    def normalize(self, values: Tensor) -> Tensor:
        """Zero mean, unit variance; as they are while fewer than two vectors were seen."""
        return values if self.count < 2 else ((values - self.mean) / self.std).float()


def episodes_state(episodes: Iterable[Episode]) -> list[dict[str, Any]]:
    """For a checkpoint; `episodes_of` reads it."""
    return [episode.state() for episode in episodes]


def episodes_of(state: Sequence[dict[str, Any]]) -> list[Episode]:
    """Back from a checkpoint."""
    return [record_from(Episode, each) for each in state]


def uniform(rng: np.random.Generator, *shape: int) -> Tensor:
    """Numbers in (0, 1)."""
    drawn: Floats = rng.random(shape)
    return torch.from_numpy(drawn)
