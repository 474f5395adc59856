"""The networks against what was published about them, and all that can be wrong with a name or a file.

MACs are counted by torch's own counter: two operations per multiply-add of convolutions and linear layers,
and nothing for biases, normalisation, activations and pools.
"""

from __future__ import annotations

import copy
import doctest
import importlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from espalier.errors import ConfigError, WeightsError
from espalier.pruning.networks import (
    NETWORKS,
    VGG,
    AlexNet,
    CifarDenseNet,
    CifarNet,
    CifarResNet,
    DenseNet,
    EfficientNet,
    GhostNet,
    MobileNetV1,
    MobileNetV2,
    PreActSeNet,
    RegNet,
    ResNet,
    ShuffleNetV1,
    ShuffleNetV2,
    VisionTransformer,
    ZeroPadShortcut,
    build,
    load_weights,
)
from espalier.pruning.networks.densenet import DenseLayer
from espalier.pruning.networks.preact_se import SqueezeExcitation
from espalier.pruning.networks.shufflenet import ShuffleUnitV1, ShuffleUnitV2

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("ESPALIER_SHARED", REPOSITORY.parent / "shared"))
IMAGENET: dict[str, Any] = {"form": "imagenet", "num_classes": 1000}
VIT: dict[str, Any] = {"num_classes": 1000, "image_size": 224, "patch_size": 16}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def macs(name: str, side: int, **kwargs: Any) -> float:
    """Multiply-adds of one image; on the meta device, since only shapes matter."""
    with torch.device("meta"):
        network = build(name, **kwargs).eval()
        images = torch.empty(1, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        network(images)
    return float(counter.get_total_flops()) / 2


def randomise_norms(network: nn.Module) -> None:
    """Statistics and affines of a network that was trained, so that eval mode depends on every channel."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)


# --------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("resnet20", {}, 269_722),
        ("resnet32", {}, 464_154),
        ("resnet44", {}, 658_586),
        ("resnet56", {}, 853_018),
        ("resnet110", {}, 1_727_962),
        ("resnet18", {}, 11_689_512),
        ("resnet34", {}, 21_797_672),
        ("resnet50", {}, 25_557_032),
        ("resnet101", {}, 44_549_160),
        ("mobilenet_v2", IMAGENET, 3_504_872),
        # the forms differ in strides alone, and the linear layer has 1280 weights and a bias per class
        ("mobilenet_v2", {}, 3_504_872 - 990 * 1281),
        # torchvision's table of weights
        ("alexnet", IMAGENET, 61_100_840),
        ("densenet121", {}, 7_978_856),
        ("shufflenet_v2", {**IMAGENET, "width_mult": 0.5}, 1_366_792),
        ("shufflenet_v2", IMAGENET, 2_278_604),
        ("shufflenet_v2", {**IMAGENET, "width_mult": 1.5}, 3_503_624),
        ("shufflenet_v2", {**IMAGENET, "width_mult": 2.0}, 7_393_996),
        ("efficientnet_b0", IMAGENET, 5_288_548),
        ("regnet_y_400mf", IMAGENET, 4_344_144),
        # timm's table of weights: regnetx_002, regnety_002, deit_tiny_patch16_224
        ("regnet_x_200mf", IMAGENET, 2_684_792),
        ("regnet_y_200mf", IMAGENET, 3_162_996),
        ("vit_tiny", VIT, 5_717_416),
        # counted in the authors' code at 71a0ef7 of https://github.com/huawei-noah/Efficient-AI-Backbones
        ("g_ghost_regnet_x_200mf", IMAGENET, 1_825_440),
        ("g_ghost_regnet_x_400mf", IMAGENET, 2_884_456),
        # counted by users of https://github.com/kuangliu/pytorch-cifar
        ("preact_senet18", {}, 11_260_354),
        ("shufflenet_v2", {}, 1_263_854),
        # https://github.com/osmr/imgclsmob
        ("densenet100_bc", {}, 769_162),
        ("shufflenet_v1", {**IMAGENET, "groups": 1}, 1_531_936),
        ("shufflenet_v1", {**IMAGENET, "groups": 2}, 1_733_848),
        ("shufflenet_v1", IMAGENET, 1_865_728),
        ("shufflenet_v1", {**IMAGENET, "groups": 4}, 1_968_344),
        ("shufflenet_v1", {**IMAGENET, "groups": 8}, 2_434_768),
        # 3,185,088 of convolutions by the authors' table, two per normalised channel, and the linear layer
        ("mobilenet_v1", IMAGENET, 3_185_088 + 2 * (32 + 4960 + 5952) + 1025 * 1000),
    ],
)
def test_parameters_are_the_published_number(name: str, kwargs: dict[str, Any], expected: int) -> None:
    with torch.device("meta"):
        assert parameters(build(name, **kwargs)) == expected


@pytest.mark.parametrize(
    ("depth", "kwargs", "millions"),  # table 2 of Huang et al. 2017, C10+
    [
        (40, {}, 1.0),
        (100, {}, 7.0),
        (100, {"growth": 24}, 27.2),
        (100, {"bc": True}, 0.8),
        (250, {"bc": True, "growth": 24}, 15.3),
        (190, {"bc": True, "growth": 40}, 25.6),
    ],
)
def test_parameters_of_cifar_densenets_are_the_published_millions(
    depth: int, kwargs: dict[str, Any], millions: float
) -> None:
    with torch.device("meta"):
        assert round(parameters(CifarDenseNet(depth, **kwargs)) / 1e6, 1) == millions


@pytest.mark.parametrize(("depth", "expected"), [(169, 14_149_480), (201, 20_013_928)])
def test_parameters_of_deeper_densenets_are_torchvisions(depth: int, expected: int) -> None:
    with torch.device("meta"):
        assert parameters(DenseNet(depth)) == expected


@pytest.mark.parametrize(
    ("kwargs", "parameters_expected", "macs_expected"),  # table 6 of Howard et al. 2017, in millions
    [
        ({}, 4.2, 569),
        ({"width_mult": 0.75}, 2.6, 325),
        ({"width_mult": 0.5}, 1.3, 149),
        ({"width_mult": 0.25}, 0.5, 41),
    ],
)
def test_mobilenet_v1_costs_the_published_millions(
    kwargs: dict[str, Any], parameters_expected: float, macs_expected: int
) -> None:
    with torch.device("meta"):
        count = parameters(build("mobilenet_v1", **IMAGENET, **kwargs))
    assert round(count / 1e6, 1) == parameters_expected
    assert round(macs("mobilenet_v1", 224, **IMAGENET, **kwargs) / 1e6) == macs_expected


def test_macs_of_mobilenet_v1_are_its_convolutions_and_its_linear_layer() -> None:
    assert macs("mobilenet_v1", 224, **IMAGENET) == 567_716_352 + 1024 * 1000  # the authors' table of layers


@pytest.mark.parametrize(("groups", "millions"), [(1, 143), (2, 140), (3, 137), (4, 133), (8, 137)])
def test_macs_of_shufflenet_v1_are_the_published_millions(groups: int, millions: int) -> None:
    """Table 1 of Zhang et al. 2018, whose widths and costs are rounded: within 1.5 million."""
    assert macs("shufflenet_v1", 224, **IMAGENET, groups=groups) / 1e6 == pytest.approx(millions, abs=1.5)


@pytest.mark.parametrize(("width_mult", "millions"), [(0.5, 41), (1.0, 146), (1.5, 299), (2.0, 591)])
def test_macs_of_shufflenet_v2_are_the_papers(width_mult: float, millions: int) -> None:
    """Table 8 of Ma et al. 2018, a little above what convolutions and linear layers cost: within 1.5 %."""
    assert macs("shufflenet_v2", 224, **IMAGENET, width_mult=width_mult) / 1e6 == pytest.approx(millions, rel=0.015)


@pytest.mark.parametrize(
    ("size", "widths", "blocks", "params_expected", "macs_expected"),  # tables 5 and 6 of Radosavovic et al. 2020
    [
        ("x_200mf", [24, 56, 152, 368], [1, 1, 4, 7], 2.7, 200),
        ("x_400mf", [32, 64, 160, 384], [1, 2, 7, 12], 5.2, 400),
        ("x_800mf", [64, 128, 288, 672], [1, 3, 7, 5], 7.3, 800),
        ("y_200mf", [24, 56, 152, 368], [1, 1, 4, 7], 3.2, 200),
        ("y_400mf", [48, 104, 208, 440], [1, 3, 6, 6], 4.3, 400),
        ("y_800mf", [64, 128, 320, 768], [1, 3, 8, 2], 6.3, 800),
    ],
)
def test_regnets_have_the_published_stages_and_costs(
    size: str, widths: list[int], blocks: list[int], params_expected: float, macs_expected: int
) -> None:
    with torch.device("meta"):
        network = RegNet(size, **IMAGENET)
        images = torch.empty(1, 3, 224, 224)
    stages = list(network.trunk_output)
    assert [len(list(stage.children())) for stage in stages] == blocks
    assert [next(stage.children()).get_parameter("f.c.0.weight").shape[0] for stage in stages] == widths
    assert round(parameters(network) / 1e6, 1) == params_expected
    with FlopCounterMode(display=False) as counter:
        network.eval()(images)
    assert round(counter.get_total_flops() / 2e8) * 100 == macs_expected


def test_ghostnet_costs_the_published_millions() -> None:
    """Table 7 of Han et al. 2020."""
    with torch.device("meta"):
        assert round(parameters(build("ghostnet", **IMAGENET)) / 1e6, 1) == 5.2
    assert round(macs("ghostnet", 224, **IMAGENET) / 1e6) == 141


@pytest.mark.parametrize(("size", "expected"), [("200", 130_922_824), ("400", 221_245_824)])
def test_g_ghost_regnets_cost_what_the_authors_do(size: str, expected: int) -> None:
    assert macs(f"g_ghost_regnet_x_{size}mf", 224, **IMAGENET) == expected


def test_macs_of_efficientnet_are_the_published_ones() -> None:
    assert round(macs("efficientnet_b0", 224, **IMAGENET) / 1e9, 3) == 0.386  # torchvision's table of weights


@pytest.mark.parametrize(("size", "expected"), [("small", 22_050_664), ("base", 86_567_656)])
def test_larger_vision_transformers_have_the_published_parameters(size: str, expected: int) -> None:
    with torch.device("meta"):
        assert parameters(VisionTransformer(size, **VIT)) == expected


def test_a_vision_transformer_resizes_its_positions() -> None:
    network = VisionTransformer("tiny", depth=1).eval()
    with torch.no_grad():
        network.pos_embed[:, 1:] = network.pos_embed[:, 1:2]  # the same everywhere: resizing changes nothing
    small, large = network._positions(2, 3), network._positions(8, 8)
    torch.testing.assert_close(small, large[:, :7])
    assert network(torch.randn(2, 3, 8, 12)).shape == (2, 10)


@pytest.mark.parametrize(("classes", "channels"), [(10, 3), (100, 1)])
def test_cifarnet_costs_its_closed_form(classes: int, channels: int) -> None:
    kernels = [25 * channels * 64, 25 * 64 * 64]
    linear = [8 * 8 * 64 * 384, 384 * 192, 192 * classes]
    assert parameters(CifarNet(classes, channels)) == sum(kernels + linear) + 4 * 64 + 384 + 192 + classes
    if channels == 3:
        assert macs("cifarnet", 32, num_classes=classes) == 32**2 * kernels[0] + 16**2 * kernels[1] + sum(linear)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_alexnet_on_cifar_costs_its_closed_form(batch_norm: bool) -> None:
    kernels = [121 * 3 * 64, 25 * 64 * 192, 9 * 192 * 384, 9 * 384 * 256, 9 * 256 * 256]
    widths = 64 + 192 + 384 + 256 + 256
    count = parameters(AlexNet(batch_norm=batch_norm))
    assert count == sum(kernels) + widths * (2 if batch_norm else 1) + 257 * 10
    assert round(count / 1e6, 2) == 2.47  # https://github.com/bearpaw/pytorch-classification
    expected = 8**2 * kernels[0] + 4**2 * kernels[1] + 2**2 * sum(kernels[2:]) + 256 * 10
    assert macs("alexnet_bn" if batch_norm else "alexnet", 32) == expected


def test_preact_senet_costs_its_closed_form() -> None:
    count, cost = 27 * 64 + 2 * 64 + 513 * 10, 32**2 * 27 * 64 + 512 * 10
    inputs = 64
    for outputs, side in ((64, 32), (128, 16), (256, 8), (512, 4)):
        convolutions = 9 * inputs * outputs + 3 * 9 * outputs**2
        convolutions += inputs * outputs if inputs != outputs else 0
        squeezed = 2 * outputs * (outputs // 16)  # weights of a block
        norms = 2 * inputs + 3 * 2 * outputs
        count += convolutions + norms + 2 * (squeezed + outputs + outputs // 16)
        cost += side**2 * convolutions + 2 * squeezed
        inputs = outputs
    assert parameters(PreActSeNet(18)) == count
    assert macs("preact_senet18", 32) == cost


@pytest.mark.parametrize(
    ("name", "kwargs", "blocks", "layers"),
    [
        ("densenet40", {}, 3, 12),
        ("densenet40", {"growth": 5}, 3, 12),
        ("densenet89", {}, 4, 21),
        ("densenet100_bc", {"growth": 7}, 3, 16),
    ],
)
def test_cifar_densenets_cost_their_closed_form(
    name: str, kwargs: dict[str, Any], blocks: int, layers: int
) -> None:
    growth, bc = kwargs.get("growth", 12), name.endswith("_bc")
    width = 2 * growth if bc else 16
    count, cost, side = 27 * width, 32**2 * 27 * width, 32
    for block in range(blocks):
        for _ in range(layers):
            weights = width * 4 * growth + 9 * 4 * growth**2 if bc else 9 * width * growth
            count += 2 * width + weights + (2 * 4 * growth if bc else 0)
            cost += side**2 * weights
            width += growth
        if block < blocks - 1:
            outputs = width // 2 if bc else width
            count += 2 * width + width * outputs
            cost += side**2 * width * outputs
            width, side = outputs, side // 2
    with torch.device("meta"):
        assert parameters(build(name, **kwargs)) == count + 2 * width + 10 * (width + 1)
    assert macs(name, 32, **kwargs) == cost + 10 * width


@pytest.mark.parametrize("blocks", [1, 3, 5])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_cifar_resnet_parameters_follow_the_closed_form(blocks: int, shortcut: Any) -> None:
    width, classes, channels = 12, 7, 1

    def stage(inputs: int, outputs: int) -> int:
        convolutions = 9 * inputs * outputs + (2 * blocks - 1) * 9 * outputs**2
        projection = inputs * outputs + 2 * outputs if shortcut == "B" and inputs != outputs else 0
        return convolutions + 2 * blocks * 2 * outputs + projection

    expected = 9 * channels * width + 2 * width + (4 * width + 1) * classes
    expected += stage(width, width) + stage(width, 2 * width) + stage(2 * width, 4 * width)
    assert parameters(CifarResNet(6 * blocks + 2, classes, channels, shortcut, width)) == expected


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("vgg11_bn", [64, 128] + [256] * 2 + [512] * 4),
        ("vgg13_bn", [64] * 2 + [128] * 2 + [256] * 2 + [512] * 4),
        ("vgg16_bn", [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6),
        ("vgg19_bn", [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8),
    ],
)
def test_vgg_parameters_follow_the_closed_form(name: str, widths: list[int]) -> None:
    convolutions = sum(9 * before * after for before, after in zip([3, *widths], widths, strict=False))
    with torch.device("meta"):
        assert parameters(build(name, num_classes=10)) == convolutions + 2 * sum(widths) + 512 * 10 + 10


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet20", 40.55), ("resnet44", 97.17), ("resnet56", 125.49), ("resnet110", 252.89)],
)
def test_macs_of_cifar_resnets_are_the_published_millions(name: str, expected: float) -> None:
    assert round(macs(name, 32) / 1e6, 2) == expected


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),  # in thousand millions, from torchvision's table of weights
    [
        ("resnet18", {}, 1.814),
        ("resnet34", {}, 3.664),
        ("resnet50", {}, 4.089),
        ("resnet101", {}, 7.801),
        ("mobilenet_v2", IMAGENET, 0.301),
        ("alexnet", IMAGENET, 0.714),
        ("densenet121", {}, 2.834),
        ("shufflenet_v2", {**IMAGENET, "width_mult": 0.5}, 0.04),
        ("shufflenet_v2", IMAGENET, 0.145),
        ("shufflenet_v2", {**IMAGENET, "width_mult": 1.5}, 0.296),
        ("shufflenet_v2", {**IMAGENET, "width_mult": 2.0}, 0.583),
    ],
)
def test_macs_at_224_are_the_published_ones(name: str, kwargs: dict[str, Any], expected: float) -> None:
    assert round(macs(name, 224, **kwargs) / 1e9, 3) == expected


def test_macs_of_resnet50_are_its_convolutions_and_its_linear_layer() -> None:
    assert macs("resnet50", 224) == 4_087_136_256 + 2048 * 1000  # 4089.18 M


def test_macs_of_vgg16_on_cifar_are_the_published_millions() -> None:
    assert round(macs("vgg16_bn", 32) / 1e6, 1) == 313.2


# ------------------------------------------------------------------------------------ names of parameters


def test_cifar_resnet_has_the_names_of_the_public_weights() -> None:
    names = set(CifarResNet(20).state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "linear.weight", "linear.bias"} | {f"bn1.{entry}" for entry in norm}
    for stage in (1, 2, 3):
        for block in range(3):
            for index in (1, 2):
                expected.add(f"layer{stage}.{block}.conv{index}.weight")
                expected |= {f"layer{stage}.{block}.bn{index}.{entry}" for entry in norm}
    assert names == expected


def test_shortcut_b_is_a_convolution_and_a_norm() -> None:
    extra = set(CifarResNet(20, shortcut="B").state_dict()) - set(CifarResNet(20).state_dict())
    assert {name.rsplit(".", 1)[0] for name in extra} == {
        f"layer{stage}.0.shortcut.{index}" for stage in (2, 3) for index in (0, 1)
    }


@pytest.mark.parametrize(
    ("name", "kwargs", "entries", "some"),
    [
        (
            "resnet50",
            {},
            320,
            {
                "conv1.weight": (64, 3, 7, 7),
                "layer1.0.downsample.0.weight": (256, 64, 1, 1),
                "layer1.0.downsample.1.running_var": (256,),
                "layer3.5.conv3.weight": (1024, 256, 1, 1),
                "layer4.2.bn3.bias": (2048,),
                "fc.weight": (1000, 2048),
            },
        ),
        ("resnet18", {}, 122, {"layer2.0.downsample.0.weight": (128, 64, 1, 1), "layer4.1.bn2.weight": (512,)}),
        (
            "mobilenet_v2",
            {},
            314,
            {
                "features.0.0.weight": (32, 3, 3, 3),
                "features.1.conv.0.0.weight": (32, 1, 3, 3),
                "features.1.conv.1.weight": (16, 32, 1, 1),
                "features.2.conv.1.0.weight": (96, 1, 3, 3),
                "features.2.conv.3.running_mean": (24,),
                "features.17.conv.2.weight": (320, 960, 1, 1),
                "features.18.1.weight": (1280,),
                "classifier.1.weight": (10, 1280),
            },
        ),
        (
            "alexnet",
            IMAGENET,
            16,
            {
                "features.0.weight": (64, 3, 11, 11),
                "features.3.bias": (192,),
                "features.6.weight": (384, 192, 3, 3),
                "features.8.weight": (256, 384, 3, 3),
                "features.10.bias": (256,),
                "classifier.1.weight": (4096, 9216),
                "classifier.4.bias": (4096,),
                "classifier.6.weight": (1000, 4096),
            },
        ),
        (
            "densenet121",
            {},
            727,
            {
                "features.conv0.weight": (64, 3, 7, 7),
                "features.norm0.running_mean": (64,),
                "features.denseblock1.denselayer1.norm1.weight": (64,),
                "features.denseblock1.denselayer6.conv1.weight": (128, 224, 1, 1),
                "features.denseblock3.denselayer24.norm2.bias": (128,),
                "features.denseblock4.denselayer16.conv2.weight": (32, 128, 3, 3),
                "features.transition2.norm.running_var": (512,),
                "features.transition3.conv.weight": (512, 1024, 1, 1),
                "features.norm5.bias": (1024,),
                "classifier.weight": (1000, 1024),
            },
        ),
        (
            "shufflenet_v2",
            {},
            338,
            {
                "conv1.0.weight": (24, 3, 3, 3),
                "conv1.1.running_mean": (24,),
                "stage2.0.branch1.0.weight": (24, 1, 3, 3),
                "stage2.0.branch1.2.weight": (58, 24, 1, 1),
                "stage2.0.branch1.3.bias": (58,),
                "stage2.0.branch2.0.weight": (58, 24, 1, 1),
                "stage3.7.branch2.3.weight": (116, 1, 3, 3),
                "stage3.7.branch2.4.weight": (116,),
                "stage4.3.branch2.5.weight": (232, 232, 1, 1),
                "stage4.3.branch2.6.running_var": (232,),
                "conv5.0.weight": (1024, 464, 1, 1),
                "conv5.1.bias": (1024,),
                "fc.weight": (10, 1024),
            },
        ),
    ],
)
def test_state_dicts_read_as_torchvisions(
    name: str, kwargs: dict[str, Any], entries: int, some: dict[str, tuple[int, ...]]
) -> None:
    with torch.device("meta"):
        state = build(name, **kwargs).state_dict()
    assert len(state) == entries
    assert {key: tuple(state[key].shape) for key in some} == some


def test_bottlenecks_stride_in_the_middle() -> None:
    with torch.device("meta"):
        first = build("resnet50").get_submodule("layer2.0")
    strides = {name: module.stride for name, module in first.named_modules() if isinstance(module, nn.Conv2d)}
    assert strides == {"conv1": (1, 1), "conv2": (2, 2), "conv3": (1, 1), "downsample.0": (2, 2)}


# --------------------------------------------------------------------------------------------- forward


class PaddedShortcut(nn.Module):
    """Shortcut A as the public code has it."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.planes = planes

    def forward(self, x: Tensor) -> Tensor:
        quarter = self.planes // 4
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter), "constant", 0)


