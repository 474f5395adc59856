"""Between the parameters of a study and the vectors that agents emit, in [-1, 1] whatever the ranges are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from torch import Tensor

from espalier.agents.actor_critics.actor_critic import Axis, Problem
from espalier.agents.graph.network_graph import NetworkData

Ranges = Mapping[str, FloatDistribution | IntDistribution]
"""Parameter -> range, in the order of the vector."""


def problem_of(
    data: NetworkData, axes: Mapping[str, Axis], space: Ranges, start: Mapping[str, Any] | None = None
) -> Problem:
    """The problem of searching a space.

    Args:
        data: the network graph.
        axes: of the parameters that move groups, by name.
        space: what is searched.
        start: parameters where proposals begin; the middles of their ranges by default.
    """
    begin = torch.zeros(len(space)) if start is None else vector_of(space, start)
    found = []
    for name, at in zip(space, begin.tolist(), strict=True):
        known = axes.get(name, Axis((), name))
        found.append(Axis(known.nodes, known.output, _cell(space[name]), at))
    return Problem(data, tuple(found))


def searched(space: Mapping[str, BaseDistribution]) -> Ranges:
    """The numbers of a space that can change."""
    return {
        name: found
        for name, found in space.items()
        if isinstance(found, FloatDistribution | IntDistribution) and not found.single()
    }


def _middle(found: FloatDistribution | IntDistribution) -> tuple[float, float]:
    """Middle and half length of a range, of logarithms where it says so; whole numbers have equal cells."""
    low, high = float(found.low), float(found.high)
    if isinstance(found, IntDistribution):
        low, high = low - 0.5, high + 0.5
    if found.log:
        low, high = float(np.log(low)), float(np.log(high))
    return (low + high) / 2, (high - low) / 2


def _cell(found: FloatDistribution | IntDistribution) -> float:
    whole = isinstance(found, IntDistribution) and not found.log
    return 1 / (found.high - found.low + 1) if whole else 0.0


def values_of(space: Ranges, vector: Tensor) -> dict[str, Any]:
    """What a vector (d,) in [-1, 1] means."""
    values: dict[str, Any] = {}
    for (name, found), number in zip(space.items(), vector.tolist(), strict=True):
        middle, half = _middle(found)
        value = middle + half * min(max(number, -1.0), 1.0)
        value = float(np.exp(value)) if found.log else value
        if found.step is not None:
            value = found.low + round((value - found.low) / found.step) * found.step
        whole = isinstance(found, IntDistribution)
        values[name] = type(found.low)(min(max(round(value) if whole else value, found.low), found.high))
    return values


def vector_of(space: Ranges, params: Mapping[str, Any]) -> Tensor:
    """The vector (d,) of values."""
    numbers = []
    for name, found in space.items():
        middle, half = _middle(found)
        value = float(params[name])
        numbers.append(((np.log(value) if found.log else value) - middle) / half)
    return torch.tensor(numbers, dtype=torch.float32).clamp(-1, 1)
