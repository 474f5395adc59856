"""A task made of the user's own functions: a score, and what else they have."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from espalier.errors import ConfigError, EspalierError, raised
from espalier.pruning.graph.inputs import Inputs, run_on
from espalier.pruning.seeding import seeded
from espalier.pruning.torch_private import BATCH_NORMS, tree_leaves, tree_map
from espalier.search.files.tensor_files import tensors_of
from espalier.search.spaces.metric import Metric
from espalier.search.spaces.metric import greater_is_better as more_is_better
from espalier.search.tasks.code_digests import UNKNOWN, digest_of
from espalier.search.tasks.execution import Execution
from espalier.search.tasks.runner import Runner
from espalier.search.tasks.task import Need, Part, Reading, Regularization, Scored, Scoring, Stage, Task, penalised
from espalier.search.tasks.user_functions import (
    ScoreFunction,
    call_score,
    call_train,
    check_arguments,
    not_finite,
    words_of,
)

SCORE = "score"
"""What a metric is called that has no name."""
LOSS = "loss"
"""What a metric is called of which everybody knows that less is better."""
TRIED = 512
"""Examples of the batches that the dense network is run on before anything else."""


class FunctionTask(Task):
    """What a network is for, in the user's own functions.

    Functions and what they hold are sent to workers by cloudpickle. Networks are given in eval mode, on the device
    that they are to be run on, with the global generators of torch seeded alike.

    Args:
        score: how good a network is on held-out data; see `ScoreFunction`. It leaves the network as it is.
        batches: inputs as the network takes them: tensors, tuples of arguments or dicts of named ones. As many are
            taken, once, as ``search.calibration_images`` asks for. Batch norms are recalibrated on them.
        train: trains a network in place, called as ``train(network, *, epochs, seed)``. With it there are a ladder
            of strengths, fine-tuned finalists, a fine-tuned greedy baseline, and proxies that take a few steps of
            training: an epoch of it, ended after so many steps of an optimiser of PyTorch, or, where it takes an
            argument `steps`, so many of its own.
        test: like `score`, on data that nothing is chosen by; called once, at the end, for every network that is
            reported.
        example_inputs: what the network takes, to trace it on; a search in Python is given it beside the network.
        metric: what the score is called in tables.
        unit: of the score; percent are ``%``.
        greater_is_better: whether more of it is better; by default so, but where `metric` names a loss, an error or
            a distance, such as MAE.

    Example:
        >>> task = FunctionTask(score=lambda network: float(network(torch.zeros(1, 4)).mean()))
        >>> task.offers
        frozenset()
    """

    tells_epochs = False
    counts = "trainings"

    def __init__(
        self,
        score: ScoreFunction,
        batches: Iterable[Inputs] | None = None,
        train: Callable[..., Any] | None = None,
        *,
        test: ScoreFunction | None = None,
        example_inputs: Inputs | None = None,
        metric: str = SCORE,
        unit: str = "",
        greater_is_better: bool | None = None,
    ) -> None:
        for name, function in {"score": score, "train": train, "test": test}.items():
            if not callable(function) and (function is not None or name == "score"):
                raise ConfigError(f"{name} must be a function of a network, got {type(function).__name__}")
            if function is not None:
                check_arguments(name, function)
        if not isinstance(metric, str) or not metric or not isinstance(unit, str):
            raise ConfigError(f"metric must be a name and unit a word, got {metric!r} and {unit!r}")
        if batches is not None and not isinstance(batches, Iterable):
            raise ConfigError(f"batches must be an iterable of inputs, got {type(batches).__name__}")
        more = more_is_better(metric) if greater_is_better is None else greater_is_better
        self._guessed = greater_is_better is None and metric not in (SCORE, LOSS)
        self.metric = Metric("score", metric, unit, more)
        self.measures = {"score": self.metric}
        offered: dict[Need, Any] = {"batches": batches, "training": train, "steps": train}
        self.offers = frozenset(need for need, there in offered.items() if there is not None)
        self.has_test = test is not None
        self._score, self._batches, self._train, self._test = score, batches, train, test
        self._taken: list[Inputs] = []
        self._iterator: Iterator[Inputs] | None = None
        if example_inputs is not None:
            self.example_inputs = example_inputs

    # -- what it is

    def fingerprint(self) -> Mapping[str, str]:
        """Of the functions' source, and of the first batch."""
        functions = {"score": self._score, "train": self._train, "test": self._test}
        found = {f"task.{name}": digest_of(each) for name, each in functions.items() if each is not None}
        sign = "more" if self.metric.greater_is_better else "less"
        found["task.metric"] = f"{self.metric.heading}, {sign} is better"
        if self._batches is not None:
            state = hashlib.sha256()
            for leaf in tree_leaves(self._take(1)[0]):
                state.update(_bytes_of(leaf))
            found["task.batches"] = state.hexdigest()[:16]
        return found

    def check(self, network: nn.Module) -> Sequence[str]:
        """Refuses batches that the network does not take, and a score that it does not get."""
        if self._batches is not None:
            device, tried = next(network.parameters()).device, copy.deepcopy(network)
            for number, batch in enumerate(self._take(TRIED), start=1):
                moved = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)
                try:
                    with torch.no_grad():
                        run_on(tried, moved)
                except Exception as error:  # whatever a user's network raises
                    advice = (
                        "of a network of several inputs give tuples of them, or dicts by their names"
                        if "missing" in str(error)
                        else "of pairs of inputs and labels give the inputs: [x for x, _ in loader]"
                    )
                    raise ConfigError(
                        "batches must give what the network takes, and it raised "
                        f"{raised(error)} on batch {number}, {words_of(batch)}; {advice}"
                    ) from error
        if (broken := next(not_finite(network), None)) is not None:
            raise ConfigError(f"the network has numbers in {broken} that are not finite")
        try:
            value = self.evaluate(network, "scoring").value
        except EspalierError:
            raise
        except Exception as error:  # whatever a user's score raises
            raise EspalierError(f"the score raised {raised(error)} for the dense network") from error
        if not math.isfinite(value):
            raise ConfigError(f"the score of the dense network must be a finite number, got {value}")
        self.dense_score = value
        told = []
        if self._guessed:
            which = "more" if self.metric.greater_is_better else "less"
            told.append(f"{self.metric.title}: {which} is better, by its name; greater_is_better sets it")
        if unknown := [name for name, digest in self.fingerprint().items() if digest == UNKNOWN]:
            told.append(
                f"{' and '.join(unknown)} cannot be digested: a resume cannot tell whether they have changed"
            )
        if self._batches is None and any(isinstance(module, BATCH_NORMS) for module in network.modules()):
            told.append("without batches, pruned networks keep the dense network's batch norm statistics")
        return told

    # -- networks as they are

    def evaluate(self, network: nn.Module, part: Part) -> Reading:
        """By `test` where that is the part and there is one; else by `score`."""
        if part != "test" or self._test is None:
            return call_score(self._score, network)
        try:
            return call_score(self._test, network)
        except EspalierError:
            raise
        except Exception as error:  # whatever a user's function raises
            raise EspalierError(f"the task's test raised {raised(error)}") from error

    def scoring(self, part: Part, dense: nn.Module, *, calibration: int, steps: int) -> Scoring:
        """By the score, on every part."""
        return FunctionScoring(self._score, self._take(calibration), self._train if steps else None)

    # -- training

    def steps(self, stage: Stage) -> int:
        """One training."""
        return int(self._train is not None and stage.epochs > 0)

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
        """By `train`, the penalty added by a hook on its optimisers; begins anew after an interruption."""
        if self._train is None:
            raise ConfigError("this task has no way to train")
        if on_epoch is not None:
            raise ConfigError("this schedule needs the end of every epoch, which the task's train does not tell")
        with penalised(network, regularization):
            call_train(self._train, network, stage.epochs, seed)

    # -- what is sent to workers

    def only(self, *parts: Part, training: bool = False) -> Self:
        """Without the batches, which are in the scoring."""
        made = copy.copy(self)
        made._batches, made._iterator, made._taken = None, None, []
        if not training:
            made._train = None
        return made

    def parts_to_send(self) -> dict[str, Any]:
        """What has to be pickled, by name."""
        functions = {"score": self._score, "train": self._train, "test": self._test}
        return {name: each for name, each in functions.items() if each is not None}

    def _take(self, examples: int) -> list[Inputs]:
        """The first batches, of so many examples together, one batch at least; each is made once."""
        if self._batches is None:
            return []
        with seeded(0):  # a loader that shuffles gives the same batches each time
            if self._iterator is None:
                self._iterator = iter(self._batches)
            while sum(map(length_of, self._taken)) < examples:
                try:
                    batch = next(self._iterator)
                except StopIteration:
                    break
                self._taken.append(tuple(batch) if isinstance(batch, list) else batch)
        if not self._taken:
            raise ConfigError("batches gave none: give a list of inputs, or a loader that was not gone through yet")
        return first_of(self._taken, examples)


