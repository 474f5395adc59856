"""Channel energies: what OICSR training leaves behind, and the prior that the search starts from.

An out-in-channel is everything that dies with one channel: the filter that writes it, the slices that read it,
through BN, residual sums and concatenations. Its energy is the sum of the squares of all these weights,

    E_c = sum over members m of c  || W_m[c] ||_2^2,

the square of the group norm that OICSR-GL regularises (Li et al., CVPR 2019, arXiv 1905.11664).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.costs import Floats
from espalier.pruning.graph import WEIGHT_ROLES, ChannelGraph, Slot

Normalization = Literal["raw", "mean", "max", "per_mac"]
"""How energies of different groups are made comparable."""


class ChannelNorms:
    """Squared norms of all out-in-channels in one fused pass.

    Args:
        graph: the groups.
        separated: only the slices that write a channel, as in separated group lasso.
    """

    def __init__(self, graph: ChannelGraph, separated: bool = False) -> None:
        roles = ("out", "depthwise") if separated else WEIGHT_ROLES
        self._slots = [slot for slot in graph.slots if slot.role in roles]
        self._n_channels = graph.n_channels
        # Fixed positions fall into one bin beyond the last channel. A position that belongs to two channels, as one
        # of an attention head does to the head and to its place in it, counts for both.
        self._columns = [slot.channels.shape[1] for slot in self._slots]
        bins = [torch.where(s.channels < 0, graph.n_channels, s.channels).reshape(-1) for s in self._slots]
        self._bins = torch.cat(bins) if bins else torch.zeros(0, dtype=torch.int64)
        self._by_tensor: dict[str, list[int]] = {}
        for number, slot in enumerate(self._slots):
            self._by_tensor.setdefault(slot.tensor, []).append(number)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the weights that are read."""
        return tuple(self._by_tensor)

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Sum of squares per channel, differentiable.

        Args:
            weights: name -> parameter, at least `tensors`; all on one device and of one floating type.

        Returns:
            (n_channels,).
        """
        parts: list[Tensor] = [torch.empty(0)] * len(self._slots)
        for name, numbers in self._by_tensor.items():
            squares = weights[name].square()
            if squares.dim() > 2:
                squares = squares.flatten(2).sum(2)  # (out, in)
            for number in numbers:
                parts[number] = _sum_others(squares, self._slots[number]).repeat_interleave(self._columns[number])
        values = torch.cat(parts)
        bins = self._bins.to(values.device)
        return values.new_zeros(self._n_channels + 1).index_add(0, bins, values)[:-1]


def _sum_others(squares: Tensor, slot: Slot) -> Tensor:
    others = [dim for dim in range(squares.dim()) if dim != slot.dim]
    return squares.sum(others) if others else squares


def channel_energies(model: nn.Module, graph: ChannelGraph) -> Tensor:
    """Energy of every prunable channel, by group in the graph's order.

    Args:
        model: the network that the graph was traced from, or one of the same structure.
        graph: its channel graph.

    Returns:
        (n_channels,) float32; split it with ``graph.sizes``.
    """
    with torch.no_grad():
        return ChannelNorms(graph)(dict(model.named_parameters())).float().cpu()


def normalize(energies: Floats, graph: ChannelGraph, how: Normalization) -> Floats:
    """Makes energies comparable across groups.

    Args:
        energies: (n_channels,) not negative.
        graph: the groups.
        how: see `scales`.

    Returns:
        (n_channels,) energies divided by their group's scale.

    Raises:
        ConfigError: an unknown name.
    """
    return energies / scales(energies, graph, how)[graph.group_of]


def scales(energies: Floats, graph: ChannelGraph, how: Normalization) -> Floats:
    """What each group's energies are divided by.

    Args:
        energies: (n_channels,) not negative.
        graph: the groups.
        how: 1 for ``raw``; the group's mean or maximum for ``mean`` and ``max``; for ``per_mac`` the MACs that one
            channel of the group costs in the dense network.

    Returns:
        (G,) float64, positive.

    Raises:
        ConfigError: an unknown name.
    """
    if how == "raw":
        return np.ones(len(graph.groups))
    if how == "mean":
        scale = np.add.reduceat(energies, graph.offsets[:-1]) / graph.sizes
    elif how == "max":
        scale = np.maximum.reduceat(energies, graph.offsets[:-1])
    elif how == "per_mac":
        scale = graph.channel_costs().astype(np.float64)
    else:
        raise ConfigError(f"normalization must be one of {', '.join(get_args(Normalization))}, got {how!r}")
    return np.maximum(scale, np.finfo(np.float64).tiny)
