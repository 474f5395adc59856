"""MobileNet, the first one (Howard et al. 2017, arXiv:1704.04861), for ImageNet and for small images.

Every layer but the first is a 3x3 depthwise convolution and a 1x1 convolution, each with batch normalisation and
ReLU. The CIFAR form has the same layers and a first convolution of stride 1, as in K. Liu's
https://github.com/kuangliu/pytorch-cifar: images of 32x32 end in a map of 2x2.
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

# (channels, stride in pixels) of the separable layers, the paper's table 1. The last is of stride 2 in print, but
# its map stays at 7x7 there, and the published cost is that of stride 1.
_LAYERS: Final = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)


class MobileNetV1(nn.Module):
    """Depthwise separable convolutions (Howard et al. 2017, arXiv:1704.04861, table 1).

    Args:
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        form: "cifar" strides four times, for images of 32x32; "imagenet" five times, for 224x224.
        stem_stride: stride of the first convolution, in pixels; None for the form's own, 1 in the CIFAR form
            and 2 in the ImageNet form.
        width_mult: the paper's width multiplier; widths are rounded down, and are at least 8.
        dropout: fraction of the classifier's inputs dropped in training, in [0, 1).

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> network = MobileNetV1(num_classes=1000, form="imagenet")
        >>> sum(parameter.numel() for parameter in network.parameters())
        4231976
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        form: Literal["cifar", "imagenet"] = "cifar",
        stem_stride: int | None = None,
        width_mult: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_classes_and_channels(num_classes, in_channels)
        check_choice("form", form, ("cifar", "imagenet"), "it sets the strides, for 32x32 or 224x224 images")
        if stem_stride is None:
            stem_stride = 1 if form == "cifar" else 2
        check_whole("stem_stride", stem_stride, 1, "it is the stride of the first convolution, in pixels")
        check_width_mult(width_mult)
        check_dropout(dropout)
        channels = _narrowed(32, width_mult)
        layers = [_conv_norm_relu(in_channels, channels, 3, stem_stride)]
        for width, stride in _LAYERS:
            outputs = _narrowed(width, width_mult)
            layers.append(_conv_norm_relu(channels, channels, 3, stride, groups=channels))
            layers.append(_conv_norm_relu(channels, outputs, 1, 1))
            channels = outputs
        self.features = nn.Sequential(*layers)
        linear = nn.Linear(channels, num_classes)
        self.classifier = nn.Sequential(nn.Dropout(dropout), linear)
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
    """A convolution that keeps the size of the map at stride 1, batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _narrowed(width: int, width_mult: float) -> int:
    """A width times the multiplier, rounded as in the authors' own code."""
    return max(8, int(width * width_mult))
