"""What the bits of layers are worth, in the units of the scores of channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.precision import rounded


def with_bits(scores: Tensor, network: nn.Module, graph: ChannelGraph) -> Tensor:
    """The scores of channels, and those of the bits of layers, which no criterion sees.

    The bits that a layer is given hold a share of its energy ||w||^2, and rounding takes the rest away. So the
    channels of a precision share what is left of it: of 8 and 32 bits, the first is worth 1 - e and the second e,
    where e = ||w - rounded(w)||^2 / ||w||^2. They are multiplied by the mean score of the graph's channels, so that
    they compare with these, and by their number, so that normalising by the mean of the group leaves them as they
    are.

    Args:
        scores: of the channels of ``graph.without_precisions``.
        network: of the graph.
        graph: with precisions or without.

    Returns:
        (n_channels,).
    """
    parts, mean = [scores], scores.double().mean()
    for precision in graph.precisions:
        weight = network.get_parameter(precision.tensor).detach().double()
        whole = weight.square().sum().clamp(min=torch.finfo(torch.float64).tiny)
        lost = [float((weight - rounded(weight, bits)).square().sum() / whole) for bits in precision.bits[:-1]]
        shares = -torch.tensor([1.0, *lost, 0.0], dtype=torch.float64).diff()
        parts.append((mean * len(shares) * shares.clamp(min=0).to(mean.device)).to(scores))
    return torch.cat(parts)
