"""Convolutions in 8-bit integers, for as long as a network is only run (Jacob et al., CVPR 2018, arXiv 1712.05877).

Notation, for a layer that reads x and has weights w, o its output channels:
    x ~ s (q - z)            q in 0..127; s and z from the least and the greatest number of the batch
    w[o] ~ t[o] p[o]         p in -127..127; t[o] from the greatest weight of the channel
    w[o] * x ~ s t[o] (p[o] * (q - z))

Seven bits, not eight, are kept of x: on a processor without VNNI oneDNN adds two products in 16 bits, and
2 * 127 * 127 is about all that these hold.
"""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from espalier.pruning import torch_private

LEVELS = 127
"""The greatest of the integers."""
LEAST = 1e-20
"""Scale of what is zero throughout."""


@functools.cache
def has_int8() -> bool:
    """Whether PyTorch convolves in 8-bit integers here: by oneDNN, on x86."""
    built = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
    return built and torch_private.has_int8_convolutions()


@contextmanager
def in_int8(model: nn.Module) -> Iterator[None]:
    """Runs a network's convolutions in 8-bit integers, where `has_int8`; it is as it was afterwards.

    What they read is quantised batch by batch, and what they give is float32. Those that are padded otherwise than
    by a number of zeros, or that meet other types than float32 or numbers that are not finite, run as they are, and
    so does all else. Not for gradients.

    Args:
        model: on a CPU; its weights must stay as they are meanwhile.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and _is_suited(layer)]
    for layer in layers:
        layer.__dict__["forward"] = _Quantised(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


def _is_suited(layer: nn.Conv2d) -> bool:
    plain = type(layer) is nn.Conv2d and "forward" not in layer.__dict__
    zeros = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return plain and zeros and layer.weight.dtype == torch.float32 and bool(layer.weight.isfinite().all())


class _Quantised:
    """What a layer computes, in integers."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self._layer = layer
        weight = layer.weight.detach()
        self._scales = weight.abs().amax((1, 2, 3)).div_(LEVELS).clamp_(min=LEAST)
        self._weight = weight.div(self._scales.view(-1, 1, 1, 1)).round_().to(torch.int8)
        self._zeros = torch.zeros(len(weight), dtype=torch.long)
        self._packed: dict[bool, Tensor] = {}  # weights as oneDNN wants them, by whether z is other than zero

    def __call__(self, x: Tensor) -> Tensor:
        """(b, in channels, height, width) -> (b, out channels, ...)."""
        if x.dtype != torch.float32 or x.dim() != 4 or not x.numel():
            return nn.Conv2d.forward(self._layer, x)
        low, high = (float(each) for each in torch.aminmax(_flat(x)))
        if not math.isfinite(high - low):
            return nn.Conv2d.forward(self._layer, x)
        least, greatest = min(low, 0.0), max(high, 0.0)
        scale = max((greatest - least) / (LEVELS - 1), LEAST)  # rounding may take one level more
        zero = round(-least / scale)
        levels = torch.add(torch.tensor(zero + 0.5), x, alpha=1 / scale).to(torch.int8).view(torch.uint8)
        return self._convolved(levels, scale, zero)

    def _convolved(self, levels: Tensor, scale: float, zero: int) -> Tensor:
        layer = self._layer
        stride, padding, dilation = (list(map(int, each)) for each in (layer.stride, layer.padding, layer.dilation))
        how = stride, padding, dilation, layer.groups
        weight = self._packed.get(zero != 0)
        if weight is None:
            shape = list(levels.shape)
            weight = torch_private.pack_int8(self._weight, self._scales, scale, zero, how, shape)
            self._packed[zero != 0] = weight
        weights = weight, self._scales, self._zeros, layer.bias
        return torch_private.convolve_int8(levels, scale, zero, *weights, how)


def _flat(x: Tensor) -> Tensor:
    """All numbers of a batch (b, channels, height, width) as they lie in memory: reductions are faster so."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    return (x.permute(0, 2, 3, 1) if last else x).reshape(-1)
