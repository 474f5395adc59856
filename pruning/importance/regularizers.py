"""Regularisers over the groups of a ChannelGraph: penalties that make whole channels small.

Notation, beside that of `regularizer`:
    g          the group that c belongs to; p its size
    F_cm       the filter of channel c in the m-th of M_c layers that write it

    group lasso   R(W) = sum_c n_c                                  GL
    GrOWL         R(W) = sum_g sum_i theta_i n_[i],g                n_[1] >= n_[2] >= ... within a group,
                  theta_i = 1 + (p - i) / max(1, p - 1)             from 2 for the greatest to 1 for the least
    group L1/2    R(W) = sum_c sqrt(n_c)
    cross-layer   R(W) = sum_c M_c (mean_m ||F_cm|| + sd_m ||F_cm||)
    BN scales     R(W) = sum_c |gamma_c|

The *out-in-channel* forms take every slice of a channel, the *separated* ones those that write it. GrOWL has
linearly falling weights (OSCAR, Bondell and Reich 2008). `selective` holds penalties on channels that are to go.

Training adds strength x R to the loss and takes subgradients, or steps along the loss alone and then takes
`proximal_step`, which makes channels exactly zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats
from espalier.pruning.graph.groups import SCALE_ROLES, WEIGHT_ROLES, WRITING_ROLES
from espalier.pruning.importance.energy import ChannelNorms, widened
from espalier.pruning.importance.regularizer import GroupNorms, Regularizer, Weighting, check_step
from espalier.pruning.importance.selective import AutoBalanced, GrowingRegularization, SelectiveWeightDecay
from espalier.pruning.paper import Paper


class _Lasso(GroupNorms):
    def combine(self, norms: Tensor) -> Tensor:
        """Their sum."""
        return norms.sum()

    def shrink(self, norms: Floats, step: Floats, q: Floats) -> Floats:
        """Each less its step, and not below zero."""
        shrunk: Floats = np.maximum(norms - step, 0.0)
        return shrunk


class _GrOWL(GroupNorms):
    """Ordered weights within each group."""

    def __init__(self, graph: ChannelGraph, weighting: Weighting = "none", with_norms: bool = False) -> None:
        super().__init__(graph, weighting, with_norms)
        place = np.arange(graph.n_channels) - graph.offsets[graph.group_of]
        last = np.maximum(graph.sizes[graph.group_of] - 1, 1)
        self._theta = 2.0 - place / last  # (n_channels,) by place in its group, the greatest norm first
        self._group_of = torch.from_numpy(graph.group_of.copy())

    def combine(self, norms: Tensor) -> Tensor:
        """Sorted within each group, weighted from the greatest to the least."""
        order = norms.detach().argsort(descending=True, stable=True)
        order = order[self._group_of.to(order.device)[order].argsort(stable=True)]  # group after group
        theta = torch.from_numpy(self._theta).to(norms)
        return (norms[order] * theta).sum()

    def shrink(self, norms: Floats, step: Floats, q: Floats) -> Floats:
        """Per group the proximal point of the ordered weighted norm (Zeng and Figueiredo 2014, arXiv 1409.4271)."""
        shrunk = np.zeros_like(norms)
        for start, end in zip(self.graph.offsets[:-1], self.graph.offsets[1:], strict=True):
            own = norms[start:end]
            if not own.any():
                continue
            order = np.argsort(-own * step[start:end], kind="stable")
            falling = _falling(own[order] - step[start:end][order] * self._theta[start:end])
            shrunk[start:end][order] = np.maximum(falling, 0.0)
        return shrunk


class OICSRGroupLasso(_Lasso):
    """OICSR-GL: the sum over channels of the norm of the whole out-in-channel."""

    paper = Paper("Li et al.", "CVPR 2019", "arXiv 1905.11664")


class SeparatedGroupLasso(_Lasso):
    """Separated group lasso: the norm of each filter alone, the baseline that OICSR is measured against."""

    paper = Paper("Wen et al.", "NeurIPS 2016", "arXiv 1608.03665")
    roles = WRITING_ROLES


class OICSRGrOWL(_GrOWL):
    """OICSR-GrOWL: ordered weighted norms of the out-in-channels of a group."""

    paper = Paper("Li et al.", "CVPR 2019", "arXiv 1905.11664")


class SeparatedGrOWL(_GrOWL):
    """GrOWL over filters alone."""

    paper = Paper("Zhang et al.", "ICLR 2018")
    roles = WRITING_ROLES


class GroupL12(GroupNorms):
    """Group L1/2: the sum of the square roots of the norms of filters.

    It leaves fewer channels than the group lasso. Its slope grows without bound as a channel nears zero, where
    subgradient steps overshoot. The proximal step, half thresholding, does not (Xu et al. 2012,
    doi 10.1109/TNNLS.2012.2197412).
    """

    roles = WRITING_ROLES
    paper = Paper("Alemu et al.", "IEEE Access 2019", "doi 10.1109/ACCESS.2018.2890740")

    def combine(self, norms: Tensor) -> Tensor:
        """Sum of their roots."""
        return _root(norms).sum()

    def shrink(self, norms: Floats, step: Floats, q: Floats) -> Floats:
        """The greatest root of m - n + s / (2 sqrt(m)) = 0, or zero where that is no worse."""
        scale = step / np.sqrt(q)
        alive = norms > 1.5 * scale ** (2 / 3)
        third = np.where(alive, norms, 1.0) / 3
        angle = np.arccos(np.minimum(np.where(alive, scale, 0.0) / 4 * third**-1.5, 1.0))
        found: Floats = np.where(alive, 2 * third * (1 + np.cos(2 * (np.pi - angle) / 3)), 0.0)
        return found


class CrossLayer(Regularizer):
    """Variance-aware cross-layer: mean and spread of the filters' norms over the layers that write a channel.

    The spread keeps one layer from holding on to a channel that the others have given up. After the paper, which
    takes first- and second-order statistics of the layers; here both count alike. With one layer this is the
    separated group lasso.
    """

    paper = Paper("Gao et al.", "ICCV Workshops 2019", "arXiv 1909.04485")
    subgradients_only = "its proximal step is not known"

    def __init__(self, graph: ChannelGraph, weighting: Weighting = "none", with_norms: bool = False) -> None:
        super().__init__(graph, weighting, with_norms)
        tensors = ChannelNorms(graph, WRITING_ROLES).tensors
        self._layers = [ChannelNorms(graph, WRITING_ROLES, tensors=(name,)) for name in tensors]
        self._counts: Tensor | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the parameters that the penalty is on."""
        return tuple(name for layer in self._layers for name in layer.tensors)

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Over channels, the number of layers times mean and standard deviation of the norms."""
        squares = torch.stack([layer(weights) for layer in self._layers])  # (layers, n_channels)
        if self._counts is None or self._counts.device != squares.device:
            ones = {name: torch.ones_like(weights[name], requires_grad=False) for name in self.tensors}
            self._counts = torch.stack([layer(ones) for layer in self._layers])  # weights of each filter
        counts = self._counts.to(squares)
        writes = (counts > 0).to(squares)
        norms = _root(squares) * (counts.sqrt() if self.weighting == "sqrt_size" else 1)
        layers = writes.sum(0).clamp(min=1)
        mean = norms.sum(0) / layers
        spread = _root(((norms - mean) * writes).square().sum(0) / layers)
        return (layers * (mean + spread)).sum()

    def proximal_step(self, weights: Mapping[str, Tensor], step: float) -> None:
        """Refuses."""
        check_step(type(self), True)


class BatchNormL1(Regularizer):
    """L1 on the scales of norms: network slimming."""

    paper = Paper("Liu et al.", "ICCV 2017", "arXiv 1708.06519")

    def __init__(self, graph: ChannelGraph, weighting: Weighting = "none", with_norms: bool = False) -> None:
        super().__init__(graph, weighting, with_norms)
        self._scales = ChannelNorms(graph, SCALE_ROLES)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the parameters that the penalty is on."""
        return self._scales.tensors

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Sum of the absolute scales of prunable channels."""
        return self._scales.sums({name: widened(weights[name]).abs() for name in self._scales.tensors}).sum()

    def proximal_step(self, weights: Mapping[str, Tensor], step: float) -> None:
        """Soft thresholding of the scales of prunable channels."""
        with torch.no_grad():
            for slot in self.graph.slots:
                if slot.role == "norm":
                    scale = weights[slot.tensor]
                    shrunk = scale.sign() * (scale.abs() - step).clamp(min=0)
                    scale.copy_(torch.where((slot.channels >= 0).any(1).to(scale.device), shrunk, scale))


class L2(Regularizer):
    """Half the sum of squares of all weights that write or read prunable channels: no structure at all."""

    def __init__(self, graph: ChannelGraph, weighting: Weighting = "none", with_norms: bool = False) -> None:
        super().__init__(graph, weighting, with_norms)
        self._tensors = ChannelNorms(graph, WEIGHT_ROLES).tensors

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the parameters that the penalty is on."""
        return self._tensors

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """1/2 ||W||^2."""
        return 0.5 * torch.stack([widened(weights[name]).square().sum() for name in self._tensors]).sum()

    def proximal_step(self, weights: Mapping[str, Tensor], step: float) -> None:
        """W / (1 + step)."""
        with torch.no_grad():
            for name in self._tensors:
                weights[name].div_(1 + step)


