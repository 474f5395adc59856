"""What a network is for, as everything else sees it: how networks are scored, healed and trained.

A task says what it can do by `Task.offers`; whoever needs more refuses it in one line. With `evaluate` alone there
is a search by whatever the score says; with batches of inputs, batch norms are recalibrated and layers
reconstructed; with training, there are a ladder of strengths and fine-tuned finalists; with a loss and labels, the
proxies and criteria that differentiate.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy.typing as npt
import torch
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.importance.optimizer_hooks import regularized
from espalier.pruning.importance.regularizer import Regularizer
from espalier.search.spaces.metric import Metric
from espalier.search.tasks.execution import AUTO, Execution
from espalier.search.tasks.runner import Runner

Array = npt.NDArray[Any]

Part = Literal["held_out", "scoring", "promotion", "judging", "test"]
"""Examples that no network is trained on: those held out of the training split; of these, what candidates are
scored on, what the best of them are judged on again, and what fine-tuned networks are judged on; the test split."""

Need = Literal["batches", "loss", "labels", "training", "steps"]
"""What a task may offer beside `evaluate`: inputs without labels, a loss, one label per example, training, and
trainings of a few steps."""

NEEDS: Mapping[Need, str] = {
    "batches": "batches of inputs",
    "loss": "a loss",
    "labels": "one label per example",
    "training": "a way to train",
    "steps": "training by single steps",
}
"""Need -> in words."""


@dataclass(frozen=True)
class Stage:
    """A kind of training, and how long it is.

    Attributes:
        name: ``dense`` of the dense network, ``regularized`` of a rung, ``finetune`` of a pruned network.
        epochs: passes over the training examples; may be a fraction.
    """

    name: Literal["dense", "regularized", "finetune"]
    epochs: float


@dataclass(frozen=True)
class Regularization:
    """A penalty, as a training applies it.

    Attributes:
        regularizer: the penalty on the weights.
        strength: what it is multiplied by.
        proximal: take the penalty's proximal step after each step on the loss, in place of its subgradient.
        ramp: share of the steps over which the strength rises from zero, linearly.
    """

    regularizer: Regularizer
    strength: float
    proximal: bool = False
    ramp: float = 0.0


def penalised(network: nn.Module, regularization: Regularization | None) -> AbstractContextManager[None]:
    """The context in which somebody else's loop trains a network with a penalty, by a hook on its optimisers.

    Raises:
        ConfigError: the strength is to rise over steps that nobody counts.
    """
    if regularization is None or not regularization.strength:
        return nullcontext()
    if regularization.ramp:
        raise ConfigError("regularizer.ramp is a share of the steps, and this task does not tell how many: write 0")
    penalty, strength = regularization.regularizer, regularization.strength
    return regularized(network, penalty.graph, penalty, strength=strength, proximal=regularization.proximal)


@dataclass(frozen=True)
class Reading:
    """What a network is worth on some examples.

    Attributes:
        value: by the task's metric, in its unit.
        examples: the same of every single example, (n,), of which `value` is the mean; None where it is no mean.
    """

    value: float
    examples: Array | None = None


@dataclass(frozen=True)
class Scored:
    """What a candidate is worth on the scoring examples.

    Attributes:
        losses: (examples, raced measures) of the examples that were run; empty where the task gives none.
        measures: those that are no means over examples; empty where a race was lost.
    """

    losses: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    measures: Mapping[str, float] = field(default_factory=dict)


class Scoring(ABC):
    """What candidates are scored, and healed, by: all that a worker needs of a task."""

    raced: ClassVar[tuple[str, ...]] = ()
    """Keys of the measures that are means over examples, in the order of the columns of `Scored.losses`."""

    @property
    def has_head(self) -> bool:
        """Whether `solve_head` can solve something."""
        return False

    @abstractmethod
    def score(self, runner: Runner, network: nn.Module, lost: Callable[[Tensor], bool]) -> Scored:
        """Scores a network in eval mode.

        Args:
            runner: runs it.
            network: healed or not.
            lost: told the losses so far, after every batch; where it says so, the rest is not run.
        """

    def means(self, losses: Tensor) -> dict[str, float]:
        """The raced measures, of mean losses (raced measures,)."""
        return {}

    def calibration(self, runner: Runner) -> Sequence[Inputs]:
        """Batches of inputs, as the network takes them; none where there are none."""
        return ()

    def step(self, runner: Runner, network: nn.Module, count: int) -> None:
        """Takes so many steps of training, the same for every candidate."""
        raise ConfigError("this task takes no single steps of training")

    def loss(self, runner: Runner, network: nn.Module) -> Tensor:
        """The loss on a batch of training examples, differentiable."""
        raise ConfigError("this task has no loss")

    def solve_head(self, runner: Runner, network: nn.Module) -> None:
        """Solves the last layer for the labels, in place."""
        raise ConfigError("this task has no labels to solve a head for")

    @abstractmethod
    def key(self, execution: Execution) -> Iterator[bytes]:
        """Names the examples and settings that a score depends on."""


class Task(ABC):
    """What a network is for.

    Attributes:
        metric: what `evaluate` gives.
        measures: what candidates may be compared by.
        offers: beside `evaluate`.
        example_inputs: what the network takes, an example or a few of them.
        has_unseen: whether parts of the held-out examples differ, so that candidates can be judged on others than
            those that the search scores on.
        runs_batches: whether candidates are scored in batches of espalier's own, as `Execution` says.
        has_test: whether there is a test split.
        tells_epochs: whether `train` tells of steps and of the end of every epoch.
        counts: what `steps` counts, for progress bars.
        dense_score: of the network that is given, by `check`; None where it takes none.
        home: device that networks lie on outside of Ray workers; None for the GPU, if there is one.
    """

    metric: Metric
    measures: Mapping[str, Metric]
    offers: frozenset[Need]
    example_inputs: Inputs
    has_unseen: bool = False
    runs_batches: bool = False
    has_test: bool = False
    tells_epochs: bool = True
    counts: str = "steps"
    home: str | None = None
    dense_score: float | None = None

    # -- what it is

    def on(self, example_inputs: Inputs, network: nn.Module) -> Self:
        """The same task with these example inputs, on the device of a network that is given."""
        made = copy.copy(self)
        made.example_inputs = example_inputs
        made.home = str(next(network.parameters()).device)
        return made

    @abstractmethod
    def fingerprint(self) -> Mapping[str, str]:
        """Tells whether a resumed study has the task that it began with: name of a part -> its digest."""

    def digest(self) -> str:
        """All of `fingerprint` in a word."""
        return " ".join(self.fingerprint().values())

    def notes(self) -> dict[str, Any]:
        """What whoever uses a pruned network must know of its inputs, as JSON: kept in its file."""
        return {}

    def sizes(self) -> Mapping[str, int]:
        """Number of examples: training, held-out, test, where the task knows."""
        return {}

    def size(self, part: Part) -> int:
        """Number of examples of a part; 0 where the task does not know."""
        return 0

    def check(self, network: nn.Module) -> Sequence[str]:
        """Refuses a network, in eval mode, that cannot do it.

        Returns:
            What whoever searches should know.

        Raises:
            ConfigError: says what is wrong with it.
        """
        return ()

    def execution(self, settings: Mapping[str, Any], device: torch.device) -> Execution:
        """How candidates are run.

        Args:
            settings: batch size, memory format and precision as a config has them, or ``auto``.
            device: where they are run.
        """
        plain = {"memory_format": "contiguous", "precision": "fp32"}
        return Execution.asked(plain | {key: value for key, value in settings.items() if value != AUTO}, device)

    def timed_inputs(self, scoring: Scoring) -> Inputs:
        """Inputs to time networks on."""
        return self.example_inputs

    # -- networks as they are

    @abstractmethod
    def evaluate(self, network: nn.Module, part: Part) -> Reading:
        """What a network is worth."""

    # -- training

    def steps(self, stage: Stage) -> int:
        """Of a training: what `on_step` is told at the end; 0 where there is nothing to be done."""
        return 0

    def wants_teacher(self, stage: Stage) -> bool:
        """Whether a training takes the dense network along, to learn from its predictions."""
        return False

    def recipe(self, stage: Stage) -> dict[str, Any]:
        """What a training depends on beside data, seed and penalty, as JSON."""
        return {"epochs": stage.epochs}

    def train(
        self,
        network: nn.Module,
        stage: Stage,
        *,
        seed: int,
        regularization: Regularization | None = None,
        teacher: nn.Module | None = None,
        on_step: Callable[[int, float], None] | None = None,
        on_epoch: Callable[[int], None] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Trains a network in place, on the device that it lies on, and leaves it in eval mode.

        Args:
            network: that is trained.
            stage: how.
            seed: of everything that is drawn.
            regularization: the penalty, if any.
            teacher: the dense network, where the task said that it wants one.
            on_step: told the steps done and the loss, penalty left out, where the task knows them.
            on_epoch: told the number of an epoch, from 1, after its last step; what it makes of the weights is
                trained on.
            checkpoint: file from which this training goes on, where the task can.
        """
        raise ConfigError("this task has no way to train")

    def finetuning_key(self, stage: Stage, scoring: Scoring, execution: Execution) -> Iterator[bytes]:
        """Names what a fine-tuning, and its judgement, depend on beside the network and the seed."""
        yield json.dumps([self.digest(), self.recipe(stage)]).encode()
        yield from scoring.key(execution)

    # -- what is sent to workers

    def only(self, *parts: Part, training: bool = False) -> Self:
        """The same task with the examples of these parts alone, and those to train on or not."""
        return self

    def parts_to_send(self) -> Mapping[str, Any]:
        """What workers need of the user's own, by name: it must be possible to pickle it."""
        return {}

    @abstractmethod
    def scoring(self, part: Part, dense: nn.Module, *, calibration: int, steps: int) -> Scoring:
        """How candidates are scored.

        Args:
            part: of the held-out examples.
            dense: the network before regularisation.
            calibration: training examples for BN statistics and least squares, at most.
            steps: most steps of training that a proxy will take.
        """

    def loss(self, network: nn.Module) -> Tensor:
        """The loss on some training examples, differentiable: for criteria."""
        raise ConfigError("this task has no loss")


def missing(offers: frozenset[Need], needs: Sequence[Need]) -> str:
    """In words, what a task lacks; empty where it offers everything."""
    return " and ".join(NEEDS[need] for need in needs if need not in offers)
