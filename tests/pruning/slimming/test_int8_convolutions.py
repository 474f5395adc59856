"""Convolutions in 8-bit integers against the same sums in double precision."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.pruning.networks import build
from espalier.pruning.slimming.int8_convolutions import has_int8, in_int8

pytestmark = pytest.mark.skipif(not has_int8(), reason="PyTorch has no 8-bit convolutions here")


def quantised(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What the layer is to give: x in 128 levels, each output channel's weights in 255."""
    least, greatest = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = (greatest - least) / 126
    zero = round(-least / scale)
    levels = torch.floor(x / scale + zero + 0.5) - zero
    scales = (layer.weight.detach().abs().amax((1, 2, 3)) / 127).view(-1, 1, 1, 1)
    weight = (layer.weight.detach() / scales).round() * scales
    how: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
    bias = None if layer.bias is None else layer.bias.detach().double()
    return F.conv2d((levels * scale).double(), weight.double(), bias, *how)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0, None])
@pytest.mark.parametrize(
    ("inputs", "outputs", "how"),
    [
        (1, 5, {"kernel_size": 3, "padding": 1}),
        (16, 16, {"kernel_size": 3, "padding": 1, "bias": False}),
        (17, 11, {"kernel_size": 1}),
        (12, 24, {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 12}),
        (6, 9, {"kernel_size": (3, 5), "stride": 2, "padding": (1, 2), "groups": 3}),
    ],
)
def test_it_gives_the_sums_of_the_integers(
    inputs: int, outputs: int, how: dict[str, Any], shift: float | None, last: bool
) -> None:
    generator = torch.Generator().manual_seed(inputs)
    layer = nn.Conv2d(inputs, outputs, **how)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    x = torch.randn(4, inputs, 9, 10, generator=generator)
    x = x.relu() if shift is None else x + shift
    if last:
        x = x.to(memory_format=torch.channels_last)
    with torch.no_grad(), in_int8(layer):
        first, again, other = layer(x), layer(x), layer(-x)  # a batch of another sign has another zero point
    for got, wanted in ((first, quantised(layer, x)), (other, quantised(layer, -x))):
        # a number between two levels may go to either: off by one level in one term of a sum
        assert got.dtype == torch.float32 and got.shape == wanted.shape
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=0.01 * float(wanted.abs().max()))
        assert float((got - wanted).abs().median()) < 1e-5 * float(wanted.abs().max())
    assert torch.equal(first, again)


def test_the_greatest_sums_do_not_saturate() -> None:
    """Where two products are added in 16 bits, 255 times 127 twice would not fit."""
    layer = nn.Conv2d(64, 8, 3, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    x = torch.ones(2, 64, 8, 8)
    with torch.no_grad(), in_int8(layer):
        torch.testing.assert_close(layer(x)[:, :, 1:-1, 1:-1], torch.full((2, 8, 6, 6), 576.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("name", "most"), [("resnet20", 0.1), ("mobilenet_v2", 0.5)])
def test_a_network_gives_nearly_the_same_and_is_as_it_was_afterwards(name: str, most: float) -> None:
    torch.manual_seed(0)
    network = build(name).train()
    images = torch.randn(16, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for _ in range(20):
            network(images)  # running statistics
        network.eval()
        before, expected = copy.deepcopy(network.state_dict()), network(images)
        with in_int8(network):
            got = network(images)
        assert torch.equal(network(images), expected)
    assert not torch.equal(got, expected)
    assert float((got - expected).norm() / expected.norm()) < most
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert not any("forward" in module.__dict__ for module in network.modules())


def test_it_is_as_it_was_after_a_failure() -> None:
    layer = nn.Conv2d(3, 4, 1)
    with pytest.raises(RuntimeError), in_int8(layer):
        layer(torch.zeros(1, 5, 4, 4))
    assert "forward" not in layer.__dict__


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv2d(3, 4, 3, padding=1).double(),
        nn.ConvTranspose2d(3, 4, 3),
        nn.Linear(8, 4),
    ],
    ids=lambda layer: str(layer),
)
def test_what_has_no_integers_runs_as_it_is(layer: nn.Module) -> None:
    x = torch.randn(2, 3, 8, 8, dtype=next(layer.parameters()).dtype)
    with torch.no_grad():
        expected = layer(x)
        with in_int8(layer):
            assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["weight", "batch"])
def test_what_is_not_finite_stays_so(odd: float, where: str) -> None:
    layer, x = nn.Conv2d(3, 4, 1), torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        (layer.weight if where == "weight" else x)[0, 0] = odd
        expected = layer(x)
        with in_int8(layer):
            torch.testing.assert_close(layer(x), expected, rtol=0, atol=0, equal_nan=True)
    assert not bool(expected.isfinite().all())


def test_zeros_and_no_image_at_all() -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1)
    assert layer.bias is not None
    with torch.no_grad(), in_int8(layer):
        torch.testing.assert_close(layer(torch.zeros(2, 3, 5, 5)), layer.bias.view(1, 4, 1, 1).expand(2, 4, 5, 5))
        assert layer(torch.zeros(0, 3, 5, 5)).shape == (0, 4, 5, 5)
    with torch.no_grad():
        layer.weight.zero_()
        with in_int8(layer):
            got = layer(torch.randn(2, 3, 5, 5))
    torch.testing.assert_close(got, layer.bias.detach().view(1, 4, 1, 1).expand(2, 4, 5, 5))
