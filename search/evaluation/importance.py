"""What channels are worth before anything is searched: the scores of a criterion, with what it needs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats
from espalier.pruning.importance.criteria import CRITERIA
from espalier.search.tasks.classification.data import Splits
from espalier.search.tasks.classification.data.transforms import normalize

IMAGES = 256
"""Training images on which gradients are taken."""


def channel_scores(criterion: str, network: nn.Module, graph: ChannelGraph, splits: Splits, seed: int) -> Floats:
    """Scores of every prunable channel, as they are: (n_channels,).

    Args:
        criterion: name in `CRITERIA`.
        network: the network.
        graph: its channel graph.
        splits: training images, for criteria that differentiate the loss.
        seed: of criteria that draw.
    """
    extra: dict[str, Any] = {}
    if criterion == "taylor":
        chosen = torch.arange(min(IMAGES, len(splits.train)))
        batch, labels = normalize(splits.train.fetch(chosen), splits.mean, splits.std), splits.train.labels[chosen]
        extra["loss"] = lambda model: F.cross_entropy(model(batch), labels)
    elif criterion == "random":
        extra["generator"] = torch.Generator().manual_seed(seed)
    found: Tensor = CRITERIA[criterion](network, graph, **extra)
    return found.double().numpy()
