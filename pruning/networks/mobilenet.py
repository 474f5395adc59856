"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381), for ImageNet and for small images.

Names of parameters are torchvision's in both forms, so its ImageNet weights load. The CIFAR form has the
same layers and drops the first two of the five halvings, as is usual: 32x32 images end in a map of 4x4.
"""

from __future__ import annotations

from typing import Final, Literal

from torch import Tensor, nn

from espalier.pruning.networks.arguments import (
    check_choice,
    check_classes_and_channels,
    check_dropout,
    check_whole,
    check_width_mult,
)
from espalier.pruning.networks.initialisation import initialise_convolutions

# (expansion, channels, blocks, stride in the ImageNet form, stride in the CIFAR form), the paper's table 2
_STAGES: Final = (
    (1, 16, 1, 1, 1),
    (6, 24, 2, 2, 1),
    (6, 32, 3, 2, 2),
    (6, 64, 4, 2, 2),
    (6, 96, 3, 1, 1),
    (6, 160, 3, 2, 2),
    (6, 320, 1, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expansion by a 1x1 convolution, a 3x3 depthwise convolution, and a linear 1x1 projection.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of the depthwise convolution, in pixels.
        expansion: channels of the depthwise convolution, per channel that comes in; 1 has no expansion layer.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_conv_norm_relu(inputs, hidden, 1, 1)]
        layers += [
            _conv_norm_relu(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (batch, inputs, height, width).

        Returns:
            (batch, outputs, ceil(height / stride), ceil(width / stride)).
        """
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """Inverted residuals with linear bottlenecks (Sandler et al. 2018, arXiv:1801.04381, table 2).

    Args:
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        form: "cifar" strides three times, for images of 32x32; "imagenet" five times, for 224x224.
        stem_stride: stride of the first convolution, in pixels; None for the form's own, 1 in the CIFAR form
            and 2 in the ImageNet form.
        width_mult: the paper's width multiplier; widths are rounded to multiples of 8, never down by more
            than a tenth, and the last one stays at 1280 or more.
        dropout: fraction of the classifier's inputs dropped in training, in [0, 1).

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> network = MobileNetV2(num_classes=1000, form="imagenet")
        >>> sum(parameter.numel() for parameter in network.parameters())
        3504872
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        form: Literal["cifar", "imagenet"] = "cifar",
        stem_stride: int | None = None,
        width_mult: float = 1.0,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        check_classes_and_channels(num_classes, in_channels)
        check_choice("form", form, ("cifar", "imagenet"), "it sets the strides, for 32x32 or 224x224 images")
        if stem_stride is None:
            stem_stride = 1 if form == "cifar" else 2
        check_whole("stem_stride", stem_stride, 1, "it is the stride of the first convolution, in pixels")
        check_width_mult(width_mult)
        check_dropout(dropout)
        channels = _rounded(32 * width_mult)
        layers: list[nn.Module] = [_conv_norm_relu(in_channels, channels, 3, stem_stride)]
        for expansion, width, blocks, imagenet_stride, cifar_stride in _STAGES:
            outputs = _rounded(width * width_mult)
            stride = cifar_stride if form == "cifar" else imagenet_stride
            for block in range(blocks):
                layers.append(InvertedResidual(channels, outputs, stride if block == 0 else 1, expansion))
                channels = outputs
        last = _rounded(1280 * max(1.0, width_mult))
        layers.append(_conv_norm_relu(channels, last, 1, 1))
        self.features = nn.Sequential(*layers)
        linear = nn.Linear(last, num_classes)
        self.classifier = nn.Sequential(nn.Dropout(dropout), linear)
        # By inputs: torchvision divides by outputs, which draws a depthwise convolution, whose channels have
        # one output each, sqrt(channels) times too small.
        initialise_convolutions(self, "fan_in")
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: images, (batch, in_channels, height, width).

        Returns:
            logits, (batch, num_classes).
        """
        logits: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return logits


def _conv_norm_relu(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size of the map at stride 1, batch normalisation and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


def _rounded(width: float, multiple: int = 8) -> int:
    """The nearest multiple of 8 that is not below 90 % of a width: the rule of the authors' own code."""
    nearest = max(multiple, int(width + multiple / 2) // multiple * multiple)
    return nearest if nearest >= 0.9 * width else nearest + multiple
