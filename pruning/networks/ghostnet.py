"""GhostNet (Han et al. 2020, arXiv:1911.11907), for ImageNet and for small images.

The C-Ghost network of the authors' later paper (Han et al. 2022, arXiv:2201.03297). A ghost module makes half of
its channels by a convolution, and the other half of them by a cheap depthwise one, so that a channel and its ghost
go together. The CIFAR form has the same layers and drops the first two of the five halvings.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor, nn

from espalier.pruning.networks.arguments import check_choice, check_classes_and_channels, check_dropout
from espalier.pruning.networks.initialisation import initialise_convolutions
from espalier.pruning.networks.squeeze import Squeeze

# (kernel, hidden channels, channels, squeeze-and-excitation, stride), the paper's table 1
_BLOCKS: Final = (
    (3, 16, 16, False, 1),
    (3, 48, 24, False, 2),
    (3, 72, 24, False, 1),
    (5, 72, 40, True, 2),
    (5, 120, 40, True, 1),
    (3, 240, 80, False, 2),
    (3, 200, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 480, 112, True, 1),
    (3, 672, 112, True, 1),
    (5, 672, 160, True, 2),
    (5, 960, 160, False, 1),
    (5, 960, 160, True, 1),
    (5, 960, 160, False, 1),
    (5, 960, 160, True, 1),
)
_STEM, _LAST, _FEATURES = 16, 960, 1280


class GhostModule(nn.Module):
    """A 1x1 convolution of half of the channels, and a 3x3 depthwise one that makes their ghosts.

    Args:
        inputs: channels that come in.
        outputs: channels that go out, an even number.
        relu: whether ReLU follows each convolution.
    """

    def __init__(self, inputs: int, outputs: int, relu: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.primary_conv = _conv_norm(inputs, half, 1)
        self.cheap_operation = _conv_norm(half, half, 3, groups=half)
        if relu:
            self.primary_conv.append(nn.ReLU())
            self.cheap_operation.append(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module.

        Args:
            x: (batch, inputs, height, width).

        Returns:
            (batch, outputs, height, width).
        """
        x = self.primary_conv(x)
        return torch.cat([x, self.cheap_operation(x)], 1)


class GhostBottleneck(nn.Module):
    """Two ghost modules, a depthwise convolution between them where it strides, beside a shortcut.

    Args:
        inputs: channels that come in.
        hidden: channels between the ghost modules.
        outputs: channels that go out.
        kernel: side of the depthwise convolutions, in pixels.
        stride: of them.
        squeeze: whether there is squeeze-and-excitation.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, kernel: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [GhostModule(inputs, hidden, relu=True)]
        if stride > 1:
            layers.append(_conv_norm(hidden, hidden, kernel, stride, groups=hidden))
        if squeeze:
            layers.append(Squeeze(hidden, _rounded(hidden / 4, 4), nn.ReLU(), nn.Hardsigmoid()))
        self.ghost = nn.Sequential(*layers, GhostModule(hidden, outputs, relu=False))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                *_conv_norm(inputs, inputs, kernel, stride, groups=inputs), *_conv_norm(inputs, outputs, 1)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (batch, inputs, height, width).

        Returns:
            (batch, outputs, ceil(height / stride), ceil(width / stride)).
        """
        out: Tensor = self.ghost(x) + self.shortcut(x)
        return out


class GhostNet(nn.Module):
    """Bottlenecks of ghost modules.

    Args:
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        form: "cifar" strides three times, for images of 32x32; "imagenet" five times, for 224x224.
        dropout: fraction of the classifier's inputs dropped in training, in [0, 1).

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> network = GhostNet(num_classes=1000, form="imagenet")
        >>> sum(parameter.numel() for parameter in network.parameters())
        5182508
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        form: Literal["cifar", "imagenet"] = "cifar",
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        check_classes_and_channels(num_classes, in_channels)
        check_choice("form", form, ("cifar", "imagenet"), "it sets the strides, for 32x32 or 224x224 images")
        check_dropout(dropout)
        small = form == "cifar"
        self.stem = _conv_norm(in_channels, _STEM, 3, 1 if small else 2).append(nn.ReLU())
        blocks: list[nn.Module] = []
        channels = _STEM
        for kernel, hidden, outputs, squeeze, stride in _BLOCKS:
            stride = 1 if small and not blocks[1:] else stride
            blocks.append(GhostBottleneck(channels, hidden, outputs, kernel, stride, squeeze))
            channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.last = _conv_norm(channels, _LAST, 1).append(nn.ReLU())
        self.head = nn.Conv2d(_LAST, _FEATURES, 1)
        linear = nn.Linear(_FEATURES, num_classes)
        self.classifier = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), linear)
        initialise_convolutions(self, "fan_in")  # by outputs, a depthwise one would be drawn too small
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: images, (batch, in_channels, height, width).

        Returns:
            logits, (batch, num_classes).
        """
        x = self.last(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(self.head(x.mean(dim=(2, 3), keepdim=True)))
        return logits


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size of the map at stride 1, and batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


def _rounded(width: float, multiple: int) -> int:
    """The nearest multiple of a number that is not below 90 % of a width: the rule of the authors' own code."""
    nearest = max(multiple, int(width + multiple / 2) // multiple * multiple)
    return nearest if nearest >= 0.9 * width else nearest + multiple