class FunctionScoring(Scoring):
    """The score, and the batches that networks are healed on.

    Args:
        score: how good a network is.
        batches: inputs.
        train: trains networks that take a few steps before they are scored.
    """

    raced: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, score: ScoreFunction, batches: Sequence[Inputs], train: Callable[..., Any] | None = None
    ) -> None:
        self._score, self._batches, self._train = score, list(batches), train

    def score(self, runner: Runner, network: nn.Module, lost: Callable[[Tensor], bool]) -> Scored:
        """Of the whole of the user's data."""
        return Scored(measures={"score": call_score(self._score, network).value})

    def calibration(self, runner: Runner) -> Sequence[Inputs]:
        """The batches, on the device."""

        def here(value: Any) -> Any:
            return runner.laid_out(value).to(runner.device) if isinstance(value, Tensor) else value

        found: Sequence[Inputs] = runner.once("batches", lambda: [tree_map(here, each) for each in self._batches])
        return found

    def step(self, runner: Runner, network: nn.Module, count: int) -> None:
        """The first steps of an epoch, on a copy: all that the next candidate sees of them is numbers."""
        if self._train is None:
            raise ConfigError("this task has no way to train")
        copied = copy.deepcopy(network)
        call_train(self._train, copied, 1.0, seed=0, steps=count)
        for tensor, trained in zip(tensors_of(network).values(), tensors_of(copied).values(), strict=True):
            with torch.no_grad():
                tensor.copy_(trained)

    def key(self, execution: Execution) -> Iterator[bytes]:
        """Of the functions and the batches."""
        yield digest_of(self._score).encode()
        if self._train is not None:
            yield digest_of(self._train).encode()
        for leaf in tree_leaves(self._batches):
            yield _bytes_of(leaf)


