"""What a config describes, loaded and checked before anything is written or trained."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.graph.allocation import check_budget
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Ints
from espalier.pruning.networks import build, load_weights
from espalier.pruning.trace import trace
from espalier.search.config.loading import Config
from espalier.search.config.sections import BudgetConfig
from espalier.search.files.tensor_files import digest, tensors_of
from espalier.search.tasks.classification import data


@dataclass(frozen=True)
class Prepared:
    """What a config describes, loaded and checked; nothing is written or trained yet.

    Attributes:
        model: the network, with its weights where some were given.
        graph: its channel graph.
        splits: images.
        budgets: what the pruned network may cost, the tightest last.
        floor: (G,) fewest channels per group.
        origin: names the model's present numbers.
    """

    model: nn.Module
    graph: ChannelGraph
    splits: data.Splits
    budgets: tuple[Budget, ...]
    floor: Ints
    origin: str

    @property
    def budget(self) -> Budget:
        """The tightest one, which is searched."""
        return self.budgets[-1]

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
        if isinstance(outputs, Tensor):
            got, then = str(tuple(outputs.shape)), "set model.kwargs.num_classes"
        else:
            got, then = f"a {type(outputs).__name__}", "return the logits alone"
        raise ConfigError(
            f"the network must give one number per class, (1, {splits.num_classes}) for {section.name}, got "
            f"{got}: {then}"
        )
    budgets, floor = limits(config.budget, graph), least_widths(config.budget, graph)
    check_budget(graph, budgets[-1], floor, config.budget.round_to)
    return Prepared(model, graph, splits, budgets, floor, origin)


def limits(section: BudgetConfig, graph: ChannelGraph) -> tuple[Budget, ...]:
    """The budgets of a network, the tightest last: fractions are of what it costs unpruned."""
    dense = graph.sizes

    def limit(most: int | None, keep: float | None, cost: Callable[[Ints], Ints]) -> int | None:
        return int(keep * int(cost(dense))) if keep is not None else most

    params = limit(section.max_params, section.keep_params, graph.params)
    memory = limit(section.max_memory, section.keep_memory, graph.peak_memory)
    return tuple(
        Budget(limit(section.max_macs, keep, graph.macs), params, memory) for keep in section.keeps or (None,)
    )


def least_widths(section: BudgetConfig, graph: ChannelGraph) -> Ints:
    """Fewest channels of every group, (G,): all of those that are frozen.

    Raises:
        ConfigError: a pattern names no group.
    """
    names = [group.name for group in graph.groups]
    floor = np.minimum(graph.sizes, section.min_width)
    patterns: list[tuple[str, str, int | None]] = [("min_widths", p, n) for p, n in section.min_widths.items()]
    for key, pattern, fewest in patterns + [("frozen", pattern, None) for pattern in section.frozen]:
        chosen = [number for number, name in enumerate(names) if fnmatch.fnmatchcase(name, pattern)]
        if not chosen:
            raise ConfigError(
                f"budget.{key}: no group is named {pattern!r}; `espalier inspect` lists them, "
                f"{', '.join(names[:3])} and so on"
            )
        floor[chosen] = graph.sizes[chosen] if fewest is None else np.minimum(graph.sizes[chosen], fewest)
    return floor


def _seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
