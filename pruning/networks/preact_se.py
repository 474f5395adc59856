"""PreActSeNet: pre-activation residual blocks with squeeze and excitation, for small images.

Pre-activation is from He et al. 2016 (arXiv:1603.05027), squeeze and excitation from Hu et al. 2018
(arXiv:1709.01507). Their combination on CIFAR is ``SENet18`` of K. Liu's https://github.com/kuangliu/pytorch-cifar,
whose layers are followed here. Two things differ there from He et al.: batch normalisation and ReLU stand after
the stem, and none after the last block. OICSR (Li et al. 2019, arXiv:1905.11664) reports on a PreActSeNet.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn
from torch.nn import functional as F

from espalier.pruning.networks.arguments import check_choice, check_classes_and_channels
from espalier.pruning.networks.initialisation import initialise_convolutions

_REDUCTION: Final = 16  # channels per channel of the squeezed vector, r of Hu et al.

# depth -> blocks in each of the four stages
_STAGES: Final[dict[int, tuple[int, int, int, int]]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class SqueezeExcitation(nn.Module):
    """Scales each channel by a number in (0, 1) that two 1x1 convolutions compute from the means of all.

    Args:
        channels: channels that come in and go out, at least 16.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // _REDUCTION, 1)
        self.fc2 = nn.Conv2d(channels // _REDUCTION, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels.

        Args:
            x: (batch, channels, height, width).

        Returns:
            (batch, channels, height, width).
        """
        means = x.mean(dim=(2, 3), keepdim=True)  # (batch, channels, 1, 1)
        scales: Tensor = self.fc2(F.relu(self.fc1(means))).sigmoid()
        return x * scales


class PreActSeBlock(nn.Module):
    """Two 3x3 convolutions, each after batch normalisation and ReLU, then squeeze and excitation, plus a shortcut.

    Args:
        inputs: channels that come in.
        outputs: channels that go out, and the width between the two convolutions.
        stride: of the first convolution, in pixels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.se = SqueezeExcitation(outputs)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (batch, inputs, height, width).

        Returns:
            (batch, outputs, ceil(height / stride), ceil(width / stride)).
        """
        active = F.relu(self.bn1(x))
        out: Tensor = self.se(self.conv2(F.relu(self.bn2(self.conv1(active)))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class PreActSeNet(nn.Module):
    """A pre-activation ResNet with squeeze and excitation (He et al. 2016, Hu et al. 2018), for images of 32x32.

    Args:
        depth: number of weighted layers along the main path of the ResNet it is made from: 18 or 34. Those of
            squeeze and excitation do not count.
        num_classes: outputs of the classifier.
        in_channels: channels of the images.

    Raises:
        ConfigError: the depth is not in the table, or another argument is out of range.

    Example:
        >>> network = PreActSeNet(depth=18)
        >>> sum(parameter.numel() for parameter in network.parameters())
        11260354
    """

    def __init__(self, depth: int = 18, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        check_choice("depth", depth, tuple(_STAGES), "it names the ResNet it is made from")
        check_classes_and_channels(num_classes, in_channels)
        first, second, third, fourth = _STAGES[depth]
        self.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, 1, first)
        self.layer2 = _stage(64, 128, 2, second)
        self.layer3 = _stage(128, 256, 2, third)
        self.layer4 = _stage(256, 512, 2, fourth)
        self.linear = nn.Linear(512, num_classes)
        initialise_convolutions(self, "fan_in")

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: images, (batch, in_channels, height, width).

        Returns:
            logits, (batch, num_classes).
        """
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    """``blocks`` blocks, of which the first one changes the shape."""
    first = PreActSeBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(PreActSeBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