def named_task(name: str, kwargs: Mapping[str, Any]) -> Task:
    """What a callable makes.

    Args:
        name: ``package.module:callable``.
        kwargs: its arguments.

    Raises:
        ConfigError: it cannot be imported or called, or makes no task with example inputs.
    """
    module, _, attributes = name.partition(":")
    try:
        make: Any = functools.reduce(getattr, attributes.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"task.name must be package.module:callable, got {name!r} ({error})") from error
    try:
        task = make(**kwargs)
    except EspalierError:
        raise
    except Exception as error:  # whatever the user's own code raises
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        raise ConfigError(f"task.name: {name}({given}) raised {raised(error)}") from error
    if not isinstance(task, Task):
        raise ConfigError(f"task.name: {name} must make an espalier.Task, got {type(task).__name__}")
    if not hasattr(task, "example_inputs"):
        raise ConfigError(f"task.name: the task that {name} makes lacks example_inputs, to trace the network on")
    return task


def _bytes_of(leaf: Any) -> bytes:
    if not isinstance(leaf, Tensor):
        return repr(leaf).encode()
    return repr(leaf.shape).encode() + leaf.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def first_of(batches: Sequence[Inputs], examples: int) -> list[Inputs]:
    """The first batches, of so many examples together if there are as many, one batch at least."""
    before = itertools.accumulate(map(length_of, batches), initial=0)
    return [batch for batch, count in zip(batches, before, strict=False) if count < max(1, examples)]


def length_of(batch: Inputs) -> int:
    """Examples of a batch."""
    sizes = [len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()]
    return sizes[0] if sizes else 1
