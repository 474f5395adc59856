"""Vectors of a space as points of the unit cube, where samplers move.

Notation:
    d          numbers of the space's vector that can change
    u          (d,) a point; whole numbers lie in the middles of equal cells
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from espalier.pruning.graph.costs import Floats


class Cube:
    """The unit cube of some ranges.

    Args:
        ranges: name -> range of every number; those of one single value have no axis.

    Attributes:
        ranges: name -> range of every axis, (d).
        cells: (d,) length of a whole number's cell, 0 where the number is real.
    """

    def __init__(self, ranges: Mapping[str, BaseDistribution]) -> None:
        numbers = {n: r for n, r in ranges.items() if isinstance(r, FloatDistribution | IntDistribution)}
        self._single = {name: found.low for name, found in numbers.items() if found.single()}
        self.ranges = {name: found for name, found in numbers.items() if not found.single()}
        self._low = np.array([found.low for found in self.ranges.values()], dtype=np.float64)
        self._span = np.array([found.high for found in self.ranges.values()], dtype=np.float64) - self._low
        whole = np.array([isinstance(found, IntDistribution) for found in self.ranges.values()], dtype=np.bool_)
        self.cells: Floats = np.where(whole, 1 / (self._span + 1), 0.0)

    @property
    def dim(self) -> int:
        """Numbers of a vector: D."""
        return len(self.ranges)

    def encode(self, params: Mapping[str, Any]) -> Floats:
        """The point of a vector, (d,)."""
        values = np.array([params[name] for name in self.ranges], dtype=np.float64)
        point: Floats = (values - self._low) / self._span * (1 - self.cells) + self.cells / 2
        return point

    def decode(self, u: Floats) -> dict[str, Any]:
        """The vector of a point; what lies outside of the cube is moved to its surface."""
        params: dict[str, Any] = dict(self._single)
        for (name, found), share in zip(self.ranges.items(), np.clip(u, 0, 1).tolist(), strict=True):
            if isinstance(found, IntDistribution):
                cells = found.high - found.low + 1
                params[name] = found.low + min(int(share * cells), cells - 1)
            else:
                params[name] = min(found.low + share * (found.high - found.low), found.high)
        return params

    def mutated(self, u: Floats, which: npt.NDArray[np.bool_], step: float, rng: np.random.Generator) -> Floats:
        """Moves some of the numbers by normal noise, within the cube.

        Args:
            u: (d,) from where.
            which: (d,) the numbers to move.
            step: standard deviation; for whole numbers three quarters of a cell at the least.
            rng: of the noise.
        """
        noise = rng.standard_normal(self.dim) * np.maximum(step, 0.75 * self.cells)
        moved: Floats = np.clip(np.where(which, u + noise, u), 0, 1)
        return moved

    def some(self, rate: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        """Which numbers to move, (d,): each with probability `rate`, but one at the least."""
        which = rng.random(self.dim) < rate
        which[rng.integers(self.dim)] |= not which.any()
        return which

    def settled(self, u: Floats) -> Floats:
        """The point that a trial at u has in the record: within the cube, whole numbers in the middles of cells."""
        return self.encode(self.decode(u))