@pytest.mark.parametrize("side", [32, 9])
def test_shortcut_a_equals_padding(side: int) -> None:
    network = CifarResNet(20).eval()
    randomise_norms(network)
    reference = copy.deepcopy(network)
    for stage, planes in (("layer2", 32), ("layer3", 64)):
        reference.set_submodule(f"{stage}.0.shortcut", PaddedShortcut(planes))
    images = torch.randn(2, 3, side, side)
    assert torch.equal(network(images), reference(images))


def test_shortcut_a_pads_an_odd_difference_by_one_more_behind() -> None:
    x = torch.randn(2, 3, 4, 5)
    out = ZeroPadShortcut(3, 6, 2)(x)
    assert out.shape == (2, 6, 2, 3)
    assert torch.equal(out[:, 1:4], x[:, :, ::2, ::2])
    assert not out[:, :1].any() and not out[:, 4:].any()


def test_cifar_resnet_runs_after_its_tensors_were_sliced() -> None:
    """Uneven widths in every stage, by replacing tensors alone, equal the same channels masked with zeros."""
    network = CifarResNet(20).eval()
    randomise_norms(network)
    masked, slim = copy.deepcopy(network), copy.deepcopy(network)

    def keep(tensor: Tensor, indices: Tensor, dim: int) -> Tensor:
        return tensor.detach().index_select(dim, indices).clone()

    def write(conv: str, norm: str, kept: Tensor) -> None:
        """Drop the outputs of a convolution and its norm, in both ways."""
        for name in (f"{conv}.weight", f"{norm}.weight", f"{norm}.bias"):
            gone = torch.ones(masked.get_parameter(name).shape[0], dtype=torch.bool)
            gone[kept] = False
            masked.get_parameter(name).data[gone] = 0
            slim.get_parameter(name).data = keep(slim.get_parameter(name), kept, 0)
        for name in (f"{norm}.running_mean", f"{norm}.running_var"):
            slim.get_buffer(name).data = keep(slim.get_buffer(name), kept, 0)

    def read(layer: str, kept: Tensor) -> None:
        slim.get_parameter(f"{layer}.weight").data = keep(slim.get_parameter(f"{layer}.weight"), kept, 1)

    # A stage's residual channels are the former stage's between two paddings, of which uneven parts stay.
    first = torch.tensor([0, 3, 4, 9, 15])
    second = torch.cat([torch.tensor([1, 2, 7]), 8 + first, torch.tensor([30])])
    third = torch.cat([torch.tensor([5]), 16 + second, torch.tensor([48, 50, 51, 63])])
    for stage, inputs, outputs, (in_front, behind) in (
        ("layer2", first, second, ([1, 2, 7], [30 - 24])),
        ("layer3", second, third, ([5], [0, 2, 3, 15])),
    ):
        shortcut = slim.get_submodule(f"{stage}.0.shortcut")
        assert isinstance(shortcut, ZeroPadShortcut)
        assert len(in_front) + len(inputs) + len(behind) == len(outputs)
        shortcut.before = keep(shortcut.before, torch.tensor(in_front), 1)
        shortcut.after = keep(shortcut.after, torch.tensor(behind), 1)
    write("conv1", "bn1", first)
    residual = first
    for stage, outputs in (("layer1", first), ("layer2", second), ("layer3", third)):
        for block in range(3):
            width = len(network.get_parameter(f"{stage}.{block}.bn1.weight"))
            inner = torch.randperm(width)[: 3 + block]  # in any order: a conv and its reader agree on it
            write(f"{stage}.{block}.conv1", f"{stage}.{block}.bn1", inner)
            read(f"{stage}.{block}.conv1", residual)
            write(f"{stage}.{block}.conv2", f"{stage}.{block}.bn2", outputs)
            read(f"{stage}.{block}.conv2", inner)
            residual = outputs
    read("linear", third)

    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(slim(images), masked(images), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(masked(images), network(images), atol=1e-2)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_other_classes_and_grey_images(name: str) -> None:
    with torch.device("meta"):
        assert build(name, num_classes=7, in_channels=1)(torch.empty(2, 1, 64, 64)).shape == (2, 7)


def test_vgg_of_a_quarter_of_the_widths() -> None:
    narrow, whole = VGG(11, width_mult=0.25), VGG(11)
    widths = [[m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)] for net in (narrow, whole)]
    assert [4 * width for width in widths[0]] == widths[1]
    assert narrow.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_vgg_without_its_last_pools_takes_digits_and_the_same_weights() -> None:
    digits = VGG(11, in_channels=1, pools=3).eval()
    assert digits(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert set(digits.state_dict()) == set(VGG(11, in_channels=1).state_dict())
    assert digits.features(torch.randn(1, 1, 32, 32)).shape == (1, 512, 4, 4)
    with torch.device("meta"):
        assert VGG(11, pools=0).features(torch.empty(1, 3, 8, 8)).shape == (1, 512, 8, 8)


@pytest.mark.parametrize(
    ("kwargs", "side"),
    [
        ({}, 4),
        ({"stem_stride": 2}, 2),
        ({"form": "imagenet"}, 1),
        ({"form": "imagenet", "stem_stride": 1}, 2),
    ],
)
def test_forms_of_mobilenet_differ_in_strides(kwargs: dict[str, Any], side: int) -> None:
    with torch.device("meta"):
        assert MobileNetV2(**kwargs).eval().features(torch.empty(1, 3, 32, 32)).shape == (1, 1280, side, side)


@pytest.mark.parametrize(
    ("kwargs", "side"),
    [({}, 2), ({"stem_stride": 2}, 1), ({"form": "imagenet"}, 1), ({"form": "imagenet", "stem_stride": 1}, 2)],
)
def test_forms_of_mobilenet_v1_differ_in_the_stem(kwargs: dict[str, Any], side: int) -> None:
    with torch.device("meta"):
        assert MobileNetV1(**kwargs).eval().features(torch.empty(1, 3, 32, 32)).shape == (1, 1024, side, side)


@pytest.mark.parametrize("network", [ShuffleNetV1, ShuffleNetV2])
@pytest.mark.parametrize(("form", "side"), [("cifar", 8), ("imagenet", 2)])
def test_forms_of_shufflenet_differ_in_stem_and_pool(network: Any, form: str, side: int) -> None:
    with torch.device("meta"):
        network = network(form=form).eval()
        x = network.maxpool(network.conv1(torch.empty(1, 3, 64, 64)))
        assert x.shape == (1, 24, 8 * side, 8 * side)
        assert network.stage4(network.stage3(network.stage2(x))).shape[2:] == (side, side)


@pytest.mark.parametrize(("kwargs", "side"), [({}, 29), ({"form": "imagenet"}, 63)])
def test_alexnet_takes_images_from_the_smallest_that_its_pools_leave_anything_of(
    kwargs: dict[str, Any], side: int
) -> None:
    with torch.device("meta"):
        network = AlexNet(**kwargs).eval()
        assert network(torch.empty(1, 3, side, side)).shape == (1, 10)
        with pytest.raises(RuntimeError, match="too small"):
            network(torch.empty(1, 3, side - 1, side - 1))


@pytest.mark.parametrize("side", [4, 8, 48])
def test_cifarnet_takes_other_sizes(side: int) -> None:
    assert CifarNet().eval()(torch.randn(1, 3, side, side)).shape == (1, 10)


def test_cifarnet_flattens_the_whole_map_at_32() -> None:
    features = torch.randn(1, 64, 8, 8)
    assert torch.equal(CifarNet().pool(features), features)


def test_a_dense_layer_appends() -> None:
    x = torch.randn(2, 6, 4, 4)
    out = DenseLayer(6, 3, bottleneck=True).eval()(x)
    assert out.shape == (2, 9, 4, 4) and torch.equal(out[:, :6], x)


def test_squeeze_and_excitation_scales_whole_channels() -> None:
    block = SqueezeExcitation(16)
    nn.init.zeros_(block.fc2.weight)
    x = torch.randn(2, 16, 3, 3)
    assert block.fc2.bias is not None
    torch.testing.assert_close(block(x), x * block.fc2.bias.sigmoid().view(1, 16, 1, 1))
    nn.init.normal_(block.fc2.weight)
    scales = block(x) / x
    torch.testing.assert_close(scales, scales[:, :, :1, :1].expand_as(scales))
    assert scales[0].min() > 0 and scales.max() < 1 and not torch.allclose(scales[0], scales[1])


def test_a_shuffle_unit_of_the_second_kind_lets_half_of_the_channels_pass() -> None:
    x = torch.randn(2, 8, 5, 5)
    out = ShuffleUnitV2(8, 8, 1).eval()(x)
    assert torch.equal(out[:, ::2], x[:, :4])
    assert not torch.allclose(out[:, 1::2], x[:, 4:])
    assert ShuffleUnitV2(8, 12, 2)(x).shape == (2, 12, 3, 3)


def test_a_shuffle_unit_of_the_first_kind_puts_pooled_channels_first() -> None:
    x = torch.rand(2, 6, 5, 5)
    out = ShuffleUnitV1(6, 24, 2, 3, first=True).eval()(x)
    assert out.shape == (2, 24, 3, 3)
    assert torch.equal(out[:, :6], F.avg_pool2d(x, 3, 2, 1))


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("width_mult", [0.25, 0.3, 1.7])
def test_groups_of_shufflenet_divide_every_width(groups: int, width_mult: float) -> None:
    with torch.device("meta"):
        network = ShuffleNetV1(groups=groups, width_mult=width_mult).eval()
        assert network(torch.empty(1, 3, 32, 32)).shape == (1, 10)


def test_width_multiplier_of_mobilenet_v1_rounds_down_to_eight_at_least() -> None:
    with torch.device("meta"):
        state = MobileNetV1(width_mult=0.13).state_dict()
    assert [state[f"features.{index}.1.bias"].shape[0] for index in (0, 2, 4, 26)] == [8, 8, 16, 133]


def test_width_multiplier_rounds_to_eights() -> None:
    with torch.device("meta"):
        state = MobileNetV2(width_mult=0.35).state_dict()
        wide = MobileNetV2(width_mult=1.4).state_dict()
    widths = [state[f"features.{index}.conv.{'2' if index == 1 else '3'}.bias"].shape[0] for index in (1, 2, 4)]
    assert [state["features.0.1.bias"].shape[0], *widths] == [16, 8, 8, 16]
    assert state["features.18.1.bias"].shape[0] == 1280
    assert wide["features.18.1.bias"].shape[0] == 1792


def test_dropout_works_in_training_only() -> None:
    network = MobileNetV2(dropout=0.9)
    features = torch.ones(1, 1280)
    assert torch.equal(network.eval().classifier[0](features), features)
    assert (network.train().classifier[0](features) == 0).float().mean() > 0.8


def test_stem_stride_halves_the_map() -> None:
    images = torch.randn(1, 3, 32, 32)
    assert CifarResNet(8).conv1(images).shape[-2:] == (32, 32)
    assert CifarResNet(8, stem_stride=2).conv1(images).shape[-2:] == (16, 16)


# --------------------------------------------------------------------------------------- initialisation


@pytest.mark.parametrize(
    ("network", "layer", "fan"),
    [
        (CifarResNet, "layer3.0.conv2", 9 * 64),
        (CifarResNet, "linear", 64),
        (VGG, "features.0", 9 * 64),
        (MobileNetV2, "features.14.conv.1.0", 9),
        (MobileNetV2, "features.18.0", 320),
        (CifarNet, "features.4", 25 * 64),
        (CifarNet, "classifier.0", 64 * 8 * 8),
        (AlexNet, "features.6", 9 * 192),
        (PreActSeNet, "layer4.0.shortcut", 256),
        (CifarDenseNet, "features.transition1.conv", 160),
        (MobileNetV1, "features.25.0", 9),
        (ShuffleNetV1, "stage3.1.conv1", 160),
        (ShuffleNetV2, "conv5.0", 464),
        (EfficientNet, "features.8.0", 320),
        (GhostNet, "last.0", 160),
    ],
)
def test_weights_are_drawn_as_by_kaiming(network: type[nn.Module], layer: str, fan: int) -> None:
    weight = network().get_parameter(f"{layer}.weight")
    assert weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.1)


