"""What a config describes, loaded and checked before anything is written or trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.allocation import check_budget
from espalier.pruning.costs import Ints
from espalier.pruning.graph import ChannelGraph
from espalier.pruning.networks import build, load_weights
from espalier.pruning.trace import trace
from espalier.search import data
from espalier.search.checkpoint import digest, tensors_of
from espalier.search.config import Config


@dataclass(frozen=True)
class Prepared:
    """What a config describes, loaded and checked; nothing is written or trained yet.

    Attributes:
        model: the network, with its weights where some were given.
        graph: its channel graph.
        splits: images.
        budget: most MACs per image.
        floor: (G,) fewest channels per group.
        origin: names the model's present numbers.
    """

    model: nn.Module
    graph: ChannelGraph
    splits: data.Splits
    budget: int
    floor: Ints
    origin: str

    @property
    def dense_macs(self) -> int:
        """MACs per image of the unpruned network."""
        return int(self.graph.macs(self.graph.sizes))


def prepare(config: Config) -> Prepared:
    """Loads data and network, traces, and checks the budget.

    Raises:
        DataError: the data set is missing or broken.
        WeightsError: the weights do not fit.
        TraceError: the network cannot be traced.
        ConfigError: the network's arguments, or its outputs, do not fit the data.
        BudgetInfeasible: the budget cannot be reached.
    """
    section = config.data
    splits = data.load(
        section.name,
        section.root,
        search_images=section.held_out,
        train_images=section.train_images,
        seed=config.seed,
        mean=section.mean,
        std=section.std,
        kwargs=section.kwargs,
    )
    model = _seeded(config.seed, lambda: build(config.model.name, **config.model.kwargs))
    origin = f"{config.model.name} {sorted(config.model.kwargs.items())} seed {config.seed}"
    if config.model.weights is not None:
        load_weights(model, config.model.weights)
        origin = digest(tensors_of(model))
    graph = trace(model, torch.zeros(1, *splits.image_shape))
    with torch.no_grad():
        outputs = model.eval()(torch.zeros(1, *splits.image_shape))
    if not isinstance(outputs, Tensor) or outputs.shape != (1, splits.num_classes):
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ConfigError(
            f"the network must give one number per class, (1, {splits.num_classes}) for {section.name}, got "
            f"{shape}: set model.kwargs.num_classes"
        )
    budget = config.budget.macs(int(graph.macs(graph.sizes)))
    floor = np.minimum(graph.sizes, config.budget.min_width)
    check_budget(graph, budget, floor, config.budget.round_to)
    return Prepared(model, graph, splits, budget, floor, origin)


def _seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
