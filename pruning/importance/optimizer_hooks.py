"""Penalties in anybody's training loop: what steps the network's parameters meets them, whoever wrote the loop.

PyTorch calls global hooks before and after the step of every optimiser. Before it, strength x dR/dW is added to the
gradients that the loop's backward pass left, as the backward pass of loss + strength x R would have done; or, after
it, the proximal step is taken.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.importance.energy import widened
from espalier.pruning.importance.regularizer import Regularizer, Weighting, check_step
from espalier.pruning.importance.regularizers import REGULARIZERS


@contextmanager
def regularized(
    network: nn.Module,
    graph: ChannelGraph,
    regularizer: str | Regularizer,
    *,
    strength: float,
    proximal: bool = False,
    weighting: Weighting = "none",
    with_norms: bool = False,
    ramp: float = 0,
) -> Iterator[None]:
    """Regularises a network in a training loop of your own.

        with espalier.regularized(network, graph, "oicsr_gl", strength=0.01):
            trainer.train()

    While the block is open, every step of an optimiser that holds parameters of the network minimises

        loss + strength R(W)

    with R the sum over channels c of the norm of the whole out-in-channel, ||W_c||_2, for ``oicsr_gl`` (Li et al.,
    CVPR 2019, arXiv 1905.11664); `espalier.REGULARIZERS` has the others. The loop stays as it is: strength x dR/dW
    is added to the gradients right before they are stepped along, once per step however many backward passes there
    were. With ``proximal=True`` the step is along the loss alone, and followed by

        W <- argmin_V 1/2 ||V - W||^2 + lr strength R(V),

    which leaves channels that are exactly zero.

    - Gradients are clipped by a loop before they are stepped along, and so without the penalty's.
    - A closure that is given to ``step`` returns the loss with the penalty.
    - Optimisers that step after the same backward pass share one dR/dW, each its own parameters' part.
    - Frozen parameters, and those that no optimiser holds, stay as they are.
    - `GradScaler` works: nothing is added to a step that it skips. R is computed in float32 for half precision.
    - Blocks of the same network within each other add up.

    Args:
        network: the network that the graph was traced from, or one of the same structure; or a module that holds
            it, as `DistributedDataParallel`, a compiled network or a Lightning module does.
        graph: its channel graph.
        regularizer: a name of `espalier.REGULARIZERS`, or a penalty made for the graph.
        strength: what the penalty is multiplied by.
        proximal: take the penalty's proximal step after each step on the loss, in place of its subgradient. One
            optimiser must then hold all weights of the penalty, with one learning rate.
        weighting: ``sqrt_size`` multiplies each norm by the square root of its number of weights. For a name.
        with_norms: whether scale and shift of norms belong to a channel. For a name.
        ramp: steps of an optimiser over which the strength rises from zero, linearly.

    Raises:
        ConfigError: the graph is not that of the network, an argument is out of its range, the penalty has no
            proximal step, a parameter that an
            optimiser holds is no longer the network's, or the weights are spread over devices.

    Warns:
        UserWarning: no optimiser has stepped a parameter of the network when the block ends.
    """
    penalty = _penalty_of(graph, regularizer, weighting, with_norms)
    if not (0 <= strength < math.inf and 0 <= ramp < math.inf):
        raise ConfigError(f"strength and ramp must be finite and not negative, got {strength} and {ramp}")
    check_step(type(penalty), proximal)
    hooks = _Hooks(network_in(network, graph), penalty, strength, proximal, ramp)
    handles = [register_optimizer_step_pre_hook(hooks.before), register_optimizer_step_post_hook(hooks.after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if penalty.tensors and strength and not hooks.stepped:
        warnings.warn(
            "no optimiser has stepped a weight that the penalty is on, so that nothing was regularised: open the "
            "block around the training of the network that it is given",
            stacklevel=3,
        )


def _penalty_of(
    graph: ChannelGraph, regularizer: str | Regularizer, weighting: Weighting, with_norms: bool
) -> Regularizer:
    if isinstance(regularizer, str):
        if regularizer not in REGULARIZERS:
            raise ConfigError(f"regularizer must be one of {', '.join(REGULARIZERS)}, got {regularizer!r}")
        return REGULARIZERS[regularizer](graph, weighting, with_norms)
    if regularizer.graph.digest != graph.digest:
        raise ConfigError("the regulariser must be made for the graph that is given, and was made for another")
    if (weighting, with_norms) != ("none", False):
        raise ConfigError("weighting and with_norms go with the name of a regulariser; this one is made already")
    return regularizer


def network_in(module: nn.Module, graph: ChannelGraph) -> nn.Module:
    """The network that the graph is of: the module itself, or what it wraps."""
    counts = graph.param_terms.terms(graph.sizes[None].astype(np.float64))[0]
    wanted = dict(zip(graph.param_terms.names, np.rint(counts).astype(int).tolist(), strict=True))

    def fits(part: nn.Module) -> bool:
        own = dict(part.named_parameters())
        return {name: parameter.numel() for name, parameter in own.items()} == wanted and all(
            own[slot.tensor].shape[slot.dim] == len(slot.channels) for slot in graph.slots if slot.tensor in own
        )

    found: dict[str, nn.Module] = {path: part for path, part in module.named_modules() if fits(part)}
    if len(found) > 1:
        raise ConfigError(f"the graph fits more than one network in the module: give one of {', '.join(found)}")
    if not found:
        own = {name: parameter.numel() for name, parameter in module.named_parameters()}
        unlike = next((name for name in (*wanted, *own) if own.get(name) != wanted.get(name)), None)
        raise ConfigError(
            f"the graph must be that of the network: it has {wanted.get(unlike, 'no')} numbers in {unlike}, the "
            f"network {own.get(unlike, 'none')}; trace the network that is to be trained"
            if unlike
            else "the graph must be that of the network, whose weights have other shapes: trace it as it is"
        )
    return next(iter(found.values()))


class _Hooks:
    """What happens before and after every step of any optimiser.

    Attributes:
        stepped: whether an optimiser has stepped a weight that the penalty is on.
    """

    def __init__(
        self, network: nn.Module, regularizer: Regularizer, strength: float, proximal: bool, ramp: float
    ) -> None:
        self.stepped = False
        self._network, self._regularizer = network, regularizer
        self._strength, self._proximal, self._ramp = strength, proximal, ramp
        self._at_start = {name: network.get_parameter(name) for name in regularizer.tensors}
        regularizer.begin(self._at_start)
        self._steps: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
        self._running: list[tuple[FrameType, Collection[str]]] = []  # calls of step, and the weights that they step
        # For optimisers that have not stepped yet: the gradient that a weight had, and what it is to get.
        self._waiting: dict[str, tuple[Tensor | None, Tensor]] = {}
        self._value = torch.zeros(())  # strength x R when it was last computed

    def before(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Adds the subgradient, or has the closure add it, which computes the gradients within the step."""
        call = _calling_frame()
        weights = {name: self._parameter(name) for name in self._at_start}
        own = self._held_by(optimizer, weights)
        if self._running:  # a step within a step, as of an optimiser that wraps another; or one that raised
            ancestors = frames_above(call)
            self._running = [(frame, names) for frame, names in self._running if frame in ancestors]
            own -= {name for _, names in self._running for name in names}
        if not own:
            return None
        self._running.append((call, own))
        self._steps[optimizer] = self._steps.get(optimizer, 0) + 1
        strength = self._strength_at(self._steps[optimizer])
        if self._proximal or not strength:
            return None
        if "grad_scaler" in kwargs:
            raise ConfigError(
                f"{type(optimizer).__name__} unscales its gradients itself, inside a step that is given the "
                "GradScaler, so that no penalty can be added before: use proximal=True"
            )
        given = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(given):
            self._add(own, weights, strength, getattr(optimizer, "grad_scale", None))
            return None

        def closure() -> Any:
            loss = given()
            self._waiting = {}  # of an earlier backward pass
            if not self._add(own, weights, strength, None) or not isinstance(loss, Tensor | float):
                return loss
            return loss + self._value.to(loss) if isinstance(loss, Tensor) else loss + float(self._value)

        if len(args) > 1:
            return (args[0], closure, *args[2:]), kwargs
        return args, kwargs | {"closure": closure}

    def after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Takes the proximal step."""
        call = _calling_frame()
        within = len(self._running)
        self._running = [(frame, names) for frame, names in self._running if frame is not call]
        if not self._proximal or len(self._running) == within:
            return
        step = self._strength_at(self._steps[optimizer])
        found_inf = getattr(optimizer, "found_inf", None)  # told to optimisers that unscale gradients themselves
        if not step or self._without_gradients() or (found_inf is not None and bool(found_inf)):
            return
        weights = {name: self._parameter(name) for name in self._at_start}
        self._check(weights)
        rates = {
            name: float(group.get("lr", math.nan))
            for group in optimizer.param_groups
            for held in group["params"]
            for name, weight in weights.items()
            if held is weight and weight.requires_grad
        }
        left, distinct = next((name for name in weights if name not in rates), None), sorted(set(rates.values()))
        if left is not None or len(distinct) != 1 or math.isnan(distinct[0]):
            got = f"{left} is frozen or not in it" if left else f"its rates are {', '.join(map(str, distinct))}"
            raise ConfigError(
                "a proximal step needs all weights of the penalty in one optimiser with one learning rate: "
                f"{got}; use proximal=False"
            )
        step *= distinct[0]
        with torch.no_grad():
            wide = {name: widened(weight.detach()) for name, weight in weights.items()}
            self._regularizer.proximal_step(wide, step)
            for name, weight in weights.items():
                if wide[name].dtype != weight.dtype:
                    weight.copy_(wide[name])
        self.stepped = True

    def _strength_at(self, step: int) -> float:
        """Of a step of an optimiser, counted from 1."""
        return self._strength * min(1.0, step / self._ramp) if self._ramp else self._strength

    def _parameter(self, name: str) -> nn.Parameter:
        try:
            return self._network.get_parameter(name)
        except AttributeError:
            raise ConfigError(
                f"{name} is no longer a parameter of the network: change networks before the block opens"
            ) from None

    def _held_by(self, optimizer: Optimizer, weights: dict[str, nn.Parameter]) -> set[str]:
        """Names of the weights that an optimiser steps."""
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        names = set()
        for name, weight in weights.items():
            at_start = self._at_start[name]
            if weight is not at_start and id(at_start) in held:
                raise ConfigError(
                    f"{name} of the network was replaced while the block was open, and the optimiser steps the old "
                    "one: make the optimiser once the network is as it will be"
                )
            if id(weight) in held:
                names.add(name)
        return names

    def _without_gradients(self) -> bool:
        """Whether there was no backward pass, so that the optimiser steps nothing."""
        return all(parameter.grad is None for parameter in self._network.parameters())

    def _add(
        self, names: Collection[str], weights: dict[str, nn.Parameter], strength: float, scale: Tensor | None
    ) -> bool:
        """Adds to the gradients of these weights, which are multiplied by `scale`; False where none has any."""
        if self._without_gradients():
            return False
        stepped = [name for name in weights if name in names and weights[name].requires_grad]
        if any(name not in self._waiting or self._waiting[name][0] is not weights[name].grad for name in stepped):
            self._differentiate(weights, strength)
        for name in stepped:
            weight, gradient = weights[name], self._waiting.pop(name)[1]
            with torch.no_grad():
                if scale is not None:
                    gradient = gradient * scale.to(gradient.device)
                if weight.grad is None:
                    weight.grad = torch.empty_like(weight).copy_(gradient)  # laid out as the weight is
                elif weight.grad.is_sparse:
                    weight.grad = gradient + weight.grad
                else:
                    weight.grad.add_(gradient)
        self.stepped |= bool(stepped)
        return True

    def _differentiate(self, weights: dict[str, nn.Parameter], strength: float) -> None:
        """Computes strength x R, and its gradient for every weight that is not frozen."""
        self._check(weights)
        wanted = [name for name, weight in weights.items() if weight.requires_grad]
        with torch.enable_grad():
            value = strength * self._regularizer(weights)
            gradients = torch.autograd.grad(value, [weights[name] for name in wanted])
        self._value = value.detach()
        self._waiting = {name: (weights[name].grad, g) for name, g in zip(wanted, gradients, strict=True)}

    def _check(self, weights: dict[str, nn.Parameter]) -> None:
        """Whether the penalty can be computed of the weights where they are."""
        devices = sorted({str(weight.device) for weight in weights.values()})
        if len(devices) > 1:
            raise ConfigError(f"the weights of the penalty must lie on one device, got {', '.join(devices)}")
        sharded = next((name for name, weight in weights.items() if hasattr(weight, "device_mesh")), None)
        if sharded is not None:
            raise ConfigError(f"the weights of the penalty must be whole on each process: {sharded} is sharded")


def _calling_frame() -> FrameType:
    """The call of an optimiser's step that runs the hook which asks: the same object before and after."""
    return sys._getframe(2)


def frames_above(frame: FrameType | None) -> list[FrameType]:
    """A frame and its callers."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames
