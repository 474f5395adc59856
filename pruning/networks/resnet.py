"""The residual networks for ImageNet: ResNet-18, 34, 50 and 101 (He et al. 2016, arXiv:1512.03385, table 1).

Names of parameters are torchvision's, so its weights load. As there ("v1.5"), a bottleneck strides in its
3x3 convolution, where the paper strides in the first 1x1.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn
from torch.nn import functional as F

from espalier.pruning.networks.arguments import check_choice, check_classes_and_channels
from espalier.pruning.networks.initialisation import initialise_convolutions


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut.

    Args:
        inputs: channels that come in.
        width: channels of both convolutions.
        stride: of the first convolution, in pixels.
    """

    expansion: Final = 1  # channels that go out, per unit of width

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _projection(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (batch, inputs, height, width).

        Returns:
            (batch, width of the block, ceil(height / stride), ceil(width / stride)).
        """
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 convolutions, around a shortcut.

    Args:
        inputs: channels that come in.
        width: channels of the first two convolutions; four times as many go out.
        stride: of the 3x3 convolution, in pixels.
    """

    expansion: Final = 4  # channels that go out, per unit of width

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (batch, inputs, height, width).

        Returns:
            (batch, four times the width of the block, ceil(height / stride), ceil(width / stride)).
        """
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


# depth -> (block, blocks in each of the four stages), the paper's table 1
_STAGES: Final[dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """A residual network for images of about 224x224 (He et al. 2016, arXiv:1512.03385).

    Args:
        depth: number of weighted layers along the main path: 18, 34, 50 or 101.
        num_classes: outputs of the classifier.
        in_channels: channels of the images.

    Raises:
        ConfigError: the depth is not in the paper's table, or another argument is out of range.

    Example:
        >>> network = ResNet(depth=18)
        >>> sum(parameter.numel() for parameter in network.parameters())
        11689512
    """

    def __init__(self, depth: int, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        check_choice("depth", depth, tuple(_STAGES), "use CifarResNet for 20, 32, 44, 56 and 110")
        check_classes_and_channels(num_classes, in_channels)
        block, (first, second, third, fourth) = _STAGES[depth]
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _stage(block, 64, 64, 1, first)
        self.layer2 = _stage(block, 64 * block.expansion, 128, 2, second)
        self.layer3 = _stage(block, 128 * block.expansion, 256, 2, third)
        self.layer4 = _stage(block, 256 * block.expansion, 512, 2, fourth)
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        initialise_convolutions(self, "fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: images, (batch, in_channels, height, width).

        Returns:
            logits, (batch, num_classes).
        """
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """The 1x1 convolution of a shortcut whose two ends differ in shape; None where they agree."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, stride: int, blocks: int
) -> nn.Sequential:
    """``blocks`` blocks, of which the first one changes the shape."""
    outputs = width * block.expansion
    return nn.Sequential(block(inputs, width, stride), *(block(outputs, width, 1) for _ in range(blocks - 1)))
