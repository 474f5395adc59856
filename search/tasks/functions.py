"""A task made of the user's own functions: a score, and what else they have."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import inspect
import itertools
import math
import numbers
import random
import textwrap
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from espalier.errors import ConfigError, EspalierError, raised
from espalier.pruning.graph.inputs import Inputs, run_on
from espalier.pruning.seeding import seeded
from espalier.pruning.torch_private import BATCH_NORMS, tree_leaves, tree_map
from espalier.search.files.tensor_files import digest, tensors_of
from espalier.search.spaces.metric import Metric
from espalier.search.spaces.metric import greater_is_better as more_is_better
from espalier.search.tasks.execution import Execution
from espalier.search.tasks.module_path import imported
from espalier.search.tasks.runner import Runner
from espalier.search.tasks.task import Need, Part, Reading, Regularization, Scored, Scoring, Stage, Task, penalised

ScoreFunction = Callable[[nn.Module], Any]
"""A network, in eval mode -> a number, or one number per example, (n,), of which the score is the mean."""


SCORE = "score"
"""What a metric is called that has no name."""
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
                _check_arguments(name, function)
        if not isinstance(metric, str) or not metric or not isinstance(unit, str):
            raise ConfigError(f"metric must be a name and unit a word, got {metric!r} and {unit!r}")
        if batches is not None and not isinstance(batches, Iterable):
            raise ConfigError(f"batches must be an iterable of inputs, got {type(batches).__name__}")
        more = more_is_better(metric) if greater_is_better is None else greater_is_better
        self._guessed = greater_is_better is None and metric != SCORE
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
                        f"{raised(error)} on batch {number}, {_words(batch)}; {advice}"
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
            return _reading(self._score, network)
        try:
            return _reading(self._test, network)
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
            _train(self._train, network, stage.epochs, seed)

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
        return Scored(measures={"score": _reading(self._score, network).value})

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
        _train(self._train, copied, 1.0, seed=0, steps=count)
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


# -- calling what users wrote


def _train(
    train: Callable[..., Any], network: nn.Module, epochs: float, seed: int, steps: int | None = None
) -> None:
    """Calls a user's training, which must train this network in place and leave its tensors as they are.

    Args:
        train: called as ``train(network, *, epochs, seed)``, and with ``steps`` where it takes that.
        network: left in eval mode on its device.
        epochs: passes over the data.
        seed: of the global generators.
        steps: of an optimiser after which the training is ended; None for all.

    Raises:
        EspalierError: it trained nothing, another network, or left other tensors.
        ArithmeticError: it left numbers that are not finite.
    """
    device, kinds, before = next(network.parameters()).device, _kinds(network), digest(tensors_of(network))
    called = f"epochs={epochs:g}" + ("" if steps is None else f", ended after {steps} steps")
    given: dict[str, Any] = {"epochs": epochs, "seed": seed}
    if steps is not None and "steps" in _parameters_of(train):
        given, steps = given | {"steps": steps}, None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), generators_kept(seed):
        torch.manual_seed(seed)
        returned = None
        with first_steps(network, steps) if steps is not None else nullcontext():
            returned = train(network, **given)
    if isinstance(returned, nn.Module) and returned is not network:
        raise EspalierError("train must train the network that it is given, in place; it returned another")
    if differing := sorted(name for name, _ in kinds.items() ^ _kinds(network).items()):
        at_its_end = "" if steps is None else f" where it is {called}; search.proxy=recalibrated takes no steps"
        what = "names, shapes and types of tensors"
        raise EspalierError(f"train must leave {what} as they are, and it changed {differing[0]}{at_its_end}")
    if digest(tensors_of(network)) == before:  # fused optimisers leave the counts of versions as they are
        raise EspalierError(f"train changed nothing of the network, called with {called}")
    if (broken := next(not_finite(network), None)) is not None:
        raise ArithmeticError(f"training left numbers in {broken} that are not finite")
    network.to(device).eval()


def _parameters_of(function: Callable[..., Any]) -> Sequence[str]:
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:  # of a function that does not tell its arguments
        return []


@contextmanager
def generators_kept(seed: int = 0) -> Iterator[None]:
    """Leaves the global generators of Python and NumPy as they were.

    Args:
        seed: of both within the block.
    """
    states = random.getstate(), np.random.get_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class _Enough(BaseException):
    """Ends a loop from within; no ``except Exception`` of the user's keeps it."""


