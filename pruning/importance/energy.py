"""Channel energies: what OICSR training leaves behind, and the prior that the search starts from.

An out-in-channel is everything that dies with one channel: the filter that writes it, the slices that read it,
through BN, residual sums and concatenations. Its energy is the sum of the squares of all these weights,

    E_c = sum over members m of c  || W_m[c] ||_2^2,

the square of the group norm that OICSR-GL regularises (Li et al., CVPR 2019, arXiv 1905.11664).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.groups import WEIGHT_ROLES, Role, Slot
from espalier.pruning.importance.bits import with_bits


class ChannelNorms:
    """Squared norms of all out-in-channels in one fused pass.

    Args:
        graph: the groups.
        roles: which slices belong to a channel: by default all that write or read it.
        groups: bool (G,), the groups that count; all by default. The channels of the others have norm 0.
        tensors: names of the weights that count; all by default.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        roles: Collection[Role] = WEIGHT_ROLES,
        groups: npt.NDArray[np.bool_] | None = None,
        tensors: Collection[str] | None = None,
    ) -> None:
        chosen = np.ones(len(graph.groups), dtype=bool) if groups is None else groups
        counts = torch.from_numpy(np.append(chosen[graph.group_of], False))  # the last: no channel
        self._slots = [
            slot
            for slot in graph.slots
            if slot.role in roles
            and bool(counts[slot.channels].any())
            and (tensors is None or slot.tensor in tensors)
        ]
        self._n_channels = graph.n_channels
        # What does not count falls into one bin beyond the last channel. A position that belongs to two channels,
        # as one of attention does to a head and to a place in it, counts for both.
        self._channels = [torch.where(counts[s.channels], s.channels, graph.n_channels) for s in self._slots]
        bins = [channels.reshape(-1) for channels in self._channels]
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
        return self.sums({name: widened(weights[name]).square() for name in self._by_tensor})

    def sums(self, values: Mapping[str, Tensor]) -> Tensor:
        """Sum of any values of the shapes of the weights, per channel: (n_channels,)."""
        parts: list[Tensor] = [torch.empty(0)] * len(self._slots)
        for name, numbers in self._by_tensor.items():
            value = values[name]
            if value.dim() > 2 and all(self._slots[number].dim < 2 for number in numbers):
                value = value.flatten(2).sum(2)  # (out, in)
            for number in numbers:
                columns = self._channels[number].shape[1]
                parts[number] = _sum_others(value, self._slots[number]).repeat_interleave(columns)
        if not parts:
            return torch.zeros(self._n_channels)
        summed = torch.cat(parts)
        bins = self._bins.to(summed.device)
        return summed.new_zeros(self._n_channels + 1).index_add(0, bins, summed)[:-1]

    def scale(self, weights: Mapping[str, Tensor], factors: Tensor) -> None:
        """Multiplies every slice of every channel by the channel's factor, (n_channels,), in place."""
        padded = torch.cat([factors, factors.new_ones(1)])
        for slot, channels in zip(self._slots, self._channels, strict=True):
            weight = weights[slot.tensor]
            along = [1] * weight.dim()
            along[slot.dim] = -1
            weight.mul_(padded[channels.to(factors.device)].prod(1).view(along))


def widened(weight: Tensor) -> Tensor:
    """Half precision in float32, whose squares neither vanish nor overflow; any other type as it is."""
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight


def _sum_others(values: Tensor, slot: Slot) -> Tensor:
    others = [dim for dim in range(values.dim()) if dim != slot.dim]
    return values.sum(others) if others else values


def channel_energies(model: nn.Module, graph: ChannelGraph) -> Tensor:
    """Energy of every prunable channel, by group in the graph's order.

    Args:
        model: the network that the graph was traced from, or one of the same structure.
        graph: its channel graph.

    Returns:
        (n_channels,) float32; split it with ``graph.sizes``. Where layers can have fewer bits, see
        `espalier.pruning.importance.bits`.
    """
    with torch.no_grad():
        found = ChannelNorms(graph.without_precisions)(dict(model.named_parameters())).float().cpu()
    return with_bits(found, model, graph)
