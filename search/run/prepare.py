"""What a config describes, loaded and checked before anything is written or trained."""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from espalier.errors import ConfigError, StudyMismatch, TraceError
from espalier.pruning.graph.allocation import check_budget
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Ints
from espalier.pruning.graph.precision import ENDING
from espalier.pruning.importance.criterion import Criterion
from espalier.pruning.networks import build, load_weights
from espalier.pruning.seeding import seeded
from espalier.pruning.trace import trace
from espalier.search.config.budget_sections import BudgetConfig
from espalier.search.config.fields import CLASSIFICATION, GIVEN, unknown
from espalier.search.config.loading import Config
from espalier.search.config.recipes import Recipes
from espalier.search.files.tensor_files import digest, tensors_of
from espalier.search.spaces.metric import Metric
from espalier.search.study.keys import DENSE_SCORE
from espalier.search.tasks.classification import data
from espalier.search.tasks.classification.task import ClassificationTask
from espalier.search.tasks.functions import named_task
from espalier.search.tasks.task import NEEDS, Task


@dataclass(frozen=True)
class Given:
    """What a call in Python brings along, in the place of names.

    Attributes:
        network: the dense network; left as it is.
        task: what it is for.
        criterion: by which channels are ranked, where that is given too.
    """

    network: nn.Module
    task: Task
    criterion: Criterion | None = None


@dataclass(frozen=True)
class Prepared:
    """What a config describes, loaded and checked; nothing is written or trained yet.

    Attributes:
        model: the network, with its weights where some were given.
        graph: its channel graph.
        task: what it is for.
        measure: what candidates are compared by.
        budgets: what the pruned network may cost, the tightest last.
        floor: (G,) fewest channels per group.
        origin: names the model's present numbers.
        notes: what the user should know.
        round_to: what widths are multiples of.
        criterion: by which channels are ranked, where it is given in Python.
    """

    model: nn.Module
    graph: ChannelGraph
    task: Task
    measure: Metric
    budgets: tuple[Budget, ...]
    floor: Ints
    origin: str
    notes: tuple[str, ...] = ()
    round_to: int = 1
    criterion: Criterion | None = None

    @property
    def budget(self) -> Budget:
        """The tightest one, which is searched."""
        return self.budgets[-1]

    @property
    def dense_macs(self) -> int:
        """MACs per example of the unpruned network."""
        return int(self.graph.macs(self.graph.sizes))


def check_dense_score(
    task: Task, once: Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]], record: str
) -> None:
    """Refuses a score of one's own that gives the dense network another number than when a record began.

    Args:
        task: whose score it is.
        once: of the record: what it holds by a name, made where it holds nothing.
        record: what it is called.

    Raises:
        StudyMismatch: the numbers differ.
    """
    if (now := task.dense_score) is None:
        return
    began = once(DENSE_SCORE, lambda: {"value": now})["value"]
    if not math.isclose(began, now, rel_tol=1e-3, abs_tol=1e-6):
        raise StudyMismatch(
            f"the score of the dense network was {began:g} when {record} began, and is {now:g}: what the score "
            "function holds, or the data that it reads, is another"
        )


def prepare(config: Config, given: Given | None = None, *, takes_latency: bool = False) -> Prepared:
    """Loads task and network, traces, and checks the budget.

    Args:
        config: checked settings.
        given: network and task, where the config does not name them.
        takes_latency: whether the caller sees to limits on latency, which are not among the budgets yet.

    Raises:
        DataError: the data set is missing or broken.
        WeightsError: the weights do not fit.
        TraceError: the network cannot be traced.
        ConfigError: the network's arguments, or its outputs, do not fit the data, or the task does not offer what
            the settings need.
        BudgetInfeasible: the budget cannot be reached.
    """
    if given is None and GIVEN in (config.model.name, config.task.name):
        raise ConfigError(
            "the network and the task of this study were given in Python, and only there can it go on: "
            "espalier.resume(storage, study, network, task)"
        )
    if config.budget.limits_latency and not takes_latency:
        raise ConfigError("budget.latency: searches and comparisons take it, and nothing else does")
    criterion = None if given is None else given.criterion
    if (config.search.criterion == GIVEN) != (criterion is not None):
        raise ConfigError(
            "the criterion of this study was given in Python, and only there can it go on: "
            "espalier.resume(storage, study, network, task, criterion=criterion)"
            if criterion is None
            else f"search.criterion: a criterion is given in Python, and here is {config.search.criterion!r}"
        )
    task = task_of(config) if given is None else given.task
    measure = _measure_of(config, task)
    if given is not None:
        model = copy.deepcopy(given.network)
        origin = digest(tensors_of(model))
    else:
        with seeded(config.seed):
            model = build(config.model.name, **config.model.kwargs)
        origin = f"{config.model.name} {sorted(config.model.kwargs.items())} seed {config.seed}"
        if config.model.weights is not None:
            load_weights(model, config.model.weights)
            origin = digest(tensors_of(model))
    try:
        graph = trace(model, task.example_inputs, depth=config.budget.depth, bits=config.budget.bits)
    except TraceError as error:
        if config.task.name in (CLASSIFICATION, GIVEN):
            raise
        raise TraceError(
            f"{error}; it was given the example_inputs of {config.task.name}: of several inputs, a tuple or a dict"
        ) from error
    if config.budget.bits and "batches" not in task.offers:
        raise ConfigError(
            f"budget.bits needs {NEEDS['batches']}, which this task does not offer: they say how to round"
        )
    notes = tuple(task.check(model.eval()))
    if config.budget.depth and not graph.branches:
        notes += ("budget.depth: the network has no residual branch that can be taken out",)
    budgets, floor = limits(config.budget, graph), least_widths(config.budget, graph)
    round_to = 1 if config.budget.round_to == "auto" else config.budget.round_to
    check_budget(graph, budgets[-1], floor, round_to, depth=config.budget.depth)
    return Prepared(model, graph, task, measure, budgets, floor, origin, notes, round_to, criterion)


