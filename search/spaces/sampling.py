"""Policies drawn to be compared: near greedy and uniform pruning, and far from both."""

from __future__ import annotations

import itertools

import numpy as np

from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.space import Space


def draw_policies(space: Space, count: int, seed: int) -> list[Candidate]:
    """Different candidates: greedy and uniform pruning, and vectors nearer to or farther from one of these."""
    generator = np.random.default_rng(seed)
    origins = space.greedy_params() + space.uniform_params()
    found = dict.fromkeys(space.decode(params) for params in origins)
    ranges = space.distributions()
    for number in itertools.count():
        if len(found) >= count or number > 100 * count:
            return list(found)[:count]
        origin, far = origins[generator.integers(len(origins))], (0.1, 0.2, 0.4)[number % 3]
        params = {}
        for name, distribution in ranges.items():
            low, high = distribution.low, distribution.high  # type: ignore[attr-defined]
            value = np.clip(origin[name] + far * (high - low) * generator.standard_normal(), low, high)
            params[name] = round(value) if isinstance(low, int) else float(value)
        found.setdefault(space.decode(params))
    raise AssertionError("unreachable")
