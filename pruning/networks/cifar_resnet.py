"""The residual networks for CIFAR: ResNet-20, 32, 44, 56 and 110 (He et al. 2016, arXiv:1512.03385).

Section 4.2 of the paper: three stages of n blocks of two 3x3 convolutions, a stem and a linear layer, so
depth = 6n + 2. The names of parameters are those of the public weights of Y. Idelbayev, https://github.com/akamaster/pytorch_resnet_cifar10.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espalier.errors import ConfigError
from espalier.pruning.networks.arguments import check_choice, check_classes_and_channels, check_whole
from espalier.pruning.networks.initialisation import initialise_convolutions


class ZeroPadShortcut(nn.Module):
    """Shortcut A: every ``stride``-th row and column, with channels of zeros on both sides and no parameters.

    The zeros are buffers, and not the integers of `torch.nn.functional.pad`, because a pruner slices
    parameters and buffers by index. A padded channel that dies then leaves ``before`` or ``after`` like any
    other slice of a group, whatever the number that dies on each side, where a pad width would have to be
    recomputed by a rule made for this one network. They are not persistent: the public weights lack them,
    and their values are known. So a state dict does not tell their widths; surgery does.

    Args:
        inputs: channels that come in.
        outputs: channels that go out, at least ``inputs``.
        stride: step of the subsampling, in pixels.
    """

    before: Tensor  # (1, (outputs - inputs) // 2, 1, 1)
    after: Tensor  # (1, the rest, 1, 1)

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        # The stages double their widths, so half of the difference is the published outputs // 4.
        in_front = (outputs - inputs) // 2
        self.register_buffer("before", torch.zeros(1, in_front, 1, 1), persistent=False)
        self.register_buffer("after", torch.zeros(1, outputs - inputs - in_front, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad.

        Args:
            x: (batch, inputs, height, width).

        Returns:
            (batch, outputs, ceil(height / stride), ceil(width / stride)).
        """
        x = x[:, :, :: self.stride, :: self.stride]
        batch, _, height, width = x.shape
        before = self.before.expand(batch, -1, height, width)
        after = self.after.expand(batch, -1, height, width)
        return torch.cat([before, x, after], 1)


class CifarBlock(nn.Module):
    """Two 3x3 convolutions, each with batch normalisation, around a shortcut.

    Args:
        inputs: channels that come in.
        outputs: channels that go out, and the width between the two convolutions.
        stride: of the first convolution, in pixels.
        shortcut: "A" for `ZeroPadShortcut`, "B" for a 1x1 convolution with batch normalisation; used only
            where the shape changes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Literal["A", "B"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            if shortcut == "A":
                self.shortcut = ZeroPadShortcut(inputs, outputs, stride)
            else:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (batch, inputs, height, width).

        Returns:
            (batch, outputs, ceil(height / stride), ceil(width / stride)).
        """
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.shortcut(x)
        return F.relu(out)


class CifarResNet(nn.Module):
    """A residual network for small images (He et al. 2016, arXiv:1512.03385, section 4.2).

    Args:
        depth: number of weighted layers along the main path, 6n + 2: 20, 32, 44, 56, 110, ...
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        shortcut: what joins stages of different widths: "A" pads with zeros, as in the paper's CIFAR
            experiments and the public weights; "B" projects with a 1x1 convolution.
        width: channels of the first stage; the other two have twice and four times as many.
        stem_stride: stride of the first convolution, in pixels; 2 suits images of 64x64.

    Raises:
        ConfigError: the depth is not 6n + 2, or another argument is out of range.

    Example:
        >>> network = CifarResNet(depth=20)
        >>> sum(parameter.numel() for parameter in network.parameters())
        269722
    """

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 10,
        in_channels: int = 3,
        shortcut: Literal["A", "B"] = "A",
        width: int = 16,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        check_whole("depth", depth, 8, "it counts layers, so write 20, 32, 44, 56 or 110")
        if (depth - 2) % 6:
            below = depth - (depth - 2) % 6
            raise ConfigError(
                f"depth must be 6n + 2, for three stages of n blocks of two convolutions, a stem and a "
                f"linear layer, got {depth}: write {below} or {below + 6}."
            )
        check_classes_and_channels(num_classes, in_channels)
        check_choice("shortcut", shortcut, ("A", "B"), "'A' pads with zeros, 'B' projects")
        check_whole("width", width, 1, "it counts the channels of the first stage, 16 in the paper")
        check_whole("stem_stride", stem_stride, 1, "it is the stride of the first convolution, in pixels")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, width, 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, 1, blocks, shortcut)
        self.layer2 = _stage(width, 2 * width, 2, blocks, shortcut)
        self.layer3 = _stage(2 * width, 4 * width, 2, blocks, shortcut)
        self.linear = nn.Linear(4 * width, num_classes)
        initialise_convolutions(self, "fan_in")
        # The public weights were trained from a classifier drawn like the convolutions.
        nn.init.kaiming_normal_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: images, (batch, in_channels, height, width).

        Returns:
            logits, (batch, num_classes).
        """
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def _stage(inputs: int, outputs: int, stride: int, blocks: int, shortcut: Literal["A", "B"]) -> nn.Sequential:
    """``blocks`` blocks, of which the first one changes the shape."""
    first = CifarBlock(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(CifarBlock(outputs, outputs, 1, shortcut) for _ in range(blocks - 1)))
