"""Layers in fewer bits, as a runtime will compute them, and trained so (Jacob et al., CVPR 2018, arXiv 1712.05877).

Notation, for a layer that reads x and has weights w in b bits, o its output channels, a = max(b, 8):
    s[o] = max |w[o]| / (2^(b-1) - 1)       w[o] ~ s[o] round(w[o] / s[o])
    t = (high - low) / (2^a - 1)            x ~ t (clip(round(x / t) + z, 0, 2^a - 1) - z), z = round(-low / t)

`low` and `high` are the least and the greatest number that the layer has read, zero among them. Rounding has the
gradient of the identity, so that whatever trains a network trains it for what the runtime will do. What a layer
gives is rounded where another in fewer bits reads it, and not before; a runtime rounds it in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.graph.precision import ACTIVATION, FLOAT, rounded

RANGE = "input_range"
"""Buffer of a layer in fewer bits: least and greatest number of its input, (2,); NaN before it has read any."""
MOMENTUM = 0.1
"""Share of a training batch's range in the running one, as in batch norms."""


class Quantised(nn.Module):
    """What layers in fewer bits have in common.

    Attributes:
        bits: of the weights.
        observing: whether the range widens to what is read, in eval mode too.
    """

    bits: int
    observing: bool
    input_range: Tensor
    weight: Tensor

    def rounded_input(self, x: Tensor) -> Tensor:
        """The input in its bits; the range follows a training batch."""
        if not x.numel():
            return x
        low, high = self._edges(x.detach()).float()
        levels = 2 ** max(self.bits, ACTIVATION) - 1
        scale = torch.where(high > low, (high - low) / levels, torch.ones_like(low))
        zero = torch.round(-low / scale).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x, scale[None], zero[None], 0, levels)

    def rounded_weight(self) -> Tensor:
        """The weights in their bits."""
        return rounded(self.weight, self.bits)

    @torch.no_grad()
    def _edges(self, x: Tensor) -> Tensor:
        """Least and greatest number of the input by which it is rounded: (2,)."""
        held = self.input_range
        low, high = torch.aminmax(x)
        batch = torch.stack([low.clamp(max=0.0), high.clamp(min=0.0)]).to(held)
        if self.observing:
            held.copy_(torch.stack([torch.fmin(held, batch)[0], torch.fmax(held, batch)[1]]))
        elif self.training:
            held.copy_(torch.where(held.isfinite(), torch.lerp(held, batch, MOMENTUM), batch))
        return torch.where(held.isfinite(), held, batch)  # of the batch, where it has read nothing yet


class _Convolution(Quantised):
    _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """As of the layer in float32."""
        return self._conv_forward(self.rounded_input(x), self.rounded_weight(), self.bias)


class QuantisedConv1d(_Convolution, nn.Conv1d):
    """A convolution in fewer bits."""


class QuantisedConv2d(_Convolution, nn.Conv2d):
    """A convolution in fewer bits."""


class QuantisedConv3d(_Convolution, nn.Conv3d):
    """A convolution in fewer bits."""


class QuantisedLinear(Quantised, nn.Linear):
    """A linear layer in fewer bits."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in features) -> (..., out features)."""
        return nn.functional.linear(self.rounded_input(x), self.rounded_weight(), self.bias)


KINDS: dict[type[nn.Module], type[Quantised]] = {
    nn.Conv1d: QuantisedConv1d,
    nn.Conv2d: QuantisedConv2d,
    nn.Conv3d: QuantisedConv3d,
    nn.Linear: QuantisedLinear,
}
"""Class of a layer -> of the same in fewer bits."""
PLAIN: dict[type[nn.Module], type[nn.Module]] = {quantised: plain for plain, quantised in KINDS.items()}
"""The other way round."""


def quantise(network: nn.Module, bits: Mapping[str, int]) -> None:
    """Makes layers compute in fewer bits, in place; weights stay the float32 ones that are rounded.

    Args:
        network: any.
        bits: path of a layer -> bits of its weights.

    Raises:
        ConfigError: there is no such layer, or it is none that can.
    """
    for path, count in bits.items():
        try:
            layer: Any = network.get_submodule(path)
        except AttributeError:
            raise ConfigError(f"the network has no layer {path}, which is to compute in {count} bits") from None
        if type(count) is not int or not 2 <= count < FLOAT:
            raise ConfigError(
                f"{path} cannot compute in {count!r} bits: a whole number from 2 to 31 can be asked for"
            )
        if type(layer) not in (*KINDS, *PLAIN):
            raise ConfigError(f"{path} is a {type(layer).__name__}, which cannot compute in {count} bits")
        layer.__class__ = KINDS[PLAIN.get(type(layer), type(layer))]
        layer.bits, layer.observing = count, False
        layer.register_buffer(RANGE, layer.weight.new_full((2,), torch.nan, dtype=torch.float32))


def in_float(network: nn.Module) -> dict[str, tuple[int, Tensor]]:
    """Makes all layers compute in float32 again, in place.

    Returns:
        Path of each that did not -> its bits, and the range of its input.
    """
    found: dict[str, tuple[int, Tensor]] = {}
    for path, layer in quantised_layers(network).items():
        found[path] = layer.bits, layer.input_range
        del layer.bits, layer.observing, layer.input_range
        layer.__class__ = PLAIN[type(layer)]  # type: ignore[assignment]
    return found


@contextmanager
def observing(network: nn.Module) -> Iterator[None]:
    """Takes the ranges of inputs anew, from what layers in fewer bits read meanwhile."""
    layers = quantised_layers(network).values()
    for layer in layers:
        layer.input_range.fill_(torch.nan)
        layer.observing = True
    try:
        yield
    finally:
        for layer in layers:
            layer.observing = False


def quantised_layers(network: nn.Module) -> dict[str, Quantised]:
    """Path of each layer in fewer bits -> the layer."""
    return {path: each for path, each in network.named_modules() if isinstance(each, Quantised)}


def empty_ranges(layers: Iterable[str], device: torch.device) -> dict[str, Tensor]:
    """The buffers of layers that have read nothing yet, by name."""
    return {f"{layer}.{RANGE}": torch.full((2,), torch.nan, device=device) for layer in layers}
