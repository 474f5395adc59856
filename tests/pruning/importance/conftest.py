"""Networks whose channels are scored, and the same ones with their channels in another order."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.networks import build
from espalier.pruning.trace import trace


class Small(nn.Module):
    """Every role there is: depthwise, grouped, joined with fixed channels, and flattened into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.grouped = nn.Conv2d(8, 6, 3, padding=1, groups=2)
        self.residual = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(8 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.depthwise(torch.relu(self.norm(self.stem(x)))))
        y = self.grouped(y)
        y = y + self.residual(torch.relu(y))
        logits: Tensor = self.head(torch.cat([x, y], 1).flatten(1))
        return logits


IMAGES = torch.randn(2, 2, 2, 2, generator=torch.Generator().manual_seed(0))


@cache
def network(name: str) -> tuple[nn.Module, ChannelGraph, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small() if name == "small" else build(name)
        images = IMAGES if name == "small" else torch.randn(2, 3, 8, 8)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.get_buffer("running_mean").normal_(0, 0.3)
                module.get_buffer("running_var").uniform_(0.5, 2)
                nn.init.normal_(module.weight, 1, 0.3)
    return model.eval(), trace(model, images), images


def permuted(state: dict[str, Tensor], graph: ChannelGraph, order: Tensor) -> dict[str, Tensor]:
    """Tensors whose channel c is what channel order[c] was, through every member."""
    moved = {name: tensor.clone() for name, tensor in state.items()}
    for slot in graph.slots:
        channels = slot.channels[:, 0]
        source = torch.arange(len(channels))
        for channel in channels[channels >= 0].unique().tolist():
            theirs = (channels == order[channel]).nonzero()[:, 0]
            if len(theirs):  # the zeros of a padded shortcut are on both sides, in two tensors
                source[channels == channel] = theirs
        moved[slot.tensor] = moved[slot.tensor].index_select(slot.dim, source)
    return moved