def test_scales_of_vgg_start_at_a_half() -> None:
    norms = [module for module in VGG(11).modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all((norm.weight == 0.5).all() for norm in norms)


@pytest.mark.parametrize(
    "name",
    [
        *("resnet20", "resnet18", "vgg11_bn", "mobilenet_v2", "cifarnet", "alexnet", "preact_senet18"),
        *("densenet40", "densenet121", "mobilenet_v1", "shufflenet_v1", "shufflenet_v2"),
        *("regnet_y_200mf", "efficientnet_b0", "ghostnet", "g_ghost_regnet_x_200mf", "vit_tiny"),
    ],
)
def test_same_seed_same_network(name: str) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build(name).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# ------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("network", "kwargs", "message"),
    [
        (CifarResNet, {"depth": 21}, r"depth must be 6n \+ 2, .* got 21: write 20 or 26\."),
        (CifarResNet, {"depth": 2}, r"depth must be a whole number of at least 8, got 2:"),
        (CifarResNet, {"depth": "20"}, r"depth must be a whole number of at least 8, got '20':"),
        (CifarResNet, {"shortcut": "C"}, r"shortcut must be one of 'A', 'B', got 'C':"),
        (CifarResNet, {"width": 0}, r"width must be a whole number of at least 1, got 0:"),
        (CifarResNet, {"stem_stride": 0}, r"stem_stride must be a whole number of at least 1, got 0:"),
        (CifarResNet, {"num_classes": True}, r"num_classes must be a whole number of at least 1, got True:"),
        (ResNet, {"depth": 20}, r"depth must be one of 18, 34, 50, 101, got 20: use CifarResNet"),
        (
            ResNet,
            {"depth": 18, "in_channels": 0},
            r"in_channels must be a whole number of at least 1, got 0:",
        ),
        (VGG, {"depth": 12}, r"depth must be one of 11, 13, 16, 19, got 12:"),
        (VGG, {"pools": -1}, r"pools must be a whole number of at least 0, got -1:"),
        (VGG, {"width_mult": 0}, r"width_mult must be a number above 0, got 0"),
        (VGG, {"pools": 6}, r"pools must be at most 5, got 6: .* write 5 to keep them all"),
        (MobileNetV2, {"form": "tiny"}, r"form must be one of 'cifar', 'imagenet', got 'tiny':"),
        (MobileNetV2, {"stem_stride": 1.5}, r"stem_stride must be a whole number of at least 1, got 1\.5:"),
        (MobileNetV2, {"width_mult": 0}, r"width_mult must be a number above 0, got 0:"),
        (MobileNetV2, {"width_mult": "1"}, r"width_mult must be a number above 0, got '1':"),
        (MobileNetV2, {"width_mult": math.nan}, r"width_mult must be a number above 0, got nan:"),
        (MobileNetV2, {"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1\.0:"),
        (CifarNet, {"num_classes": 0}, r"num_classes must be a whole number of at least 1, got 0:"),
        (CifarNet, {"dropout": -0.1}, r"dropout must lie in \[0, 1\), got -0\.1:"),
        (AlexNet, {"form": "tiny"}, r"form must be one of 'cifar', 'imagenet', got 'tiny':"),
        (AlexNet, {"batch_norm": "yes"}, r"batch_norm must be one of False, True, got 'yes':"),
        (PreActSeNet, {"depth": 50}, r"depth must be one of 18, 34, got 50:"),
        (PreActSeNet, {"in_channels": 0}, r"in_channels must be a whole number of at least 1, got 0:"),
        (CifarDenseNet, {"depth": 89}, r"depth must be 3n \+ 4, .* got 89: write 88 or 91\."),
        (CifarDenseNet, {"depth": 89, "bc": True}, r"depth must be 6n \+ 4, .* got 89: write 88 or 94\."),
        (
            CifarDenseNet,
            {"depth": 89, "bc": True, "blocks": 4},
            r"8n \+ 5, for 4 equal blocks of n bottlenecks of two convolutions, ",
        ),
        (CifarDenseNet, {"depth": 6}, r"depth must be a whole number of at least 7, got 6:"),
        (CifarDenseNet, {"blocks": 0}, r"blocks must be a whole number of at least 1, got 0:"),
        (CifarDenseNet, {"growth": 0}, r"growth must be a whole number of at least 1, got 0:"),
        (CifarDenseNet, {"bc": None}, r"bc must be one of False, True, got None:"),
        (DenseNet, {"depth": 40}, r"depth must be one of 121, 169, 201, got 40: use CifarDenseNet"),
        (MobileNetV1, {"form": None}, r"form must be one of 'cifar', 'imagenet', got None:"),
        (MobileNetV1, {"stem_stride": 0}, r"stem_stride must be a whole number of at least 1, got 0:"),
        (MobileNetV1, {"width_mult": -1}, r"width_mult must be a number above 0, got -1:"),
        (MobileNetV1, {"dropout": 1}, r"dropout must lie in \[0, 1\), got 1:"),
        (ShuffleNetV1, {"groups": 5}, r"groups must be one of 1, 2, 3, 4, 8, got 5:"),
        (ShuffleNetV1, {"width_mult": math.inf}, r"width_mult must be a number above 0, got inf:"),
        (ShuffleNetV1, {"form": "tiny"}, r"form must be one of 'cifar', 'imagenet', got 'tiny':"),
        (ShuffleNetV2, {"width_mult": 0.75}, r"width_mult must be one of 0\.5, 1\.0, 1\.5, 2\.0, got 0\.75:"),
        (ShuffleNetV2, {"form": "tiny"}, r"form must be one of 'cifar', 'imagenet', got 'tiny':"),
        (RegNet, {"size": "x_1gf"}, r"size must be one of 'x_200mf', .*, 'y_800mf', got 'x_1gf':"),
        (RegNet, {"size": "y_200mf", "ghost": True}, r"size is 'y_200mf'; G-Ghost stages do not .*: choose an x"),
        (RegNet, {"size": "x_200mf", "form": "tiny"}, r"form must be one of 'cifar', 'imagenet', got 'tiny':"),
        (EfficientNet, {"form": "tiny"}, r"form must be one of 'cifar', 'imagenet', got 'tiny':"),
        (EfficientNet, {"dropout": 1}, r"dropout must lie in \[0, 1\), got 1:"),
        (GhostNet, {"form": "tiny"}, r"form must be one of 'cifar', 'imagenet', got 'tiny':"),
        (GhostNet, {"dropout": -1}, r"dropout must lie in \[0, 1\), got -1:"),
        (VisionTransformer, {"size": "large"}, r"size must be one of 'tiny', 'small', 'base', got 'large':"),
        (VisionTransformer, {"size": "tiny", "depth": 0}, r"depth must be a whole number of at least 1, got 0:"),
        (
            VisionTransformer,
            {"size": "tiny", "patch_size": 5},
            r"image_size must be a multiple of patch_size, got 32 and 5: choose a patch that divides it",
        ),
    ],
)
def test_arguments_out_of_range(network: type[nn.Module], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        network(**kwargs)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- build


@pytest.mark.parametrize("name", NETWORKS)
def test_every_name_builds_its_class(name: str) -> None:
    with torch.device("meta"):
        assert type(build(name)) is NETWORKS[name][0]


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's module of networks."""
    (tmp_path / "espalier_test_networks.py").write_text(
        "from torch import nn\n"
        "class Tiny(nn.Sequential):\n"
        "    def __init__(self, classes, *, bias=True):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(4, classes, bias=bias))\n"
        "    @classmethod\n"
        "    def pair(cls):\n"
        "        return cls(2)\n"
        "def passes_on(**kwargs):\n"
        "    return Tiny(**kwargs)\n"
        "def text():\n"
        "    return 'network'\n"
        "made = Tiny(3)\n"
        "number = 5\n"
    )
    (tmp_path / "espalier_test_broken.py").write_text("import espalier_test_absent\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "kwargs", "shape"),
    [
        ("espalier_test_networks:Tiny", {"classes": 3, "bias": False}, (3, 4)),
        ("espalier_test_networks:Tiny.pair", {}, (2, 4)),
        ("espalier_test_networks:passes_on", {"classes": 6}, (6, 4)),
    ],
)
def test_build_imports_a_callable(name: str, kwargs: dict[str, Any], shape: tuple[int, int]) -> None:
    assert build(name, **kwargs).get_parameter("1.weight").shape == shape


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        (
            "resnet21",
            {},
            r"got 'resnet21': did you mean .*resnet20.*\? .* write package\.module:callable\.",
        ),
        ("VGG16-BN", {}, r"got 'VGG16-BN': did you mean vgg16_bn"),
        ("qqq", {}, r"got 'qqq': the names are resnet20, resnet32, .*, vit_tiny\."),
        ("torchvision.models.resnet18", {}, r"write torchvision\.models:resnet18\."),
        (
            "resnet20",
            {"num_class": 3},
            r"num_class is not an argument \(did you mean num_classes\?\); its arguments ",
        ),
        (
            "resnet20",
            {"zz": 3},
            r"zz is not an argument; its arguments are num_classes, in_channels, shortcut, ",
        ),
        (
            "resnet20",
            {"depth": 56, "a": 1},
            r"depth is 20 by the name itself, so drop it; a is not an argument",
        ),
        ("mobilenet_v2", {"dropout": 2}, r"dropout must lie in \[0, 1\), got 2:"),
        (":Tiny", {}, r"got ':Tiny': write the module, a colon and the callable"),
        (".relative:Tiny", {}, r"got '\.relative:Tiny': write the module, a colon"),
        ("espalier_test_networks:", {}, r"write the module, a colon and the callable"),
        ("espalier_test_absent:net", {}, r"importing espalier_test_absent failed \(ModuleNotFoundError: "),
        ("espalier_test_broken:net", {}, r"importing espalier_test_broken failed .*'espalier_test_absent'"),
        ("espalier_test_networks:tiny", {}, r"espalier_test_networks has no tiny, did you mean Tiny"),
        ("espalier_test_networks:qqqq", {}, r"espalier_test_networks has no qqqq, check its spelling\."),
        ("espalier_test_networks:number", {}, r"it is of type int and not a callable that returns a network"),
        ("espalier_test_networks:made", {}, r"it is of type Tiny and not a callable that returns a network"),
        (
            "espalier_test_networks:text",
            {},
            r"text must return a torch\.nn\.Module, got an object of type str",
        ),
        ("espalier_test_networks:Tiny", {}, r"classes is required; its arguments are classes, bias\."),
        (
            "espalier_test_networks:passes_on",
            {"width": 4},
            r"with width=4: .* unexpected keyword argument 'width'; ",
        ),
        ("espalier_test_networks:Tiny", {"classes": "ten"}, r"cannot be built with classes='ten': "),
    ],
)
def test_build_tells_what_is_wrong_in_one_line(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(name, **kwargs)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------- weights


def wrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("layout", ["plain", "state_dict", "model", "wrapped", "nested and wrapped", "safetensors"])
def test_load_weights_reads_every_layout(tmp_path: Path, layout: str) -> None:
    source, target = CifarResNet(8), CifarResNet(8)
    randomise_norms(source)
    state = source.state_dict()
    if layout == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(state, path)
    else:
        path = tmp_path / "weights.th"
        content: dict[str, Any] = {
            "plain": state,
            "state_dict": {"state_dict": state, "best_prec1": 91.7},
            "model": {"model": state, "epoch": 3},
            "wrapped": wrapped(state),
            "nested and wrapped": {"model": {"state_dict": wrapped(state)}},
        }[layout]
        torch.save(content, path)
    load_weights(target, path)
    assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in state.items())


def test_load_weights_into_a_wrapped_network(tmp_path: Path) -> None:
    source = CifarResNet(8)
    torch.save(wrapped(source.state_dict()), tmp_path / "weights.pt")
    target = nn.Sequential()
    target.add_module("module", CifarResNet(8))
    load_weights(target, str(tmp_path / "weights.pt"))
    assert torch.equal(target.get_parameter("module.conv1.weight"), source.conv1.weight)


def test_load_weights_keeps_the_count_of_batches_that_a_file_lacks(tmp_path: Path) -> None:
    source, target = CifarResNet(8), CifarResNet(8)
    target.get_buffer("bn1.num_batches_tracked").fill_(7)
    state = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "weights.pth")
    load_weights(target, tmp_path / "weights.pth")
    assert torch.equal(target.conv1.weight, source.conv1.weight)
    assert target.get_buffer("bn1.num_batches_tracked") == 7


def test_load_weights_names_the_shapes_and_changes_nothing(tmp_path: Path) -> None:
    torch.save(CifarResNet(8, num_classes=10).state_dict(), tmp_path / "weights.pt")
    target = CifarResNet(8, num_classes=100)
    before = copy.deepcopy(target.state_dict())
    message = (
        r"fit CifarResNet exactly, got 2 of another shape \(linear\.weight has shape \(10, 64\) in the file, "
        r"\(100, 64\) in the network; linear\.bias has shape \(10,\) in the file, \(100,\) in the network\): "
    )
    with pytest.raises(WeightsError, match=message):
        load_weights(target, tmp_path / "weights.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_load_weights_counts_what_is_missing_and_what_is_not_expected(tmp_path: Path) -> None:
    deeper, shallower = CifarResNet(14), CifarResNet(8)
    torch.save(shallower.state_dict(), tmp_path / "shallower.pt")
    torch.save(deeper.state_dict(), tmp_path / "deeper.pt")
    missing = r"got 30 missing from the file \(layer1\.1\.conv1\.weight, layer1\.1\.bn1\.weight, .* and 27 more\): "
    with pytest.raises(WeightsError, match=missing):  # 3 stages of 2 convolutions with 4 tensors of a norm each
        load_weights(deeper, tmp_path / "shallower.pt")
    with pytest.raises(
        WeightsError, match=r"got 36 in the file but not in the network \(layer1\.1\.conv1\.weight, "
    ):
        load_weights(shallower, tmp_path / "deeper.pt")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("absent.pt", None, r"got .*absent\.pt, which does not exist: check the path"),
        (".", None, r"which is a folder: check the path"),
        ("weights.bin", b"", r"must end in \.safetensors, \.pt, \.pth, \.th, got .*weights\.bin"),
        ("empty.pt", b"", r"empty\.pt, which cannot be read as such \(EOFError"),
        ("noise.th", b"\x80\x02noise", r"noise\.th, which cannot be read as such \("),
        ("noise.pth", b"PK\x03\x04noise", r"noise\.pth, which cannot be read as such \("),
        (
            "noise.safetensors",
            b"noise",
            r"noise\.safetensors, which cannot be read as such \(SafetensorError",
        ),
        ("object.pt", Path("x"), r"object\.pt, which cannot be read as such \(UnpicklingError"),
        ("list.pt", [1, 2], r"must hold a state dict, got an object of type list in .*list\.pt"),
        ("none.pt", {}, r"must map names to tensors, got none in .*none\.pt"),
        ("kinds.pt", {"a": torch.ones(1), "b": 3}, r"got 1 of other kinds \(b\) in .*kinds\.pt"),
    ],
)
def test_load_weights_tells_an_unreadable_file_in_one_line(
    tmp_path: Path, file: str, content: Any, message: str
) -> None:
    if isinstance(content, bytes):
        (tmp_path / file).write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / file)
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(nn.Linear(1, 1), tmp_path / file)
    assert "\n" not in str(caught.value)


def test_load_weights_refuses_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(CifarResNet(8).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="cannot be read as such"):
        load_weights(CifarResNet(8), path)


def shared_file(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"{path} is absent; ESPALIER_SHARED names the folder of real weights and data")
    return path


def test_public_resnet20_classifies_real_images() -> None:
    """91.73 % of all 10,000 test images by its authors' count."""
    network = build("resnet20").eval()
    load_weights(network, shared_file("weights", "resnet20-12fca82f.th"))
    records = np.fromfile(shared_file("data", "cifar-10-batches-bin", "test_batch.bin"), np.uint8, 2000 * 3073)
    records = records.reshape(2000, 3073)
    labels = torch.from_numpy(records[:, 0].astype(np.int64))
    images = torch.from_numpy(records[:, 1:].reshape(2000, 3, 32, 32)).float() / 255
    images = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.inference_mode():
        predicted = torch.cat([network(batch).argmax(1) for batch in images.chunk(8)])
    assert (predicted == labels).float().mean().item() >= 0.915


def test_public_resnet56_loads_and_does_not_fit_resnet20() -> None:
    path = shared_file("weights", "resnet56-4bfd9763.th")
    load_weights(build("resnet56"), path)
    with pytest.raises(WeightsError, match=r"180 in the file but not in the network \(layer1\.3\.conv1\.weight"):
        load_weights(build("resnet20"), path)


# ----------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize(
    "module",
    [
        *("", ".alexnet", ".cifar_resnet", ".cifarnet", ".densenet", ".mobilenet", ".mobilenet_v1"),
        *(".preact_se", ".resnet", ".shufflenet", ".vgg"),
    ],
)
def test_examples_in_docstrings_run(module: str) -> None:
    results = doctest.testmod(importlib.import_module(f"espalier.pruning.networks{module}"))
    assert results.attempted > 0 and results.failed == 0
