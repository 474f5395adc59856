"""MetaPruning's network that makes the weights of a pruned network from its widths.

Notation:
    r_l        (g,) share of its channels that each group keeps which a tensor l has among its dimensions
    W_l        the network's own weights
    G_l(r_l)   W_l + reshape(B_l relu(A_l r_l + a_l)), of the whole network's shape; what is cut off is not used

B begins at zero, so that the network begins with its own weights, where the paper begins with noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.paper import Paper
from espalier.pruning.seeding import seeded

PAPER = Paper("Liu et al.", "ICCV 2019", "arXiv 1903.10258")
HIDDEN = 32
"""Units between widths and weights, as in the paper: 32 numbers for every weight."""


class WeightGenerator(nn.Module):
    """Makes weights for any widths.

    Args:
        graph: of the network.
        shapes: of its parameters, by name; those of two and more dimensions that the graph cuts are made.
        seed: of the first layers.
    """

    def __init__(self, graph: ChannelGraph, shapes: Mapping[str, torch.Size], seed: int = 0) -> None:
        super().__init__()
        groups: dict[str, set[int]] = {}
        group_of = torch.from_numpy(graph.group_of)
        for slot in graph.slots:
            if len(shapes.get(slot.tensor, ())) > 1:
                channels = slot.channels[slot.channels >= 0]
                groups.setdefault(slot.tensor, set()).update(group_of[channels].tolist())
        self._shapes = {name: tuple(shapes[name]) for name in groups}
        self._groups = {name: sorted(own) for name, own in groups.items()}
        with seeded(seed):
            self.first = nn.ModuleList(nn.Linear(len(own), HIDDEN) for own in self._groups.values())
        self.second = nn.ParameterList(torch.zeros(math.prod(s), HIDDEN) for s in self._shapes.values())
        self._sizes = torch.from_numpy(graph.sizes).float()
        self._group_of, self._n_groups = group_of, len(graph.groups)

    def forward(self, weights: Mapping[str, Tensor], keep: Tensor) -> dict[str, Tensor]:
        """The tensors of `weights`, by name, with those replaced that are made; differentiable in both.

        Args:
            weights: of the whole network, by name.
            keep: bool (n_channels,), what is left of it.
        """
        counts = np.bincount(self._group_of[keep].numpy(), minlength=self._n_groups)
        shares = torch.from_numpy(counts).float() / self._sizes
        made = dict(weights)
        for number, (name, groups) in enumerate(self._groups.items()):
            first, second = self.first[number], self.second[number]
            hidden = torch.relu(first(shares[groups].to(second.device)))
            change = (second @ hidden).view(self._shapes[name])
            made[name] = made[name] + change.to(made[name].dtype)
        return made
