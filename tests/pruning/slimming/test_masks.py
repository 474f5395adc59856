"""Masks of torch.nn.utils.prune against slimming: what they say, there and back."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import espalier
from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.networks import build
from espalier.pruning.slimming.masks import keep_from_masks, set_masks
from espalier.pruning.slimming.surgery import mask, slim

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NETWORKS = ["resnet20", "mobilenet_v2", "densenet40", "shufflenet_v2", "preact_senet18"]


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return build("resnet20").eval()


def kept_of(graph: ChannelGraph, share: float = 0.5) -> Tensor:
    scores = np.random.default_rng(0).random(graph.n_channels)
    return graph.keep_best(scores, np.maximum(1, (graph.sizes * share).astype(int)))


def channels_of(graph: ChannelGraph, name: str) -> slice:
    number = [group.name for group in graph.groups].index(name)
    return slice(int(graph.offsets[number]), int(graph.offsets[number + 1]))


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back(name: str) -> None:
    torch.manual_seed(0)
    dense = build(name).eval()
    graph = espalier.trace(dense, IMAGES)
    keep = kept_of(graph)
    masked = set_masks(copy.deepcopy(dense), graph, keep)
    assert torch.equal(keep_from_masks(masked, graph), keep)
    with torch.no_grad():
        torch.testing.assert_close(masked(IMAGES), mask(dense, graph, keep)(IMAGES))
    again = espalier.trace(masked, IMAGES)  # of the network with its masks
    assert again.sizes.tolist() == graph.sizes.tolist()
    assert torch.equal(keep_from_masks(masked, again), keep)
    small = slim(masked, again, keep)
    with torch.no_grad():
        torch.testing.assert_close(small(IMAGES), slim(dense, graph, keep)(IMAGES), rtol=1e-4, atol=1e-5)


def test_masks_made_by_torch_are_read(network: nn.Module) -> None:
    conv = network.get_submodule("layer1.0.conv1")
    prune.ln_structured(conv, "weight", amount=4, n=2, dim=0)
    graph = espalier.trace(network, IMAGES)
    keep = keep_from_masks(network, graph)
    gone = conv.get_buffer("weight_mask").flatten(1).sum(1) == 0
    assert int(gone.sum()) == 4
    assert torch.equal(~keep[channels_of(graph, "layer1.0.conv1")], gone) and int((~keep).sum()) == 4
    assert slim(network, graph, keep).get_parameter("layer1.0.conv1.weight_orig").shape[0] == 12


def test_masked_readers_are_enough(network: nn.Module) -> None:
    graph = espalier.trace(network, IMAGES)
    conv = network.get_submodule("layer1.0.conv2")
    prune.ln_structured(conv, "weight", amount=3, n=1, dim=1)
    assert int((~keep_from_masks(network, graph)[channels_of(graph, "layer1.0.conv1")]).sum()) == 3


def test_a_residual_channel_goes_where_all_that_write_it_are_masked(network: nn.Module) -> None:
    graph = espalier.trace(network, IMAGES)
    stream = graph.groups[0]
    writers = [
        (member, member.positions[member.channels == 5]) for member in stream.members if member.role == "out"
    ]
    assert len(writers) > 3  # the stem, and the last layer of every block
    for number, (member, rows) in enumerate(writers):
        if number:
            with pytest.raises(ConfigError, match=r"^masks must zero channels in all layers that write them, got "):
                keep_from_masks(network, graph)
            assert keep_from_masks(network, graph, strict=False).all()
        weight = torch.ones_like(network.get_parameter(member.tensor)).index_fill_(0, torch.from_numpy(rows), 0)
        prune.custom_from_mask(network.get_submodule(member.tensor.removesuffix(".weight")), "weight", weight)
    keep = keep_from_masks(network, graph)
    assert (~keep).nonzero()[:, 0].tolist() == [5]
    small = slim(network, espalier.trace(network, IMAGES), keep)
    assert small.get_parameter("conv1.weight_orig").shape[0] == 15


def n_of_m(network: nn.Module) -> None:
    weight = network.get_parameter("layer1.0.conv1.weight")
    prune.custom_from_mask(
        network.get_submodule("layer1.0.conv1"), "weight", (torch.arange(weight.numel()) % 4 < 2).view_as(weight)
    )


def unstructured(network: nn.Module) -> None:
    prune.l1_unstructured(network.get_submodule("layer1.0.conv1"), "weight", amount=0.5)


@pytest.mark.parametrize("masked", [unstructured, n_of_m])
def test_what_is_not_whole_channels_is_refused_or_passed_over(masked: object, network: nn.Module) -> None:
    graph = espalier.trace(network, IMAGES)
    assert callable(masked)
    masked(network)
    with pytest.raises(
        ConfigError, match=r"1152 zeros of layer1\.0\.conv1\.weight .*N:M masks are out of scope"
    ) as told:
        keep_from_masks(network, graph)
    assert "\n" not in str(told.value)
    assert keep_from_masks(network, graph, strict=False).all()


def test_no_masks_and_empty_groups_are_told(network: nn.Module) -> None:
    graph = espalier.trace(network, IMAGES)
    with pytest.raises(ConfigError, match=r"must have masks of torch\.nn\.utils\.prune, got none"):
        keep_from_masks(network, graph)
    prune.ln_structured(network.get_submodule("layer1.0.conv1"), "weight", amount=16, n=2, dim=0)
    with pytest.raises(ConfigError, match=r"at least one channel, got none in layer1\.0\.conv1"):
        keep_from_masks(network, graph)


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_weights_that_are_computed_are_refused_before_anything_is_masked(norm: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), norm(nn.Conv2d(8, 4, 3))).eval()
    graph = espalier.trace(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ConfigError, match="those of 2 are computed from other tensors"):
        set_masks(model, graph, torch.ones(graph.n_channels, dtype=torch.bool))
    assert not prune.is_pruned(model)
