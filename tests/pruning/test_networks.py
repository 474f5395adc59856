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
    CifarResNet,
    MobileNetV2,
    ResNet,
    ZeroPadShortcut,
    build,
    load_weights,
)

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("ESPALIER_SHARED", REPOSITORY.parent / "shared"))
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
        ("mobilenet_v2", {"form": "imagenet", "num_classes": 1000}, 3_504_872),
        # the forms differ in strides alone, and the linear layer has 1280 weights and a bias per class
        ("mobilenet_v2", {}, 3_504_872 - 990 * 1281),
    ],
)
def test_parameters_are_the_published_number(name: str, kwargs: dict[str, Any], expected: int) -> None:
    with torch.device("meta"):
        assert parameters(build(name, **kwargs)) == expected


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
        ("mobilenet_v2", {"form": "imagenet", "num_classes": 1000}, 0.301),
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
    ("name", "entries", "some"),
    [
        (
            "resnet50",
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
        ("resnet18", 122, {"layer2.0.downsample.0.weight": (128, 64, 1, 1), "layer4.1.bn2.weight": (512,)}),
        (
            "mobilenet_v2",
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
    ],
)
def test_state_dicts_read_as_torchvisions(name: str, entries: int, some: dict[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        state = build(name).state_dict()
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
def test_every_network_exports(name: str) -> None:
    network = build(name, num_classes=5).eval()
    images = torch.randn(1, 3, 32, 32)
    program = torch.export.export(network, (images,), strict=False)
    torch.testing.assert_close(program.module()(images), network(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_other_classes_and_grey_images(name: str) -> None:
    with torch.device("meta"):
        assert build(name, num_classes=7, in_channels=1)(torch.empty(2, 1, 64, 64)).shape == (2, 7)


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
    ],
)
def test_weights_are_drawn_as_by_kaiming(network: type[nn.Module], layer: str, fan: int) -> None:
    weight = network().get_parameter(f"{layer}.weight")
    assert weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.1)


def test_scales_of_vgg_start_at_a_half() -> None:
    norms = [module for module in VGG(11).modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all((norm.weight == 0.5).all() for norm in norms)


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "vgg11_bn", "mobilenet_v2"])
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
        (VGG, {"pools": 6}, r"pools must be at most 5, got 6: .* write 5 to keep them all"),
        (MobileNetV2, {"form": "tiny"}, r"form must be one of 'cifar', 'imagenet', got 'tiny':"),
        (MobileNetV2, {"stem_stride": 1.5}, r"stem_stride must be a whole number of at least 1, got 1\.5:"),
        (MobileNetV2, {"width_mult": 0}, r"width_mult must be a number above 0, got 0:"),
        (MobileNetV2, {"width_mult": "1"}, r"width_mult must be a number above 0, got '1':"),
        (MobileNetV2, {"width_mult": math.nan}, r"width_mult must be a number above 0, got nan:"),
        (MobileNetV2, {"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1\.0:"),
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
        ("qqq", {}, r"got 'qqq': the names are resnet20, resnet32, .*, mobilenet_v2\."),
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


@pytest.mark.parametrize("module", ["", ".cifar_resnet", ".mobilenet", ".resnet", ".vgg"])
def test_examples_in_docstrings_run(module: str) -> None:
    results = doctest.testmod(importlib.import_module(f"espalier.pruning.networks{module}"))
    assert results.attempted > 0 and results.failed == 0
