"""RegNetX and RegNetY (Radosavovic et al. 2020, arXiv:2003.13678), for ImageNet and for small images.

Widths of blocks follow from four numbers (section 3.3 of the paper). Block j of ``depth`` wants the width

    u_j = w_0 + w_a j                                                                                    (2)

which is rounded to w_0 w_m^s for a whole s, then to a multiple of 8, and at last to one of the group width; blocks
of equal width are a stage. Names of parameters are torchvision's. The CIFAR form has the same layers without the
strides of the stem and the first stage: 32x32 images end in a map of 4x4.

A G-Ghost RegNet (Han et al. 2022, arXiv:2201.03297) makes half of the channels of a stage by a 1x1 convolution of
what its first block gives, and the other half by its blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import groupby
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.networks.arguments import check_choice, check_classes_and_channels
from espalier.pruning.networks.initialisation import initialise_convolutions
from espalier.pruning.networks.squeeze import Squeeze

# size -> (depth, w_0, w_a, w_m, group width), tables 5 and 6 of the paper; the name ends in its million MACs
_SIZES: Final = {
    "x_200mf": (13, 24, 36.44, 2.49, 8),
    "x_400mf": (22, 24, 24.48, 2.54, 16),
    "x_800mf": (16, 56, 35.73, 2.28, 16),
    "y_200mf": (13, 24, 36.44, 2.49, 8),
    "y_400mf": (16, 48, 27.89, 2.09, 8),
    "y_800mf": (14, 56, 38.84, 2.40, 16),
}
_STEM: Final = 32


class Block(nn.Module):
    """A 1x1, a grouped 3x3 and a 1x1 convolution of one width, beside a shortcut.

    Args:
        inputs: channels that come in.
        outputs: channels of the three convolutions.
        stride: of the grouped convolution, in pixels.
        groups: of it.
        squeezed: channels between the layers of squeeze-and-excitation, 0 for none.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int, squeezed: int) -> None:
        super().__init__()
        self.proj: nn.Sequential | None = None
        if stride > 1 or inputs != outputs:
            self.proj = _conv_norm(inputs, outputs, 1, stride)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            a=_conv_norm(inputs, outputs, 1).append(nn.ReLU()),
            b=_conv_norm(outputs, outputs, 3, stride, groups).append(nn.ReLU()),
        )
        if squeezed:
            layers["se"] = Squeeze(outputs, squeezed, nn.ReLU(), nn.Sigmoid())
        layers["c"] = _conv_norm(outputs, outputs, 1)
        self.f = nn.Sequential(layers)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (batch, inputs, height, width).

        Returns:
            (batch, outputs, ceil(height / stride), ceil(width / stride)).
        """
        out: Tensor = self.relu((x if self.proj is None else self.proj(x)) + self.f(x))
        return out


class GhostStage(nn.Module):
    """A stage whose inner blocks have but part of the channels; ghosts of the first block's output are the rest.

    Ghosts are c = relu(cheap(x_c) + mix(e)): x_c are the other channels of the first block, and e what all blocks
    but the last give, averaged over the map.

    Args:
        inputs: channels that come in.
        outputs: channels of the first and the last block.
        blocks: how many, at least three.
        stride: of the first block, in pixels.
        group_width: channels of a group of the grouped convolutions; inside, three quarters of it.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int, group_width: int) -> None:
        super().__init__()
        width = int(0.75 * group_width)
        self.inner = outputs // 2 // width * width
        ghosts = outputs - self.inner
        self.first = Block(inputs, outputs, stride, outputs // group_width, 0)
        self.blocks = nn.ModuleList(
            Block(self.inner, self.inner, 1, self.inner // width, 0) for _ in range(blocks - 2)
        )
        self.cheap = _conv_norm(ghosts, ghosts, 1)
        self.mix = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            *_conv_norm(outputs + self.inner * (blocks - 2), ghosts, 1).append(nn.ReLU()),
            *_conv_norm(ghosts, ghosts, 1),
        )
        self.relu = nn.ReLU()
        self.last = Block(outputs, outputs, 1, outputs // group_width, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the stage.

        Args:
            x: (batch, inputs, height, width).

        Returns:
            (batch, outputs, ceil(height / stride), ceil(width / stride)).
        """
        x = self.first(x)
        made, e = [x], x[:, : self.inner]
        for block in self.blocks:
            e = block(e)
            made.append(e)
        ghosts = self.relu(self.cheap(x[:, self.inner :]) + self.mix(torch.cat(made, 1)))
        out: Tensor = self.last(torch.cat([e, ghosts], 1))
        return out


class RegNet(nn.Module):
    """Residual bottlenecks of grouped convolutions; those of Y squeeze and excite.

    Args:
        size: the network of the paper: "x_200mf", "x_400mf", "x_800mf", or the same with y.
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        form: "cifar" strides three times, for images of 32x32; "imagenet" five times, for 224x224.
        ghost: whether stages but the first, of at least three blocks, are those of G-Ghost; of X alone.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> network = RegNet("y_400mf", num_classes=1000, form="imagenet")
        >>> sum(parameter.numel() for parameter in network.parameters())
        4344144
    """

    def __init__(
        self,
        size: str,
        num_classes: int = 10,
        in_channels: int = 3,
        form: Literal["cifar", "imagenet"] = "cifar",
        ghost: bool = False,
    ) -> None:
        super().__init__()
        check_choice("size", size, tuple(_SIZES), "it names one of the paper's networks")
        check_classes_and_channels(num_classes, in_channels)
        check_choice("form", form, ("cifar", "imagenet"), "it sets the strides, for 32x32 or 224x224 images")
        if ghost and size.startswith("y"):
            raise ConfigError(f"size is {size!r}; G-Ghost stages do not squeeze and excite: choose an x")
        group_width = _SIZES[size][-1]
        self.stem = _conv_norm(in_channels, _STEM, 3, 1 if form == "cifar" else 2).append(nn.ReLU())
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        channels = _STEM
        for stage, (width, blocks) in enumerate(_stages(size), 1):
            first = 2 if stage > 1 or form == "imagenet" else 1
            if ghost and stage > 1 and blocks > 2:
                stages[f"block{stage}"] = GhostStage(channels, width, blocks, first, group_width)
                channels = width
                continue
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for block in range(blocks):
                squeezed = round(0.25 * channels) if size.startswith("y") else 0
                groups = width // min(group_width, width)
                layers[f"block{stage}-{block}"] = Block(channels, width, 1 if block else first, groups, squeezed)
                channels = width
            stages[f"block{stage}"] = nn.Sequential(layers)
        self.trunk_output = nn.Sequential(stages)
        self.fc = nn.Linear(channels, num_classes)
        initialise_convolutions(self, "fan_out")
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: images, (batch, in_channels, height, width).

        Returns:
            logits, (batch, num_classes).
        """
        logits: Tensor = self.fc(self.trunk_output(self.stem(x)).mean(dim=(2, 3)))
        return logits


def _stages(size: str) -> list[tuple[int, int]]:
    """Width and number of blocks of every stage."""
    depth, w_0, w_a, w_m, group_width = _SIZES[size]
    wanted = w_0 + w_a * np.arange(depth)
    powers = np.round(np.log(wanted / w_0) / np.log(w_m))
    widths = np.round(w_0 * w_m**powers / 8) * 8
    whole = (np.round(widths / group_width) * group_width).astype(int).tolist()
    return [(width, len(list(blocks))) for width, blocks in groupby(whole)]


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size of the map at stride 1, and batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )
