"""Torch-Pruning (Fang et al., CVPR 2023, arXiv:2301.12900) as oracle: what it couples we couple, and nothing else.

A *place* is an index along one dimension of one tensor; a channel is a set of places. For some channels of every
convolution and linear layer, the places that Torch-Pruning would cut are compared with those of our channel.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.networks import NETWORKS, CifarDenseNet
from espalier.pruning.networks import build as build_network
from espalier.pruning.trace import trace

tp: Any = pytest.importorskip("torch_pruning")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is downloaded

Place = tuple[str, int, int]
Channel = frozenset[Place]
Build = Callable[[], tuple[nn.Module, Tensor]]


def ours(name: str, **kwargs: Any) -> Build:
    """A built-in network and small images."""
    return lambda: (build_network(name, num_classes=5, **kwargs).eval(), torch.randn(1, 3, 32, 32))


def hugging_face(cls: str, side: int, **settings: Any) -> Build:
    """A network of Transformers with random weights."""

    def build() -> tuple[nn.Module, Tensor]:
        network = getattr(pytest.importorskip("transformers"), cls)
        model = network(network.config_class(num_labels=5, **settings))
        return model.eval(), torch.randn(1, 3, side, side)

    return build


STAGES: dict[str, Any] = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 2, 1]}
REGNET: dict[str, Any] = {
    "embedding_size": 16,
    "hidden_sizes": [24, 48],
    "depths": [1, 2],
    "groups_width": 8,
}

MODELS: dict[str, Build] = {
    **{name: ours(name) for name in NETWORKS if name not in ("shufflenet_v2", "vit_tiny")},
    "resnet20, shortcut B": ours("resnet20", shortcut="B"),
    "densenet22_bc": lambda: (CifarDenseNet(22, bc=True, num_classes=5).eval(), torch.randn(1, 3, 32, 32)),
    "hf resnet": hugging_face(
        "ResNetForImageClassification", 32, embedding_size=16, hidden_sizes=[32, 48, 64], depths=[1, 2, 1]
    ),
    "hf mobilenet_v1": hugging_face("MobileNetV1ForImageClassification", 32, depth_multiplier=0.25),
    "hf mobilenet_v2": hugging_face("MobileNetV2ForImageClassification", 32, depth_multiplier=0.25),
    "hf regnet x": hugging_face("RegNetForImageClassification", 32, layer_type="x", **REGNET),
    "hf regnet y": hugging_face("RegNetForImageClassification", 32, layer_type="y", **REGNET),
    "hf efficientnet": hugging_face(
        "EfficientNetForImageClassification", 32, width_coefficient=0.25, depth_coefficient=0.5, hidden_dim=320
    ),
    "hf hgnet_v2": hugging_face(
        "HGNetV2ForImageClassification",
        64,
        stem_channels=[3, 8, 12],
        stage_in_channels=[12, 16, 24, 32],
        stage_mid_channels=[8, 8, 12, 16],
        stage_out_channels=[16, 24, 32, 40],
        stage_num_blocks=[1, 1, 2, 1],
        stage_numb_of_layers=[2, 2, 2, 2],
        hidden_sizes=[16, 24, 32, 40],
    ),
    "hf textnet": hugging_face(
        "TextNetForImageClassification",
        64,
        stem_out_channels=8,
        hidden_sizes=[8, 8, 16, 24, 32],
        conv_layer_kernel_sizes=[[[3, 3]], [[3, 3], [1, 3]], [[3, 3], [3, 1]], [[3, 3]]],
        conv_layer_strides=[[1], [2, 1], [2, 1], [2]],
    ),
    "hf pp_lcnet": hugging_face("PPLCNetForImageClassification", 32, scale=0.5, class_expand=64),
    "hf convnext": hugging_face("ConvNextForImageClassification", 32, **STAGES),
    "hf poolformer": hugging_face("PoolFormerForImageClassification", 64, **STAGES),
}

DEEPER = (
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet34",
    "resnet101",
    "vgg13_bn",
    "vgg16_bn",
    "vgg19_bn",
    "densenet89",
    "densenet100_bc",
)
"""More of what shallower ones of their families have."""

PADDED = (
    r"conv1|layer\d\.\d+\.conv2",
    "The shortcuts between stages put zeros before the channels. No gradient flows through zeros, so "
    "Torch-Pruning does not see them, and takes channel i of one stage for channel i of the next, another one.",
)
GROUPED = (
    r"regnet\.encoder\.stages\.\d\.layers\.\d\.layer\.([01]\.convolution|2\.attention\.2)",
    "A grouped convolution keeps the same places in every group. To Torch-Pruning its channels are single ones in "
    "the graph; its pruner repeats the choice from group to group afterwards.",
)

SHUFFLED = (
    r"conv1\.0|stage\d\.\d\.conv[123]",
    "As with other grouped convolutions; the shuffle, to Torch-Pruning, leaves each channel where it was.",
)

RENAMED = (r"stem\.0|trunk_output\.block\d\.block\d-\d+\.(f\.[abc]\.0|f\.se\.fc\d|proj\.0)", GROUPED[1])

GHOSTS = (
    r"stem\.0|trunk_output\.block\d\.(block\d-\d+|first|last|blocks\.\d+)\.(f\.[abc]\.0|proj\.0)",
    f"{GROUPED[1]} Halves of a stage that is cut in the middle lose the same places here.",
)

DIFFERENT: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"), PADDED),
    "shufflenet_v1": SHUFFLED,
    **dict.fromkeys(("regnet_x_200mf", "regnet_x_400mf", "regnet_y_200mf", "regnet_y_400mf"), RENAMED),
    **dict.fromkeys(("g_ghost_regnet_x_200mf", "g_ghost_regnet_x_400mf"), GHOSTS),
    "hf regnet x": GROUPED,
    "hf regnet y": GROUPED,
}
"""Network -> (the layers whose channels differ, why)."""

LEFT_ALONE = {"network output", "all of it is one channel"}
"""Why we freeze channels here. Torch-Pruning cuts them, too, unless its user names the layers to leave alone."""

TOKENS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
# Network -> what happens where the first channel of every group is cut with no code of the model's own.
# Torch-Pruning takes such code: numbers of heads, pruners per class, attributes to change afterwards.
BROKEN: dict[str, tuple[Build, type[Exception], str]] = {
    "vit": (hugging_face("ViTForImageClassification", 32, **TOKENS), RuntimeError, "shape .* is invalid"),
    "mobilevit": (
        hugging_face(
            "MobileViTForImageClassification",
            64,
            hidden_sizes=[16, 24, 32],
            neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 48],
            image_size=64,
        ),
        RuntimeError,
        "shape .* is invalid",
    ),
    "levit": (
        hugging_face(
            "LevitForImageClassification",
            64,
            hidden_sizes=[32, 48, 64],
            num_attention_heads=[2, 3, 4],
            depths=[1, 1, 1],
            key_dim=[4, 4, 4],
            image_size=64,
        ),
        RuntimeError,
        "shape .* is invalid",
    ),
    "hiera": (
        hugging_face(
            "HieraForImageClassification",
            64,
            embed_dim=16,
            depths=[1, 1, 1, 1],
            num_heads=[1, 2, 2, 4],
            mlp_ratio=2.0,
            image_size=[64, 64],
        ),
        ZeroDivisionError,
        "by zero",
    ),
    "shufflenet_v2": (ours("shufflenet_v2"), TypeError, "NoneType"),
    "vit_tiny": (ours("vit_tiny", depth=2), RuntimeError, "shape .* is invalid"),
    "dinov3_vit": (hugging_face("DINOv3ViTBackbone", 32, **TOKENS), IndexError, "out of range"),
}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def our_channels(graph: ChannelGraph) -> dict[Place, tuple[str, Channel]]:
    """Every place -> the group and the channel that it belongs to."""
    found: dict[Place, tuple[str, Channel]] = {}
    for group in graph.groups:
        channels: list[set[Place]] = [set() for _ in range(group.size)]
        for member in group.members:
            for channel, position in zip(member.channels.tolist(), member.positions.tolist(), strict=True):
                channels[channel].add((member.tensor, member.dim, position))
        for places in channels:
            found.update(dict.fromkeys(places, (group.name, frozenset(places))))
    return found


class TheirChannels:
    """Torch-Pruning's graph, asked for the places of single channels."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.graph = tp.DependencyGraph().build_dependency(model, images, output_transform=leaves, verbose=False)
        self.names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
        self.names |= {id(parameter): name for name, parameter in model.named_parameters()}

    def layers(self) -> list[tuple[str, nn.Module]]:
        """What channels can start from: convolutions and linear layers, by name."""
        found = [node for node in self.graph.module2node if isinstance(node, nn.Conv2d | nn.Linear)]
        return [(self.names[id(layer)], layer) for layer in found]

    def channel(self, layer: nn.Module, index: int) -> Channel:
        """Places that are cut together with output `index` of a layer."""
        write = self.graph.get_pruner_of_module(layer).prune_out_channels
        places: set[Place] = set()
        for dependency, indices in self.graph.get_pruning_group(layer, write, [index]):
            target = dependency.target.module
            if id(target) in self.names:  # else an operation, without tensors
                reads = dependency.handler.__name__ == "prune_in_channels"
                for tensor, dim in self._cut(target, dependency.target.pruning_dim, reads):
                    places.update((tensor, dim, place) for place in indices)
        return frozenset(places)

    def _cut(self, target: nn.Module | nn.Parameter, dim: int, reads: bool) -> list[tuple[str, int]]:
        name = self.names[id(target)]
        if isinstance(target, nn.Parameter):
            return [(name, dim % target.dim())]
        if isinstance(target, nn.Conv2d | nn.Linear):
            written = [("weight", 0), ("bias", 0)] if target.bias is not None else [("weight", 0)]
            return [(f"{name}.{tensor}", dim) for tensor, dim in ([("weight", 1)] if reads else written)]
        vectors = [tensor for tensor, value in target.state_dict().items() if value.dim() == 1]
        return [(f"{name}.{tensor}", 0) for tensor in vectors]  # a norm's, with its statistics