@contextmanager
def first_steps(network: nn.Module, count: int) -> Iterator[None]:
    """Ends the training in the block once a parameter of the network was stepped so often.

    Args:
        network: that is trained; optimisers of others do not count.
        count: of steps, one at least; a training that takes fewer ends by itself.
    """
    own, taken = {id(parameter) for parameter in network.parameters()}, Counter[int]()
    within, enough = list[Optimizer](), False

    def before(optimizer: Optimizer, *_: Any) -> None:
        within.append(optimizer)  # a step that calls another class's of the same optimiser is one

    def after(optimizer: Optimizer, *_: Any) -> None:
        nonlocal enough
        within.pop()
        if optimizer in within:
            return
        taken.update(own.intersection(id(each) for group in optimizer.param_groups for each in group["params"]))
        if max(taken.values(), default=0) >= count:
            enough = True
            raise _Enough

    handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException:  # what a user's loop makes of its end
        if not enough:
            raise
    finally:
        for handle in handles:
            handle.remove()


def _check_arguments(name: str, function: Callable[..., Any]) -> None:
    """Refuses a function that cannot be called as it will be."""
    given = {"epochs": 1.0, "seed": 0} if name == "train" else {}
    try:
        inspect.signature(function).bind(None, **given)
    except TypeError as error:
        call = f"{name}(network{''.join(f', {each}=...' for each in given)})"
        raise ConfigError(f"{name} is called as {call}, and does not take that: {error}") from None
    except ValueError:  # of a function that does not tell its arguments
        return


def _reading(score: ScoreFunction, network: nn.Module) -> Reading:
    """Calls a score, which must leave the network as it is.

    Raises:
        EspalierError: it does not, or gives no number.
    """
    before, device = _versions(network), next(network.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(0)
        given = score(network.eval())
    network.eval()
    if changed := [name for name, version in _versions(network).items() if before.get(name) != version]:
        raise EspalierError(
            f"the score changed the network that it was given, {changed[0]} first: networks come in eval mode and "
            "must stay as they are; score a copy.deepcopy of it"
        )
    if isinstance(given, list | tuple) and all(isinstance(each, numbers.Real) for each in given):
        given = np.asarray(given, dtype=np.float64)
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = (given if given.is_complex() else given.double()).numpy()
    if isinstance(given, np.ndarray) and given.ndim == 1 and given.size and given.dtype.kind in "biuf":
        return Reading(float(given.mean()), np.asarray(given, dtype=np.float64))
    if isinstance(given, np.ndarray | np.generic) and given.size == 1:
        given = given.item()
    if not isinstance(given, numbers.Real):
        raise EspalierError(f"a score must be a number, or one number per example, got {_words(given)}")
    return Reading(float(given))


def _versions(network: nn.Module) -> dict[str, tuple[int, int]]:
    """What tells whether a tensor of the network was replaced or written to."""
    named = (*network.named_parameters(), *network.named_buffers())
    return {name: (id(tensor), 0 if tensor.is_inference() else tensor._version) for name, tensor in named}


def shapes_of(network: nn.Module) -> dict[str, torch.Size]:
    """Name of a parameter or buffer -> its shape."""
    return {name: tensor.shape for name, tensor in tensors_of(network).items()}


def _kinds(network: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors_of(network).items()}


def not_finite(network: nn.Module) -> Iterator[str]:
    """Names of the tensors that hold NaN or infinity."""
    for name, tensor in tensors_of(network).items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            yield name


UNKNOWN = "unknown"
"""The digest of what has no source and no code."""


def digest_of(function: Any) -> str:
    """16 hex digits of a function's source, or of its code where there is none; else `UNKNOWN`.

    What it calls, and what it closes over, is not looked at.
    """
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, types.MethodType):
        function = function.__func__
    if not isinstance(function, types.FunctionType):
        function = type(function)
    return _source_digest(function)


def code_of(name: str, what: str) -> str:
    """The digest of a class of the user's own, as `digest_of` gives it for an object of that class.

    Args:
        name: ``package.module:Class``, or of an object of the class.
        what: it is to be, for the message.

    Raises:
        ConfigError: there is no such object.
    """
    found = imported(name, what)
    return _source_digest(found) if isinstance(found, type) else digest_of(found)


def _source_digest(function: Any) -> str:
    text = b""
    if getattr(function, "__name__", "") != "<lambda>":  # whose source is all of its line
        try:
            text = textwrap.dedent(inspect.getsource(function)).encode()
        except (OSError, TypeError):
            pass
    code = getattr(function, "__code__", None)
    if not text and code is not None:
        constants = [each for each in code.co_consts if not isinstance(each, types.CodeType)]
        text = code.co_code + repr((code.co_names, constants)).encode()
    return hashlib.sha256(text).hexdigest()[:16] if text else UNKNOWN


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


def _words(value: Any) -> str:
    """What something is, for a message."""
    if isinstance(value, Tensor | np.ndarray):
        return f"numbers of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "a dict of " + ", ".join(map(str, value))
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
