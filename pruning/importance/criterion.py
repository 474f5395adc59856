"""What a criterion is: a function that scores channels, and what it takes beside the network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.groups import Role
from espalier.pruning.importance.bits import with_bits
from espalier.pruning.importance.energy import ChannelNorms
from espalier.pruning.paper import Paper

Loss = Callable[[nn.Module], Tensor]
"""What criteria differentiate: the network -> its loss on some batch, the mean over the batch's examples."""

Supply = Literal["loss", "batches", "generator"]
"""What a criterion may take by name: a `Loss`, a sequence of batches of inputs on the network's device, and a
`torch.Generator`."""

CARRIED: tuple[Role, ...] = ("out", "in", "depthwise", "norm", "shift", "bias", "scale")
"""The slices that are zeroed where a channel goes."""


@dataclass(frozen=True)
class Criterion:
    """Scores channels: the higher a score, the longer the channel is kept.

        criterion = Criterion(my_function, needs=("loss",))
        scores = criterion(network, graph, loss=loss)

    Attributes:
        function: network, graph, and by name what it needs -> (n_channels,) finite scores, none below zero. Leaves
            the network as it is.
        paper: where it is from.
        needs: what it takes beside network and graph.
        iterations: 1 scores all channels once. More score again while channels go, see `by_removal`.
    """

    function: Callable[..., Tensor]
    paper: Paper | None = None
    needs: tuple[Supply, ...] = ()
    iterations: int = 1

    def __post_init__(self) -> None:
        if unknown := [need for need in self.needs if need not in get_args(Supply)]:
            raise ConfigError(f"a criterion may need {', '.join(get_args(Supply))}, got {unknown[0]!r}")
        if self.iterations < 1:
            raise ConfigError(f"a criterion's iterations must be at least 1, got {self.iterations}")

    @property
    def name(self) -> str:
        """Of its function."""
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    def __call__(self, model: nn.Module, graph: ChannelGraph, **given: Any) -> Tensor:
        """Scores of a network's channels, (n_channels,); of what is given by name, it takes what it needs.

        Raises:
            ConfigError: something that it needs is not given.
        """
        if lacking := [need for need in self.needs if need not in given]:
            named = " and ".join(f"{need}=" for need in lacking)
            raise ConfigError(f"{self.name} takes {named} beside network and graph")
        supplied = {need: given[need] for need in self.needs}

        channels = graph.without_precisions

        def scores(network: nn.Module) -> Tensor:
            return self.function(network, channels, **supplied)

        found = scores(model) if self.iterations == 1 else by_removal(scores, model, channels, self.iterations)
        if not isinstance(found, Tensor) or found.shape != (channels.n_channels,):
            return found  # for whoever asked to refuse
        return with_bits(found, model, graph)


def by_removal(
    scores: Callable[[nn.Module], Tensor], model: nn.Module, graph: ChannelGraph, iterations: int
) -> Tensor:
    """Scores by the order in which channels go, where those that are left are scored again after every cut.

    After step k of K, (G / C)^(k / K) of the C channels are left, so that every step removes the same share (Tanaka
    et al. 2020, arXiv 2006.05467, section 5), down to the best one of each of the G groups. What is gone is zeroed.
    The path leads past every budget: a global cut by these scores follows it until the budget is met.

    Args:
        scores: of a network with channels zeroed: (n_channels,).
        model: the network; left as it is.
        graph: its channel graph.
        iterations: K.

    Returns:
        (n_channels,) place in the order, over the number of channels: in (0, 1], float64.
    """
    shrinking = copy.deepcopy(model)
    slices = ChannelNorms(graph, CARRIED)
    state = dict(shrinking.named_parameters()) | dict(shrinking.named_buffers())
    count, groups = graph.n_channels, len(graph.groups)
    place, alive = np.zeros(count), np.ones(count, dtype=bool)
    for step in range(1, iterations + 1):
        now = scores(shrinking).detach().double().cpu().numpy()
        ranks = graph.ranks(np.where(alive, now, -np.inf))
        order = np.argsort(np.where(alive, now, np.inf), kind="stable")
        left = round(count * (groups / count) ** (step / iterations))
        going = order[(ranks[order] > 0) & alive[order]][: max(0, int(alive.sum()) - left)]
        place[going] = count - alive.sum() + np.arange(1, len(going) + 1)
        alive[going] = False
        with torch.no_grad():
            slices.scale(state, torch.from_numpy(alive).to(next(iter(state.values()))))
    order = np.argsort(np.where(alive, now, np.inf), kind="stable")[: int(alive.sum())]
    place[order] = count - len(order) + np.arange(1, len(order) + 1)
    return torch.from_numpy(place / count)
