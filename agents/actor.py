"""The agent's network: a Gaussian over one number per group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from espalier.agents.encoders import GraphEncoder


class OneShotActor(nn.Module):
    """Proposes a whole vector at once: N(mean, std) in units where every range is [-1, 1].

    The mean of a group's number comes from its node, so that it moves with what the network looks like there; the
    other numbers (strength, normalisation) have a mean of their own. At the start all means are 0, the middle.

    Args:
        n_groups: the first nodes of the graph.
        others: how many numbers belong to no group.
        std: at the start.
    """

    def __init__(self, n_groups: int, others: int, std: float = 1 / 3) -> None:
        super().__init__()
        self._n_groups = n_groups
        self.encoder = GraphEncoder()
        self.head = nn.Linear(self.encoder.node_width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.own = nn.Parameter(torch.zeros(n_groups + others))
        self.log_std = nn.Parameter(torch.full((), std).log())

    def forward(self, data: Data) -> torch.distributions.Normal:
        """The distribution of the vector, (n_groups + others,): groups first."""
        embeddings = self.encoder(data).nodes[: self._n_groups]
        means = self.own.clone()
        means[: self._n_groups] = means[: self._n_groups] + self.head(embeddings)[:, 0]
        return torch.distributions.Normal(means.tanh(), self.log_std.exp().clamp(0.02, 1.0))


def ppo_update(
    actor: OneShotActor,
    optimizer: torch.optim.Optimizer,
    data: Data,
    actions: Tensor,
    old_log_probs: Tensor,
    rewards: Sequence[float],
    *,
    epochs: int = 10,
    clip: float = 0.2,
) -> None:
    """One PPO update (Schulman et al., arXiv 1707.06347) from a batch of one-step episodes.

    Advantages are the rewards' ranks, centred and scaled: a proxy's unit does not matter then, nor does an outlier.

    Args:
        actor: updated in place.
        optimizer: of its parameters.
        data: the network graph.
        actions: (n, n_groups + others) as executed.
        old_log_probs: (n,) of the actions when they were drawn.
        rewards: n numbers, higher is better.
        epochs: passes over the batch.
        clip: of the probability ratio.
    """
    ranks = torch.tensor(rewards, dtype=torch.float64).argsort().argsort().float()
    advantages = (ranks - ranks.mean()) / ranks.std().clamp(min=1e-6)
    for _ in range(epochs):
        log_probs = actor(data).log_prob(actions).sum(1)  # (n,)
        ratio = (log_probs - old_log_probs).exp()
        gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
        optimizer.zero_grad()
        (-gain.mean()).backward()
        nn.utils.clip_grad_norm_(actor.parameters(), 1.0)
        optimizer.step()
