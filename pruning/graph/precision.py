"""In how many bits a layer computes, as one more group of channels: the policy's bits are widths like others.

The group of a layer has a channel per precision that is allowed. With one channel left it computes in the fewest
bits, with all of them in float32. So budgets, spaces, samplers and agents choose bits as they choose widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from espalier.errors import ConfigError

FLOAT = 32
"""Bits of a layer that is not quantised."""
ACTIVATION = 8
"""Fewest bits that what a quantised layer reads is rounded to: of 4 bits, only the weights are."""
ENDING = " bits"
"""Of the names of such groups."""


@dataclass(frozen=True)
class Precision:
    """What the width of one group says about one layer.

    Attributes:
        group: number of the group; its width w means ``bits[w - 1]``.
        layer: path of the layer.
        bits: that are allowed, rising, the last of them 32.
    """

    group: int
    layer: str
    bits: tuple[int, ...]

    @property
    def tensor(self) -> str:
        """Name of the layer's weight."""
        return f"{self.layer}.weight"


def check_bits(bits: tuple[int, ...]) -> None:
    """Refuses bits that make no group.

    Raises:
        ConfigError: they do not rise, or do not end with float32.
    """
    rising = sorted({each for each in bits if type(each) is int and 2 <= each <= 16})
    if tuple(bits) != (*rising, FLOAT) or not rising:
        raise ConfigError(
            f"bits must rise from 2 to 16 at most and end with 32, such as [8, 32] or [4, 8, 32], got {list(bits)}"
        )


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Weights (out, ...) in so many bits, a scale for each output channel.

    Rounding has the gradient of the identity (Bengio et al., 2013, arXiv 1308.3432).
    """
    most = 2 ** (bits - 1) - 1
    scale = (weight.detach().abs().flatten(1).amax(1).float() / most).clamp(min=torch.finfo(torch.float32).tiny)
    zero = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -most, most)
