"""Regularisers over the groups of a ChannelGraph: penalties that make whole channels small.

Notation:
    c          a prunable channel, one of n_channels
    W_c        its slices, stacked: those that write it and, out-in-channel, those that read it
    q_c        weight of its norm: 1, or the square root of the number of weights in W_c
    n_c        q_c ||W_c||_2
    g          the group that c belongs to; p its size

    group lasso   R(W) = sum_c n_c                                  GL
    GrOWL         R(W) = sum_g sum_i theta_i n_[i],g                n_[1] >= n_[2] >= ... within a group,
                  theta_i = 1 + (p - i) / max(1, p - 1)             from 2 for the greatest to 1 for the least
    BN scales     R(W) = sum_c |gamma_c|

The *out-in-channel* forms (OICSR: Li et al., CVPR 2019, arXiv 1905.11664) take every slice of a channel, the
*separated* ones those that write it. GrOWL: Zhang et al., ICLR 2018, with linearly falling weights (OSCAR, Bondell
and Reich 2008). L1 on BN scales is network slimming (Liu et al., ICCV 2017, arXiv 1708.06519).

Training adds strength x R to the loss and takes subgradients, or steps along the loss alone and then takes
`proximal_step`, which makes channels exactly zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import SCALE_ROLES, WEIGHT_ROLES, WRITING_ROLES, ChannelGraph, Role
from espalier.pruning.graph.costs import Floats, Ints
from espalier.pruning.importance.energy import ChannelNorms, widened

Weighting = Literal["none", "sqrt_size"]
"""What the norm of a channel is multiplied by: nothing, or the square root of its number of weights."""


class Regularizer(ABC):
    """A penalty on the weights of the networks that one graph describes.

    Args:
        graph: the groups.
        weighting: weights of the channels' norms.
        with_norms: whether scale and shift of batch norms belong to a channel.
    """

    def __init__(self, graph: ChannelGraph, weighting: Weighting = "none", with_norms: bool = False) -> None:
        if weighting not in ("none", "sqrt_size"):
            raise ConfigError(f"weighting must be none or sqrt_size, got {weighting!r}")
        self.graph, self.weighting, self.with_norms = graph, weighting, with_norms

    @property
    @abstractmethod
    def tensors(self) -> tuple[str, ...]:
        """Names of the parameters that the penalty is on."""

    @abstractmethod
    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Penalty, a scalar, of parameters by name; differentiable, the subgradient 0 being taken at zero."""

    @abstractmethod
    def proximal_step(self, weights: Mapping[str, Tensor], step: float) -> None:
        """Replaces V by argmin_W 1/2 ||W - V||^2 + step R(W), in place.

        Args:
            weights: parameters by name.
            step: learning rate x strength.
        """