def leaves(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def sample(outputs: int) -> set[int]:
    """The first, the last and another channel of a layer."""
    return {0, int(torch.randint(outputs, ())), outputs - 1}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in DEEPER else []) for name in MODELS]
)
def test_the_same_places_are_coupled(name: str) -> None:
    model, images = MODELS[name]()
    graph, theirs = trace(model, images), TheirChannels(model, images)
    assert {group.frozen for group in graph.frozen} <= LEFT_ALONE

    channels = our_channels(graph)
    different: dict[str, str] = {}
    compared: set[str] = set()
    for layer_name, layer in theirs.layers():
        for index in sample(layer.get_parameter("weight").shape[0]):
            group, channel = channels.get((f"{layer_name}.weight", 0, index), ("", frozenset()))
            if group:
                compared.add(group)
                other = theirs.channel(layer, index)
                if channel != other:
                    more, less = sorted(channel - other), sorted(other - channel)
                    different[layer_name] = f"channel {index}: only ours {more}; only Torch-Pruning's {less}"
    assert compared == {group.name for group in graph.groups}

    if name in DIFFERENT:
        expected, reason = DIFFERENT[name]
        assert different, f"no longer needed: {reason}"
        different = {layer: text for layer, text in different.items() if not re.fullmatch(expected, layer)}
    assert not different, "\n".join(f"{layer}, {text}" for layer, text in different.items())


def test_every_difference_is_of_a_network_that_is_compared() -> None:
    assert set(DIFFERENT) <= set(MODELS)


@pytest.mark.parametrize("name", BROKEN)
def test_torch_pruning_leaves_a_network_that_does_not_run(name: str) -> None:
    """espalier's side of the claim is in test_huggingface."""
    build, error, message = BROKEN[name]
    model, images = build()
    with pytest.raises(error, match=message):
        graph = tp.DependencyGraph().build_dependency(model, images, output_transform=leaves, verbose=False)
        heads = [layer for path, layer in model.named_modules() if path.endswith("classifier")]
        for group in graph.get_all_groups(ignored_layers=heads):
            group.prune(idxs=[0])
        model(images)
