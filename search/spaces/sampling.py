"""Policies drawn to be compared: near greedy and uniform pruning, and far from both."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.space import Space


def draw_policies(space: Space, count: int, seed: int) -> list[Candidate]:
    """Different candidates: greedy and uniform pruning, and vectors nearer to or farther from one of these."""
    generator = np.random.default_rng(seed)
    origins = space.greedy_params() + space.uniform_params()
    found = dict.fromkeys(space.decode(params) for params in origins)
    for number in itertools.count():
        if len(found) >= count or number > 100 * count:
            return list(found)[:count]
        origin, far = origins[generator.integers(len(origins))], (0.1, 0.2, 0.4)[number % 3]
        found.setdefault(space.decode(near(space, origin, far, generator)))
    raise AssertionError("unreachable")


def near(space: Space, origin: Mapping[str, Any], far: float, generator: np.random.Generator) -> dict[str, Any]:
    """A vector drawn around another one; `far` is the standard deviation, as a share of every range."""
    params = {}
    for name, distribution in space.distributions().items():
        low, high = distribution.low, distribution.high  # type: ignore[attr-defined]
        value = np.clip(origin[name] + far * (high - low) * generator.standard_normal(), low, high)
        params[name] = round(value) if isinstance(low, int) else float(value)
    return params
