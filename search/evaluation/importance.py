"""What channels are worth before anything is searched: the scores of a criterion, with what it needs of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import ConfigError, EspalierError, raised
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats
from espalier.pruning.importance.criteria import CRITERIA
from espalier.pruning.importance.criterion import Criterion
from espalier.search.tasks.code_digests import digest_of
from espalier.search.tasks.execution import Execution
from espalier.search.tasks.module_path import imported
from espalier.search.tasks.runner import Runner
from espalier.search.tasks.task import Need, Task

EXAMPLES = 512
"""Training examples that criteria look at, at most."""

_OF_A_TASK: Mapping[str, tuple[Need, str]] = {
    "loss": ("loss", "differentiates a loss"),
    "batches": ("batches", "looks at batches of inputs"),
}
"""What a criterion needs of a task -> the same in the task's words, and in a sentence."""


def criterion_of(given: str | Criterion | Callable[..., Tensor]) -> Criterion:
    """The criterion that is named, or one made of a function.

    Args:
        given: a name in `CRITERIA`; ``package.module:name`` of a criterion of the user's own; or that itself: a
            `Criterion`, a function of network and graph, or a class of such, whose ``needs`` say what it takes too.

    Raises:
        ConfigError: there is no such criterion, or it cannot be called.
    """
    if isinstance(given, str) and ":" not in given:
        if given not in CRITERIA:
            raise ConfigError(f"a criterion must be one of {', '.join(CRITERIA)}, or your own, got {given!r}")
        return CRITERIA[given]
    found: Any = given
    if isinstance(given, str):
        found = imported(given, "a criterion")
    if isinstance(found, Criterion):
        return found
    made = found() if isinstance(found, type) else found
    if not callable(made):
        raise ConfigError(f"a criterion must be a function of network and graph, got {type(made).__name__}")
    return Criterion(made, needs=tuple(getattr(made, "needs", ())))


def code_of_criterion(name: str) -> dict[str, str]:
    """What a result depends on beside the name of a criterion of the user's own; nothing for those of ours."""
    return {"criterion": digest_of(criterion_of(name).function)} if ":" in name else {}


def check_offered(key: str, criterion: Criterion, task: Task) -> None:
    """Refuses a criterion that needs more than a task offers.

    Args:
        key: of the config that names it, for the message.
        criterion: that is to be used.
        task: with it.

    Raises:
        ConfigError: says what is missing.
    """
    for supply in criterion.needs:
        need, words = _OF_A_TASK.get(supply, (None, ""))
        if need is not None and need not in task.offers:
            raise ConfigError(f"{key}: {criterion.name} {words}, which this task does not offer")


def channel_scores(criterion: Criterion, network: nn.Module, graph: ChannelGraph, task: Task, seed: int) -> Floats:
    """Scores of every prunable channel, as they are: (n_channels,).

    Args:
        criterion: what scores.
        network: the network.
        graph: its channel graph.
        task: gives the criterion what it needs.
        seed: of criteria that draw.

    Raises:
        ConfigError: the task does not offer what it needs, or these are no scores.
        EspalierError: the criterion raised something.
    """
    check_offered("criterion", criterion, task)
    supplies: dict[str, Callable[[], Any]] = {
        "loss": lambda: task.loss,
        "batches": lambda: _batches(task, network),
        "generator": lambda: torch.Generator().manual_seed(seed),
    }
    given = {need: supplies[need]() for need in criterion.needs}
    try:
        found = criterion(network, graph, **given)
    except EspalierError:
        raise
    except Exception as error:  # whatever a user's function raises
        raise EspalierError(f"the criterion {criterion.name} raised {raised(error)}") from error
    if not isinstance(found, Tensor) or found.shape != (graph.n_channels,):
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(
            f"the criterion {criterion.name} must give one score per channel, a tensor of shape "
            f"({graph.n_channels},), got {got}"
        )
    scores: Floats = found.detach().double().cpu().numpy()
    if not (scores >= 0).all() or not (scores < float("inf")).all():
        worst = float(scores[~((scores >= 0) & (scores < float("inf")))][0])
        raise ConfigError(f"the criterion {criterion.name} must give finite scores, none below zero, got {worst:g}")
    return scores


def _batches(task: Task, network: nn.Module) -> Any:
    """Batches of training inputs, in float32 on the network's device."""
    runner = Runner(Execution(memory_format="contiguous"), str(next(network.parameters()).device))
    return task.scoring("scoring", network, calibration=EXAMPLES, steps=0).calibration(runner)