class NoRegularizer(Regularizer):
    """No penalty: weight decay alone."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the parameters that the penalty is on."""
        return ()

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Zero."""
        return torch.zeros(())

    def proximal_step(self, weights: Mapping[str, Tensor], step: float) -> None:
        """Changes nothing."""


def _root(squares: Tensor) -> Tensor:
    """Square root, of slope zero at zero."""
    alive = squares > 0
    return torch.where(alive, squares, 1.0).sqrt().where(alive, 0.0)


def _falling(values: Floats) -> Floats:
    """The nearest sequence, in squares, that never rises: pool adjacent violators."""
    means: list[float] = []
    counts: list[int] = []
    for value in values.tolist():
        means.append(value)
        counts.append(1)
        while len(means) > 1 and means[-1] > means[-2]:
            total = means[-1] * counts[-1] + means[-2] * counts[-2]
            means.pop()
            counts[-2:] = [counts[-2] + counts[-1]]
            means[-1] = total / counts[-1]
    return np.repeat(means, counts)


REGULARIZERS: dict[str, type[Regularizer]] = {
    "oicsr_gl": OICSRGroupLasso,
    "oicsr_growl": OICSRGrOWL,
    "separated_gl": SeparatedGroupLasso,
    "separated_growl": SeparatedGrOWL,
    "group_l12": GroupL12,
    "cross_layer": CrossLayer,
    "selective_decay": SelectiveWeightDecay,
    "growing": GrowingRegularization,
    "auto_balanced": AutoBalanced,
    "bn_l1": BatchNormL1,
    "l2": L2,
    "none": NoRegularizer,
}
"""Name in a config -> class."""
