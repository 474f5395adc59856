"""ShuffleNet, the first and the second, for ImageNet and for small images.

ShuffleNetV1 (Zhang et al. 2018, arXiv:1707.01083) groups its 1x1 convolutions; ShuffleNetV2 (Ma et al. 2018,
arXiv:1807.11164) splits the channels in two halves, of which one passes by. Both then shuffle the channels: of n
parts, position j of part i goes to position jn + i. In the second, names of parameters are torchvision's, so its
weights load.

The CIFAR forms have the same layers and drop the first two of the five halvings, which are the stride of the first
convolution and the max pool, as does the ShuffleNetV2 of K. Liu's https://github.com/kuangliu/pytorch-cifar: images
of 32x32 end in a map of 4x4.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espalier.pruning.networks.arguments import check_choice, check_classes_and_channels, check_width_mult
from espalier.pruning.networks.initialisation import initialise_convolutions

_UNITS: Final = (4, 8, 4)  # in each of the three stages, of both networks
_STEM: Final = 24  # channels of the first convolution, of both networks

# groups -> channels of the first stage, table 1 of Zhang et al.; the others have twice and four times as many
_WIDTHS_V1: Final[dict[int, int]] = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}

# width multiplier -> channels of the three stages and of the last convolution, table 5 of Ma et al.
_WIDTHS_V2: Final[dict[float, tuple[int, int, int, int]]] = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}


class ShuffleUnitV1(nn.Module):
    """A grouped 1x1 convolution, a shuffle, a 3x3 depthwise and a grouped 1x1 convolution, around a shortcut.

    At stride 2 the shortcut is an average pool, and its channels are put before the others instead of added.

    Args:
        inputs: channels that come in.
        outputs: channels that go out, of which the unit's own width is a quarter; a multiple of four times
            ``groups``.
        stride: of the depthwise convolution and of the pool, in pixels, 1 or 2.
        groups: groups of the 1x1 convolutions.
        first: whether the first 1x1 convolution is not grouped, as where few channels come in.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int, first: bool) -> None:
        super().__init__()
        width = outputs // 4
        own = outputs if stride == 1 else outputs - inputs
        self.conv1 = nn.Conv2d(inputs, width, 1, groups=1 if first else groups, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.shuffle = nn.ChannelShuffle(groups)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, own, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(own)
        self.pool = None if stride == 1 else nn.AvgPool2d(3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the unit.

        Args:
            x: (batch, inputs, height, width).

        Returns:
            (batch, outputs, ceil(height / stride), ceil(width / stride)).
        """
        out = self.shuffle(F.relu(self.bn1(self.conv1(x))))
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        return F.relu(x + out if self.pool is None else torch.cat([self.pool(x), out], 1))


class ShuffleNetV1(nn.Module):
    """Grouped 1x1 convolutions with channel shuffles (Zhang et al. 2018, arXiv:1707.01083, table 1).

    Args:
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        form: "cifar" strides three times, for images of 32x32; "imagenet" five times, for 224x224.
        groups: groups of the 1x1 convolutions, which set the widths of the stages: 1, 2, 3, 4 or 8.
        width_mult: the paper's scale factor; widths are rounded to what the groups divide.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> network = ShuffleNetV1(num_classes=1000, form="imagenet")
        >>> sum(parameter.numel() for parameter in network.parameters())
        1865728
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        form: Literal["cifar", "imagenet"] = "cifar",
        groups: int = 3,
        width_mult: float = 1.0,
    ) -> None:
        super().__init__()
        check_classes_and_channels(num_classes, in_channels)
        check_choice("form", form, ("cifar", "imagenet"), "it sets the strides, for 32x32 or 224x224 images")
        check_choice("groups", groups, tuple(_WIDTHS_V1), "it is a column of the paper's table")
        check_width_mult(width_mult)
        channels = _rounded(_STEM * width_mult, groups)
        self.conv1 = _conv_norm_relu(in_channels, channels, 3, 1 if form == "cifar" else 2)
        self.maxpool = nn.Identity() if form == "cifar" else nn.MaxPool2d(3, 2, 1)
        stages = []
        for stage, units in enumerate(_UNITS):
            outputs = _rounded(_WIDTHS_V1[groups] * width_mult, 4 * groups) * 2**stage
            layers = [ShuffleUnitV1(channels, outputs, 2, groups, first=stage == 0)]
            layers += [ShuffleUnitV1(outputs, outputs, 1, groups, first=False) for _ in range(units - 1)]
            stages.append(nn.Sequential(*layers))
            channels = outputs
        self.stage2, self.stage3, self.stage4 = stages
        self.fc = nn.Linear(channels, num_classes)
        initialise_convolutions(self, "fan_in")
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: images, (batch, in_channels, height, width).

        Returns:
            logits, (batch, num_classes).
        """
        x = self.maxpool(self.conv1(x))
        x = self.stage4(self.stage3(self.stage2(x)))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


class ShuffleUnitV2(nn.Module):
    """1x1, 3x3 depthwise and 1x1 convolutions of half of the channels; the other half passes by; then a shuffle.

    At stride 2 both branches read all channels, and the one that passed by is a depthwise and a 1x1 convolution.

    Args:
        inputs: channels that come in; as many as go out at stride 1.
        outputs: channels that go out, an even number.
        stride: of the depthwise convolutions, in pixels, 1 or 2.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.branch1: nn.Sequential | None = None
        if stride > 1:
            self.branch1 = nn.Sequential(*_depthwise_norm(inputs, stride), *_conv_norm_relu(inputs, half, 1))
        self.branch2 = nn.Sequential(
            *_conv_norm_relu(inputs if stride > 1 else half, half, 1),
            *_depthwise_norm(half, stride),
            *_conv_norm_relu(half, half, 1),
        )
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the unit.

        Args:
            x: (batch, inputs, height, width).

        Returns:
            (batch, outputs, ceil(height / stride), ceil(width / stride)).
        """
        if self.branch1 is None:
            kept, read = x.chunk(2, dim=1)
            out = torch.cat([kept, self.branch2(read)], 1)
        else:
            out = torch.cat([self.branch1(x), self.branch2(x)], 1)
        shuffled: Tensor = self.shuffle(out)
        return shuffled


class ShuffleNetV2(nn.Module):
    """Channel splits and shuffles (Ma et al. 2018, arXiv:1807.11164, table 5).

    Args:
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        form: "cifar" strides three times, for images of 32x32; "imagenet" five times, for 224x224.
        width_mult: one of the paper's four sizes: 0.5, 1.0, 1.5 or 2.0.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> network = ShuffleNetV2(num_classes=1000, form="imagenet")
        >>> sum(parameter.numel() for parameter in network.parameters())
        2278604
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        form: Literal["cifar", "imagenet"] = "cifar",
        width_mult: float = 1.0,
    ) -> None:
        super().__init__()
        check_classes_and_channels(num_classes, in_channels)
        check_choice("form", form, ("cifar", "imagenet"), "it sets the strides, for 32x32 or 224x224 images")
        check_choice("width_mult", width_mult, tuple(_WIDTHS_V2), "it names one of the paper's sizes")
        channels = _STEM
        self.conv1 = _conv_norm_relu(in_channels, channels, 3, 1 if form == "cifar" else 2)
        self.maxpool = nn.Identity() if form == "cifar" else nn.MaxPool2d(3, 2, 1)
        *widths, last = _WIDTHS_V2[width_mult]
        stages = []
        for outputs, units in zip(widths, _UNITS, strict=True):
            layers = [ShuffleUnitV2(channels, outputs, 2)]
            layers += [ShuffleUnitV2(outputs, outputs, 1) for _ in range(units - 1)]
            stages.append(nn.Sequential(*layers))
            channels = outputs
        self.stage2, self.stage3, self.stage4 = stages
        self.conv5 = _conv_norm_relu(channels, last, 1)
        self.fc = nn.Linear(last, num_classes)
        initialise_convolutions(self, "fan_in")
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: images, (batch, in_channels, height, width).

        Returns:
            logits, (batch, num_classes).
        """
        x = self.maxpool(self.conv1(x))
        x = self.conv5(self.stage4(self.stage3(self.stage2(x))))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def _conv_norm_relu(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the size of the map at stride 1, batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def _depthwise_norm(channels: int, stride: int) -> nn.Sequential:
    """A 3x3 depthwise convolution and batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), nn.BatchNorm2d(channels)
    )


def _rounded(width: float, multiple: int) -> int:
    """The nearest multiple of a number that is not zero."""
    return max(multiple, round(width / multiple) * multiple)