class _GroupNorms(Regularizer):
    """Penalties on the norms of channels."""

    roles: tuple[Role, ...] = WEIGHT_ROLES
    ITERATIONS = 100
    TOLERANCE = 1e-6

    def __init__(self, graph: ChannelGraph, weighting: Weighting = "none", with_norms: bool = False) -> None:
        super().__init__(graph, weighting, with_norms)
        roles = (*self.roles, "norm", "shift") if with_norms else self.roles
        self._norms = ChannelNorms(graph, roles)
        self._colours = [ChannelNorms(graph, roles, groups) for groups in _disjoint(graph, roles)]
        self._q: Tensor | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the parameters that the penalty is on."""
        return self._norms.tensors

    @abstractmethod
    def combine(self, norms: Tensor) -> Tensor:
        """R, a scalar, of n (n_channels,)."""

    @abstractmethod
    def shrink(self, norms: Floats, step: Floats) -> Floats:
        """The norms that minimise 1/2 ||m - norms||^2 + R(step m) over m >= 0: (n_channels,)."""

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """R of the weighted norms."""
        squares = self._norms(weights)
        alive = squares > 0
        norms = torch.where(alive, squares, 1.0).sqrt().where(alive, 0.0)
        return self.combine(norms * self._weights_of(weights, norms))

    def proximal_step(self, weights: Mapping[str, Tensor], step: float) -> None:
        """Closed form where channels share no weight; else Dykstra's algorithm over sets of channels that do not.

        Out-in-channels of consecutive layers overlap: W[o, i] belongs to o and to i. Alternating the closed forms
        of disjoint sets, each with its own correction, converges to the proximal point of the sum (Bauschke and
        Combettes 2008, doi 10.1287/moor.1070.0287).
        """
        with torch.no_grad():
            tensors = {name: weights[name] for name in self._norms.tensors}
            if len(self._colours) < 2:
                for norms in self._colours:
                    self._shrink(norms, tensors, step)
                return
            corrections = [{name: torch.zeros_like(w) for name, w in tensors.items()} for _ in self._colours]
            for _ in range(self.ITERATIONS):
                moved = 0.0
                for norms, correction in zip(self._colours, corrections, strict=True):
                    before = {name: tensors[name].clone() for name in norms.tensors}
                    for name in norms.tensors:
                        tensors[name].add_(correction[name])
                        correction[name].copy_(tensors[name])
                    self._shrink(norms, tensors, step)
                    for name in norms.tensors:
                        correction[name].sub_(tensors[name])
                        moved = max(moved, float((tensors[name] - before[name]).abs().max()))
                if moved <= self.TOLERANCE * max(float(w.abs().max()) for w in tensors.values()):
                    return

    def _shrink(self, norms: ChannelNorms, tensors: Mapping[str, Tensor], step: float) -> None:
        lengths = norms(tensors).sqrt()
        steps = step * self._weights_of(tensors, lengths)
        small = self.shrink(lengths.double().cpu().numpy(), steps.double().cpu().numpy())
        factors = torch.from_numpy(small).to(lengths) / torch.where(lengths > 0, lengths, 1.0)
        norms.scale(tensors, factors)

    def _weights_of(self, weights: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """q, (n_channels,)."""
        if self._q is None or self._q.device != like.device:
            self._q = torch.ones(self.graph.n_channels, device=like.device)
            if self.weighting == "sqrt_size":
                ones = {name: widened(torch.ones_like(weights[name])) for name in self._norms.tensors}
                self._q = self._norms.sums(ones).sqrt().to(self._q).detach()
        return self._q


class _Lasso(_GroupNorms):
    def combine(self, norms: Tensor) -> Tensor:
        """Their sum."""
        return norms.sum()

    def shrink(self, norms: Floats, step: Floats) -> Floats:
        """Each less its step, and not below zero."""
        shrunk: Floats = np.maximum(norms - step, 0.0)
        return shrunk


class _GrOWL(_GroupNorms):
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

    def shrink(self, norms: Floats, step: Floats) -> Floats:
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
    """OICSR-GL: the sum over channels of the norm of the whole out-in-channel (Li et al., arXiv 1905.11664)."""


class SeparatedGroupLasso(_Lasso):
    """Separated group lasso: the norm of each filter alone, the baseline that OICSR is measured against."""

    roles = WRITING_ROLES


class OICSRGrOWL(_GrOWL):
    """OICSR-GrOWL: ordered weighted norms of the out-in-channels of a group."""


class SeparatedGrOWL(_GrOWL):
    """GrOWL over filters alone (Zhang et al., ICLR 2018)."""

    roles = WRITING_ROLES


class BatchNormL1(Regularizer):
    """L1 on the scales of norms: network slimming (Liu et al., ICCV 2017, arXiv 1708.06519)."""

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


def _disjoint(graph: ChannelGraph, roles: tuple[Role, ...]) -> list[np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Sets of groups, bool (G,) each, of which no two channels share a weight: a greedy colouring."""
    group_of = torch.from_numpy(graph.group_of)
    by_tensor: dict[str, list[list[int]]] = {}  # tensor -> per dimension (and per column) the groups along it
    for slot in graph.slots:
        if slot.role in roles:
            for column in slot.channels.T:
                by_tensor.setdefault(slot.tensor, []).append(group_of[column[column >= 0]].unique().tolist())
    meets: list[set[int]] = [set() for _ in graph.groups]
    for sides in by_tensor.values():
        for number, side in enumerate(sides):
            for other in sides[number + 1 :]:
                for one in side:
                    meets[one] |= set(other)
                for one in other:
                    meets[one] |= set(side)
    colours: Ints = np.full(len(graph.groups), -1, dtype=np.int64)
    for group in sorted(range(len(graph.groups)), key=lambda g: -len(meets[g])):
        taken = {int(colours[other]) for other in meets[group] if other != group}
        colours[group] = next(colour for colour in range(len(graph.groups)) if colour not in taken)
    return [colours == colour for colour in range(int(colours.max(initial=-1)) + 1)]


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
    "bn_l1": BatchNormL1,
    "l2": L2,
    "none": NoRegularizer,
}
"""Name in a config -> class."""
