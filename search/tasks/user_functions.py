"""Calling what users wrote: a score leaves the network as it is, a training trains it in place."""

from __future__ import annotations

import inspect
import numbers
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from espalier.errors import ConfigError, EspalierError
from espalier.search.files.tensor_files import digest, tensors_of
from espalier.search.tasks.task import Reading

ScoreFunction = Callable[[nn.Module], Any]
"""A network, in eval mode -> a number, or one number per example, (n,), of which the score is the mean."""


def call_train(
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


def check_arguments(name: str, function: Callable[..., Any]) -> None:
    """Refuses a function that cannot be called as it will be."""
    given = {"epochs": 1.0, "seed": 0} if name == "train" else {}
    try:
        inspect.signature(function).bind(None, **given)
    except TypeError as error:
        call = f"{name}(network{''.join(f', {each}=...' for each in given)})"
        raise ConfigError(f"{name} is called as {call}, and does not take that: {error}") from None
    except ValueError:  # of a function that does not tell its arguments
        return


def call_score(score: ScoreFunction, network: nn.Module) -> Reading:
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
        raise EspalierError(f"a score must be a number, or one number per example, got {words_of(given)}")
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


def words_of(value: Any) -> str:
    """What something is, for a message."""
    if isinstance(value, Tensor | np.ndarray):
        return f"numbers of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "a dict of " + ", ".join(map(str, value))
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
