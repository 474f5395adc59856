"""Optimisers and schedules by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

OptimizerName = Literal["sgd", "adam", "adamw", "lamb"]
ScheduleName = Literal["cosine", "step", "constant"]


class Lamb(torch.optim.Optimizer):
    """Adam with decoupled weight decay, each tensor's step scaled to the tensor's norm (arXiv 1904.00962).

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the averages of gradients and of their squares.
        eps: added to the root of the latter.
        weight_decay: share of the weights that is added to the direction.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes a step along the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)
        return loss

    def _step(self, weight: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state, (one, two) = self.state[weight], group["betas"]
        if not state:
            state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(weight)}
            state["exp_avg_sq"] = torch.zeros_like(weight)
        state["step"] += 1
        step = float(state["step"])
        state["exp_avg"].lerp_(gradient, 1 - one)
        state["exp_avg_sq"].mul_(two).addcmul_(gradient, gradient, value=1 - two)
        mean, square = state["exp_avg"] / (1 - one**step), state["exp_avg_sq"] / (1 - two**step)
        direction = mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * weight
        size, length = weight.norm(), direction.norm()
        ratio = torch.where((size > 0) & (length > 0), size / length, 1.0)
        weight.sub_(group["lr"] * ratio * direction)


def optimizer(name: OptimizerName, params: Iterable[Any], *, lr: float, momentum: float) -> torch.optim.Optimizer:
    """An optimiser.

    Args:
        name: which.
        params: groups of parameters, each with its weight decay.
        lr: learning rate.
        momentum: of SGD, Nesterov's; the first beta of the others.
    """
    if name == "sgd":
        return torch.optim.SGD(params, lr=lr, momentum=momentum, nesterov=momentum > 0)
    betas = momentum, 0.999
    if name == "lamb":
        return Lamb(params, lr=lr, betas=betas)
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(params, lr=lr, betas=betas)


def decay(name: ScheduleName, done: float) -> float:
    """What is left of the learning rate when so much of the training behind the warm-up is done.

    Args:
        name: ``cosine`` falls to zero, ``step`` to a tenth at a half and to a hundredth at three quarters.
        done: share, from 0 to 1.
    """
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 0.1 ** ((done >= 0.5) + (done >= 0.75)) if name == "step" else 1.0