def task_of(config: Config) -> Task:
    """The task that a config names.

    Raises:
        DataError: the data set is missing or broken.
        ConfigError: what the config names makes no task.
    """
    if config.task.name != CLASSIFICATION:
        with seeded(config.seed):
            return named_task(config.task.name, config.task.kwargs)
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
    return ClassificationTask(splits, Recipes.of(config).by_stage, config.search.scoring_images)


def _measure_of(config: Config, task: Task) -> Metric:
    """What candidates are compared by.

    Raises:
        ConfigError: the task has no such measure, or trainings are asked for that it cannot do.
    """
    key = config.search.measure
    if key not in task.measures:
        raise ConfigError(f"search.measure: {unknown(str(key), list(task.measures), 'those of this task are')}")
    if "training" not in task.offers:
        for section in ("training", "regularizer", "supernet", "finetune"):
            epochs = getattr(config, section).epochs
            used = section != "regularizer" or config.regularizer.trainings
            if epochs and used:
                raise ConfigError(
                    f"{section}.epochs is {epochs:g}, and this task has no way to train: give it one, or write 0"
                )
    return task.measures[key]


def limits(section: BudgetConfig, graph: ChannelGraph) -> tuple[Budget, ...]:
    """The budgets of a network, the tightest last: fractions are of what it costs unpruned.

    Latency counts once the graph knows of it.
    """

    def limit(most: int | None, keep: float | None, metric: str) -> int | None:
        return int(keep * graph.dense_cost(metric)) if keep is not None else most

    params = limit(section.max_params, section.keep_params, "params")
    memory = limit(section.max_memory, section.keep_memory, "peak_memory")
    latency = None
    if graph.latency_model is not None:
        most = None if section.max_latency_ms is None else int(1e6 * section.max_latency_ms)
        latency = limit(most, section.latency, "latency")
    others = {
        "bit_operations": limit(section.max_bit_operations, section.keep_bit_operations, "bit_operations"),
        "weight_bytes": limit(section.max_weight_bytes, section.keep_weight_bytes, "weight_bytes"),
    }
    return tuple(
        Budget(limit(section.max_macs, keep, "macs"), params, memory, latency, **others)
        for keep in section.keeps or (None,)
    )


def least_widths(section: BudgetConfig, graph: ChannelGraph) -> Ints:
    """Fewest channels of every group, (G,): all of those that are frozen.

    Groups of bits have one at least; a pattern is about them only where it ends with their ending.

    Raises:
        ConfigError: a pattern names no group.
    """
    names = [group.name for group in graph.groups]
    floor = np.minimum(graph.sizes, section.min_width)
    of_bits = [each.group for each in graph.precisions]
    floor[of_bits] = 1
    patterns: list[tuple[str, str, int | None]] = [("min_widths", p, n) for p, n in section.min_widths.items()]
    for key, pattern, fewest in patterns + [("frozen", pattern, None) for pattern in section.frozen]:
        chosen = [
            number
            for number, name in enumerate(names)
            if fnmatch.fnmatchcase(name, pattern) and (number in of_bits) == pattern.endswith(ENDING)
        ]
        if not chosen:
            raise ConfigError(
                f"budget.{key}: no group is named {pattern!r}; `espalier inspect` lists them, "
                f"{', '.join(names[:3])} and so on"
            )
        floor[chosen] = graph.sizes[chosen] if fewest is None else np.minimum(graph.sizes[chosen], fewest)
    return floor
