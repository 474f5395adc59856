"""Regularisers over the groups of a ChannelGraph, added to the loss while training.

Each is a callable: parameters by name -> penalty, a scalar that the strength multiplies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from espalier.pruning.energy import ChannelNorms
from espalier.pruning.graph import ChannelGraph


class Regularizer(ABC):
    """A penalty that makes whole channels small, for the networks that one graph describes."""

    @abstractmethod
    def __init__(self, graph: ChannelGraph) -> None: ...

    @abstractmethod
    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Penalty, a scalar, of parameters by name."""


class OICSRGroupLasso(Regularizer):
    """OICSR-GL: the sum over channels of the norm of the whole out-in-channel.

        R(W) = sum_c || W_out[c] (+) W_in[:, c] ||_2

    where (+) concatenates every slice that writes or reads channel c (Li et al., CVPR 2019, arXiv 1905.11664).
    At a channel of norm 0 the subgradient 0 is taken.
    """

    separated = False

    def __init__(self, graph: ChannelGraph) -> None:
        self._norms = ChannelNorms(graph, separated=self.separated)

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Sum of the group norms."""
        squares = self._norms(weights)
        alive = squares > 0
        return torch.where(alive, squares, 1.0).sqrt().where(alive, 0.0).sum()


class SeparatedGroupLasso(OICSRGroupLasso):
    """Separated group lasso: the norm of each filter alone, the baseline that OICSR is measured against."""

    separated = True


class NoRegularizer(Regularizer):
    """No penalty: weight decay alone."""

    def __init__(self, graph: ChannelGraph) -> None: ...

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Zero."""
        return torch.zeros(())


REGULARIZERS: dict[str, type[Regularizer]] = {
    "oicsr_gl": OICSRGroupLasso,
    "separated_gl": SeparatedGroupLasso,
    "none": NoRegularizer,
}
"""Name in a config -> class."""
