"""Rungs of the ladder, and strengths that are found while it is trained, by what each costs the whole network.

That is told by a network trained as long without a penalty: public weights have often seen the held-out examples,
and any training, however weak its penalty, then seems to cost the dense network.

The penalty's own scale says where to begin: a group of weights w under a penalty R, followed along -dR/dw alone,
reaches R = 0 at about the strength R / (|dR/dw|^2 * sum of the learning rates). A tenth of that hardly hurts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from espalier.errors import EspalierError
from espalier.pruning.importance.regularizer import Regularizer
from espalier.search.spaces.metric import Metric

MOST = 8
"""Trainings with a penalty."""
FACTOR = 3.0
"""From one strength to the next, as long as the network bears it."""
NEAR = 1.2
"""Ratio of a strength that is too great to one that is not, below which none between is tried."""
CLOSE = 0.75
"""Share of the greatest cost from which a rung is the last."""


@dataclass(frozen=True)
class Rung:
    """One trained network of the ladder.

    Attributes:
        strength: of the regularisation it was trained with.
        model: the network, in eval mode.
        digest: of its tensors.
        value: by the task's metric on the held-out examples.
    """

    strength: float
    model: nn.Module
    digest: str
    value: float


def rungs_by_cost(
    dense: Rung,
    trained: Callable[[int, float, Rung], Rung],
    metric: Metric,
    costs: Sequence[float],
    first: float,
) -> list[tuple[Rung, float]]:
    """The ladder, from strength 0 up: of each cost the strongest rung that does not exceed it, and what it costs.

    The dense network is trained without a penalty first, as long as a rung: costs are told by it. Strengths then
    rise threefold until one exceeds the greatest cost; then the gap below that one is halved.

    Args:
        dense: the rung of strength 0, from which the first is trained on.
        trained: the rung of a number, counted from 0, and a strength, trained on from another one.
        metric: of the rungs' values.
        costs: rising; shares of what the network without a penalty is worth, above what needs no network.
        first: strength to begin with.

    Raises:
        EspalierError: the network without a penalty is worth nothing that can be compared.
    """
    plain = trained(0, 0.0, dense)
    if not math.isfinite(plain.value):
        raise EspalierError(
            f"trained without a penalty, the network has a held-out {metric.words(plain.value)}: strengths cannot "
            "be found"
        )
    borne, strength, refused = [dense], first, math.inf
    for number in range(1, 1 + MOST):
        rung = trained(number, float(f"{strength:.3g}"), borne[-1])
        cost = cost_of(rung, plain, metric)
        if cost <= costs[-1]:
            borne.append(rung)
            if cost >= CLOSE * costs[-1]:
                break
        else:
            refused = rung.strength
        least = borne[-1].strength
        if not least:
            strength = refused / FACTOR**2
        elif math.isinf(refused):
            strength = least * FACTOR
        elif refused < NEAR * least:
            break
        else:
            strength = math.sqrt(least * refused)
    kept = [(dense, 0.0)]
    for most in costs:
        within = [dense] + [rung for rung in borne[1:] if cost_of(rung, plain, metric) <= most]
        strongest = max(within, key=lambda rung: rung.strength)
        if strongest.strength > kept[-1][0].strength:
            kept.append((strongest, cost_of(strongest, plain, metric)))
    return kept


def cost_of(rung: Rung, plain: Rung, metric: Metric) -> float:
    """Share of what another network is worth, above what needs none, that a rung has lost."""
    worth = abs(plain.value - (metric.floor or 0.0))
    return (metric.value(plain.value) - metric.value(rung.value)) / (worth or 1.0)


def first_strength(network: nn.Module, regularizer: Regularizer, steps: int, lr: float) -> float:
    """A tenth of the strength that would drive every group to zero, were it not for the loss.

    Args:
        network: to be trained.
        regularizer: of its groups.
        steps: of the training.
        lr: greatest learning rate; half of it is taken for the mean.
    """
    plain = torch.contiguous_format  # sums of others come out a little different
    weights = {name: tensor.detach().clone(memory_format=plain) for name, tensor in network.named_parameters()}
    leaves = {name: tensor.requires_grad_() for name, tensor in weights.items() if tensor.is_floating_point()}
    regularizer.begin(weights)
    with torch.enable_grad():
        penalty = regularizer(weights)
        slopes = torch.autograd.grad(penalty, list(leaves.values()), allow_unused=True)
    steep = sum(float(slope.double().square().sum()) for slope in slopes if slope is not None)
    return 0.1 * float(penalty.detach()) / (steep * max(1, steps) * lr / 2) if steep else 1e-4
