"""What channels are worth before anything is searched: the scores of a criterion, with what it needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats
from espalier.pruning.importance.criteria import CRITERIA
from espalier.search.tasks.task import Task


def channel_scores(criterion: str, network: nn.Module, graph: ChannelGraph, task: Task, seed: int) -> Floats:
    """Scores of every prunable channel, as they are: (n_channels,).

    Args:
        criterion: name in `CRITERIA`.
        network: the network.
        graph: its channel graph.
        task: for criteria that differentiate the loss.
        seed: of criteria that draw.

    Raises:
        ConfigError: the task has no loss.
    """
    extra: dict[str, Any] = {}
    if criterion == "taylor":
        if "loss" not in task.offers:
            raise ConfigError("search.criterion: taylor differentiates a loss, which this task does not offer")
        extra["loss"] = task.loss
    elif criterion == "random":
        extra["generator"] = torch.Generator().manual_seed(seed)
    found: Tensor = CRITERIA[criterion](network, graph, **extra)
    return found.double().cpu().numpy()
