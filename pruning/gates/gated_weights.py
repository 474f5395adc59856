"""Weights that are multiplied by gates within a pass, and are what they were behind it.

Where a layer reads a channel, its slice is multiplied by the channel's gate z: behind the norm and the
non-linearity, so that z scales what is carried, and z = 0 is the channel removed. Channels that an operation
works along (layer norm, a mean over channels), or that no layer with weights reads, have all their slices
multiplied, as in the masked network.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.torch_private import tell_recurrent

ALONG_CHANNELS = frozenset({"layer_norm", "group_norm", "rms_norm", "native_layer_norm", "native_group_norm"})
"""Operations that compare channels with each other."""

Bools = npt.NDArray[np.bool_]


class GatedWeights:
    """Multiplies the weights of networks that one graph describes.

    Args:
        network: one of them; it says which layers share weights.
        graph: the groups.
    """

    def __init__(self, network: nn.Module, graph: ChannelGraph) -> None:
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        self._slots = [slot for slot in _slots(graph) if slot[0] in names.values()]
        multiplied = {name for name, _, _ in self._slots}
        self._places = [
            (path, own, names[id(parameter)])
            for path, module in network.named_modules()
            for own, parameter in module._parameters.items()
            if parameter is not None and names[id(parameter)] in multiplied
        ]

    def multiplied(self, network: nn.Module, z: Tensor) -> dict[str, Tensor]:
        """Name of a parameter -> its weights times the gates z, (n_channels,); differentiable in both."""
        found: dict[str, Tensor] = {}
        padded = torch.cat([z, z.new_ones(1)])  # where there is no channel, number -1
        for name, dim, channels in self._slots:
            weight = found[name] if name in found else network.get_parameter(name)
            factor = padded[channels.to(z.device)].prod(1).to(weight.dtype)
            found[name] = weight * factor.view(-1, *[1] * (weight.dim() - 1 - dim))
        return found

    def put_into(self, network: nn.Module, z: Tensor) -> None:
        """Has layers compute with the multiplied weights."""
        weights = self.multiplied(network, z)
        for path, own, name in self._places:
            module = network.get_submodule(path)
            module.__dict__[own] = weights[name]  # found before the parameter, which stays where it is
            tell_recurrent(module)

    def take_from(self, network: nn.Module) -> None:
        """Has layers compute with their parameters."""
        for path, own, _ in self._places:
            module = network.get_submodule(path)
            module.__dict__.pop(own, None)
            tell_recurrent(module)


def _slots(graph: ChannelGraph) -> list[tuple[str, int, Tensor]]:
    """Tensor, dimension, and channels of each index along it that multiply it: (dim size, k), -1 for none."""
    read = np.array([any(member.role == "in" for member in group.members) for group in graph.groups], dtype=bool)
    everywhere = torch.from_numpy(_along_channels(graph) | ~read)
    group_of = torch.from_numpy(graph.group_of)
    found = []
    for slot in graph.slots:
        channels = slot.channels
        if slot.role != "in":
            own = (channels >= 0) & everywhere[group_of[channels.clamp(min=0)]]
            channels = torch.where(own, channels, -1)
        if bool((channels >= 0).any()):
            found.append((slot.tensor, slot.dim, channels))
    return found


def _along_channels(graph: ChannelGraph) -> Bools:
    """Which groups an operation works along that compares channels, or sums over them without weights: (G,)."""
    found = np.zeros(len(graph.groups), dtype=bool)
    groups = [{g for count in operation.sizes for m in count for g in m} for operation in graph.operations]
    for number, operation in enumerate(graph.operations):
        read = set[int]().union(*(groups[source] for source in operation.inputs))
        if operation.kind in ALONG_CHANNELS:
            found[list(read)] = True
        elif not operation.tensors:
            found[list(read - groups[number])] = True
    return found
