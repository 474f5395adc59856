"""Criteria against loops over single filters, and what leaves a network as it is."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.importance.criteria import CRITERIA, folded, folded_energy
from espalier.pruning.importance.gradients import taylor
from espalier.pruning.networks import build
from espalier.pruning.trace import trace

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(name: str = "resnet20") -> tuple[nn.Module, ChannelGraph]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(name)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                nn.init.normal_(module.weight, 1, 0.3)
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return model.eval(), trace(model, IMAGES[:1])


def scores(name: str, model: nn.Module, graph: ChannelGraph) -> Tensor:
    supplies: dict[str, Any] = {
        "loss": lambda m: nn.functional.cross_entropy(m(IMAGES), torch.arange(4)),
        "batches": [IMAGES[:3], IMAGES[3:]],
        "generator": torch.Generator().manual_seed(0),
    }
    return CRITERIA[name](model, graph, **supplies)


def slices(model: nn.Module, graph: ChannelGraph, roles: tuple[str, ...]) -> list[list[Tensor]]:
    weights = dict(model.named_parameters())
    return [
        [
            weights[member.tensor].detach().select(member.dim, position)
            for member in group.members
            if member.role in roles
            for position in member.positions[member.channels == channel].tolist()
        ]
        for group in graph.groups
        for channel in range(group.size)
    ]


@pytest.mark.parametrize("name", CRITERIA)
def test_a_number_for_every_channel_and_the_network_untouched(name: str) -> None:
    model, graph = network()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    first, again = scores(name, model, graph), scores(name, model, graph)
    assert first.shape == (graph.n_channels,) and bool(first.isfinite().all()) and bool((first >= 0).all())
    assert torch.equal(first, again) and len(first.unique()) > graph.n_channels // (8 if name == "hrank" else 2)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "roles", "value"),
    [
        ("energy", ("out", "in", "depthwise"), lambda parts: sum(p.square().sum() for p in parts)),
        ("l1", ("out", "depthwise"), lambda parts: sum(p.abs().sum() for p in parts)),
        ("l2", ("out", "depthwise"), lambda parts: sum(p.square().sum() for p in parts) ** 0.5),
        ("bn_scale", ("norm",), lambda parts: sum(p.abs() for p in parts)),
    ],
)
@pytest.mark.parametrize("which", ["resnet20", "mobilenet_v2"])
def test_filter_by_filter(which: str, name: str, roles: tuple[str, ...], value: Any) -> None:
    model, graph = network(which)
    expected = torch.stack([torch.as_tensor(value(parts)) for parts in slices(model, graph, roles)])
    torch.testing.assert_close(scores(name, model, graph), expected, rtol=1e-4, atol=1e-6)


def test_the_geometric_median_filter_by_filter() -> None:
    model, graph = network("vgg11_bn")
    group = graph.groups[2]
    weight = dict(model.named_parameters())[group.members[0].tensor].detach().flatten(1)
    expected = torch.stack([(weight - one).norm(dim=1).sum() for one in weight])
    start, end = graph.offsets[2:4]
    torch.testing.assert_close(scores("fpgm", model, graph)[start:end], expected, rtol=1e-3, atol=1e-3)


def test_taylor_is_the_slope_along_the_channel() -> None:
    """d/de L((1 - e) W_c) at 0, by a small step."""
    model, graph = network()
    model.double()

    def loss(candidate: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(candidate(IMAGES.double()), torch.arange(4))

    found = taylor(model, graph, loss)
    for channel in (0, 37, 200):
        parts = slices(model, graph, ("out", "in", "depthwise"))[channel]
        values = []
        for factor in (1 - 1e-6, (1 + 1e-6) / (1 - 1e-6)):
            for part in parts:
                part.mul_(factor)
            values.append(float(loss(model).detach()))
        for part in parts:
            part.div_(1 + 1e-6)
        assert abs(values[1] - values[0]) / 2e-6 == pytest.approx(float(found[channel]), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("which", ["resnet20", "vgg11_bn", "mobilenet_v2"])
@pytest.mark.parametrize("per", ["layer", "channel"])
def test_folded_energy_does_not_see_what_batch_norm_takes_back(which: str, per: str) -> None:
    """A convolution times s, its running mean times s, its variance times s^2: the same network."""
    model, graph = network(which)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    with torch.no_grad():
        outputs, raw, invariant = model(IMAGES), scores("energy", model, graph), folded_energy(model, graph)
        modules = list(model.modules())
        generator = torch.Generator().manual_seed(2)
        for conv, norm in pairwise(modules):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None and norm.running_var is not None
                size = 1 if per == "layer" else conv.out_channels
                s = torch.rand(size, generator=generator) * 3 + 0.3
                conv.weight.mul_(s.view(-1, 1, 1, 1))
                if conv.bias is not None:
                    conv.bias.mul_(s)
                norm.running_mean.mul_(s)
                norm.running_var.mul_(s.square())
        torch.testing.assert_close(model(IMAGES), outputs, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(folded_energy(model, graph), invariant, rtol=1e-3, atol=1e-5)
        assert not torch.allclose(scores("energy", model, graph), raw, rtol=0.1)


def test_folded_weights_are_those_of_the_network_without_norms() -> None:
    model, graph = network("vgg11_bn")
    conv, norm = (model.get_submodule(f"features.{n}") for n in (0, 1))
    weights = folded(model, graph)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        plain = nn.functional.conv2d(x, weights["features.0.weight"], padding=1)
        differences = norm(conv(x)) - plain
    spread = differences.flatten(2).transpose(1, 2)  # what is left is a constant per channel
    torch.testing.assert_close(spread, spread[:1, :1].expand_as(spread), rtol=1e-3, atol=1e-4)


def test_bn_scale_needs_norms() -> None:
    model = build("vgg11_bn")
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with pytest.raises(ConfigError, match="bn_scale ranks channels by the scale of their norm, and 0 has none"):
        scores("bn_scale", plain, trace(plain, IMAGES[:1]))
    assert scores("bn_scale", model, trace(model, torch.zeros(1, 3, 32, 32))).min() > 0
