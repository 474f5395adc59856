"""What tasks of other people's trainers share."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.torch_private import tree_map
from espalier.search.tasks.functions import FunctionTask, first_of
from espalier.search.tasks.task import Part
from espalier.search.tasks.user_functions import shapes_of


class Runs(ABC):
    """Makes a trainer for a network, and has it score or train: what is sent to workers."""

    @abstractmethod
    def score(self, network: nn.Module) -> float:
        """On held-out data."""

    @abstractmethod
    def test(self, network: nn.Module) -> float:
        """On test data."""

    @abstractmethod
    def train(self, network: nn.Module, *, epochs: float, seed: int, steps: int | None = None) -> None:
        """In place, for so many epochs, or steps of the optimiser."""

    @abstractmethod
    def inputs(self, network: nn.Module, example: Inputs, examples: int) -> list[Inputs]:
        """Batches of training data, the same each time.

        Args:
            network: that a trainer is made for, which may move it.
            example: what networks take.
            examples: how many together, if there are so many.
        """


class TrainerTask(FunctionTask):
    """Networks are scored and trained by a trainer, which has the data too.

    Args:
        runs: makes the trainers.
        digest: names what results depend on.
        shapes: of the network that the trainer is for; None where it is for whichever it is given.
        trains: whether it trains.
        tests: whether it tests.
        options: of `FunctionTask`.
    """

    whose = ""
    """What to do where the network is another, for a message."""

    def __init__(
        self,
        runs: Runs,
        digest: str,
        shapes: Mapping[str, torch.Size] | None,
        *,
        trains: bool,
        tests: bool,
        **options: Any,
    ) -> None:
        super().__init__(
            runs.score,
            () if trains else None,
            runs.train if trains else None,
            test=runs.test if tests else None,
            **options,
        )
        self._runs, self._digest, self._shapes = runs, digest, shapes
        self._network: nn.Module | None = None  # that batches are taken for
        self._asked = 0

    def fingerprint(self) -> Mapping[str, str]:
        """Of the trainer, and of the first batch."""
        batches = {key: digest for key, digest in super().fingerprint().items() if key == "task.batches"}
        return {"task.trainer": self._digest} | batches

    def check(self, network: nn.Module) -> Sequence[str]:
        """Refuses a trainer of another network, one without data, and a metric that it does not give."""
        if self._shapes is not None and (differing := sorted(self._shapes.items() ^ shapes_of(network).items())):
            raise ConfigError(
                f"the trainer must be that of the network that is searched, which differs in {differing[0][0]}: "
                f"{self.whose}"
            )
        self._network, self._taken, self._asked = copy.deepcopy(network), [], 0
        return super().check(network)

    def only(self, *parts: Part, training: bool = False) -> Self:
        """Without the network that batches were taken for."""
        made = super().only(*parts, training=training)
        made._network = None
        return made

    def _take(self, examples: int) -> list[Inputs]:
        """The first batches, at least so many examples."""
        if self._batches is not None and self._asked < examples:
            assert self._network is not None  # it was checked
            with torch.random.fork_rng(devices=[]):
                self._taken = self._runs.inputs(self._network, self.example_inputs, examples)
            self._asked = examples
        return first_of(self._taken, examples)


@contextmanager
def as_it_was(network: nn.Module) -> Iterator[None]:
    """Takes off what a trainer leaves on a network, such as another forward for mixed precision."""
    before = dict(vars(network))
    try:
        yield
    finally:
        vars(network).clear()
        vars(network).update(before)


@contextmanager
def inputs_of_calls(network: nn.Module) -> Iterator[list[Inputs]]:
    """Collects what a network, a part of a greater model, is called with, on the CPU."""
    seen: list[Inputs] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(inspect.signature(network.forward).bind(*args, **kwargs).arguments) if kwargs else args
        seen.append(tree_map(lambda value: value.detach().cpu() if isinstance(value, Tensor) else value, given))

    handle = network.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
