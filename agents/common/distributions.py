"""The normal distribution cut off at [-1, 1], where actions live: what is drawn is what is carried out.

Clipping draws instead would pile them up at the ends, with a likelihood there that is not theirs.

Notation:
    m, s       mean and standard deviation before the cut
    a, b       (-1 - m) / s, (1 - m) / s
    Z          Phi(b) - Phi(a), the mass that the cut leaves
"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor
from torch.special import ndtr, ndtri

_TINY = 1e-12
NORMAL = NormalDist()


class TruncatedNormal:
    """Independent numbers in [-1, 1].

    Args:
        mean: (..., d) m, which may lie outside.
        std: broadcastable, s.
        cells: (d,) half the length of the cells that a number is rounded to the middle of, 0 where it is real; the
            likelihood of a rounded number is its cell's mass.
    """

    def __init__(self, mean: Tensor, std: Tensor, cells: Tensor | None = None) -> None:
        self.mean, self.std = mean.double(), std.double().expand_as(mean)
        self._cells = None if cells is None else cells.double()
        self._low, self._high = self._standard(-1.0), self._standard(1.0)
        self._mass = (ndtr(self._high) - ndtr(self._low)).clamp(min=_TINY)

    def quantile(self, share: Tensor) -> Tensor:
        """The number below which `share` in (0, 1) of the mass lies, (..., d); of uniform shares, a draw."""
        point = ndtri((ndtr(self._low) + share * self._mass).clamp(_TINY, 1 - _TINY))
        drawn: Tensor = (self.mean + self.std * point).clamp(-1, 1).float()
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-likelihood of every number, (..., d)."""
        value = value.double()
        point = (value - self.mean) / self.std
        density = -0.5 * point**2 - self.std.log() - 0.5 * math.log(2 * math.pi)
        if self._cells is not None and bool(self._cells.any()):
            low, high = ((value + side * self._cells - self.mean) / self.std for side in (-1, 1))
            cell = (ndtr(torch.minimum(high, self._high)) - ndtr(torch.maximum(low, self._low))).clamp(min=_TINY)
            density = torch.where(self._cells > 0, cell.log(), density)
        found: Tensor = (density - self._mass.log()).float()
        return found

    def entropy(self) -> Tensor:
        """Differential entropy of every number, rounded ones taken as real, (..., d)."""
        slope = self._low * _phi(self._low) - self._high * _phi(self._high)
        found: Tensor = (
            0.5 * math.log(2 * math.pi * math.e) + self.std.log() + self._mass.log() + slope / (2 * self._mass)
        )
        return found.float()

    def divergence(self, other: TruncatedNormal) -> Tensor:
        """Kullback-Leibler divergence from another, of the distributions before the cut, (..., d)."""
        ratio = (self.std / other.std) ** 2
        distance = ((self.mean - other.mean) / other.std) ** 2
        found: Tensor = (ratio + distance - 1 - ratio.log()) / 2
        return found.float()

    def _standard(self, end: float) -> Tensor:
        return (end - self.mean) / self.std


def truncated_draw(mean: float, std: float, share: float) -> float:
    """`TruncatedNormal.quantile` of one number with a mean in [-1, 1], for agents that draw one after another."""
    low, high = NORMAL.cdf((-1 - mean) / std), NORMAL.cdf((1 - mean) / std)
    point = NORMAL.inv_cdf(min(max(low + share * (high - low), _TINY), 1 - _TINY))
    return min(max(mean + std * point, -1.0), 1.0)


def _phi(point: Tensor) -> Tensor:
    return torch.exp(-0.5 * point**2) / math.sqrt(2 * math.pi)
