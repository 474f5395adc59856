"""DenseNet (Huang et al. 2017, arXiv:1608.06993), for small images and for ImageNet.

Every layer of a dense block reads the channels of all layers before it. The names of parameters are torchvision's
in both classes, so its ImageNet weights load. Dropout, which the paper uses only where it trains without
augmentation, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espalier.errors import ConfigError
from espalier.pruning.networks.arguments import check_choice, check_classes_and_channels, check_whole
from espalier.pruning.networks.initialisation import initialise_convolutions

_BOTTLENECK: Final = 4  # channels of a bottleneck, per channel that a layer adds

# depth -> bottlenecks in each of the four blocks, the paper's table 1
_BLOCKS: Final[dict[int, tuple[int, int, int, int]]] = {
    121: (6, 12, 24, 16),
    169: (6, 12, 32, 32),
    201: (6, 12, 48, 32),
}


class DenseLayer(nn.Module):
    """Batch normalisation, ReLU and a 3x3 convolution, whose channels are appended to those that come in.

    Args:
        inputs: channels that come in.
        growth: channels that are appended.
        bottleneck: whether another normalisation, ReLU and a 1x1 convolution to four times ``growth`` come first.
    """

    def __init__(self, inputs: int, growth: int, bottleneck: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.norm2: nn.BatchNorm2d | None = None
        self.conv2: nn.Conv2d | None = None
        if bottleneck:
            self.conv1 = nn.Conv2d(inputs, _BOTTLENECK * growth, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(_BOTTLENECK * growth)
            self.conv2 = nn.Conv2d(_BOTTLENECK * growth, growth, 3, 1, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(inputs, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Append channels.

        Args:
            x: (batch, inputs, height, width).

        Returns:
            (batch, inputs + growth, height, width).
        """
        out = self.conv1(F.relu(self.norm1(x)))
        if self.norm2 is not None and self.conv2 is not None:
            out = self.conv2(F.relu(self.norm2(out)))
        return torch.cat([x, out], 1)


class Transition(nn.Module):
    """Batch normalisation, ReLU, a 1x1 convolution and an average pool, between two dense blocks.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pool = nn.AvgPool2d(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the transition.

        Args:
            x: (batch, inputs, height, width).

        Returns:
            (batch, outputs, height // 2, width // 2).
        """
        out: Tensor = self.pool(self.conv(F.relu(self.norm(x))))
        return out


class _DenseNet(nn.Module):
    """What the two forms share: all but the stem."""

    def __init__(
        self, stem: Mapping[str, nn.Module], inputs: int, blocks: Sequence[int], growth: int, bc: bool, classes: int
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        for name, module in stem.items():
            self.features.add_module(name, module)
        for number, layers in enumerate(blocks, 1):
            block = nn.Sequential()
            for layer in range(1, layers + 1):
                block.add_module(f"denselayer{layer}", DenseLayer(inputs, growth, bc))
                inputs += growth
            self.features.add_module(f"denseblock{number}", block)
            if number < len(blocks):
                outputs = inputs // 2 if bc else inputs
                self.features.add_module(f"transition{number}", Transition(inputs, outputs))
                inputs = outputs
        self.features.add_module("norm5", nn.BatchNorm2d(inputs))
        self.classifier = nn.Linear(inputs, classes)
        initialise_convolutions(self, "fan_in")
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: images, (batch, in_channels, height, width).

        Returns:
            logits, (batch, num_classes).
        """
        x = F.relu(self.features(x))
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits


class CifarDenseNet(_DenseNet):
    """A DenseNet for small images (Huang et al. 2017, arXiv:1608.06993, section 4.2).

    The paper's networks have three dense blocks of equal length: depth = 3n + 4 plain and 6n + 4 with
    bottlenecks. In general, for b blocks, depth = bn + b + 1 and 2bn + b + 1, since a stem, b - 1 transitions and a
    linear layer are weighted layers too. The name densenet89 is there to compare with reports on a network of
    89 layers, which is none of the paper's: three blocks give 88 or 91 plain, 88 or 94 with bottlenecks. It stands
    for what 89 divides into, four plain blocks of 21 layers.

    Args:
        depth: number of weighted layers, 3n + 4 or 6n + 4 with three blocks.
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        growth: channels that each layer adds, k in the paper.
        bc: whether layers have bottlenecks and transitions halve the channels, DenseNet-BC in the paper; its stem
            has ``2 * growth`` channels, and 16 without.
        blocks: number of dense blocks; all but the last are closed by a transition that halves the map.

    Raises:
        ConfigError: the depth does not divide into the blocks, or another argument is out of range.

    Example:
        >>> network = CifarDenseNet(depth=100, bc=True)
        >>> sum(parameter.numel() for parameter in network.parameters())
        769162
    """

    def __init__(
        self,
        depth: int = 40,
        num_classes: int = 10,
        in_channels: int = 3,
        growth: int = 12,
        bc: bool = False,
        blocks: int = 3,
    ) -> None:
        check_choice("bc", bc, (False, True), "it adds bottlenecks and compression")
        check_whole("blocks", blocks, 1, "it counts the dense blocks, 3 in the paper")
        layers = "bottlenecks of two convolutions" if bc else "convolutions"
        step, rest = (2 if bc else 1) * blocks, blocks + 1
        check_whole("depth", depth, step + rest, "it counts layers, so write 40 or 100")
        if (depth - rest) % step:
            below = depth - (depth - rest) % step
            raise ConfigError(
                f"depth must be {step}n + {rest}, for {blocks} equal blocks of n {layers}, the transitions, a stem "
                f"and a linear layer, got {depth}: write {below} or {below + step}."
            )
        check_classes_and_channels(num_classes, in_channels)
        check_whole("growth", growth, 1, "it counts the channels that a layer adds, 12 in the paper")
        width = 2 * growth if bc else 16
        stem = {"conv0": nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)}
        super().__init__(stem, width, blocks * ((depth - rest) // step,), growth, bc, num_classes)


class DenseNet(_DenseNet):
    """A DenseNet-BC for images of about 224x224 (Huang et al. 2017, arXiv:1608.06993, table 1).

    Args:
        depth: number of weighted layers: 121, 169 or 201.
        num_classes: outputs of the classifier.
        in_channels: channels of the images.

    Raises:
        ConfigError: the depth is not in the paper's table, or another argument is out of range.

    Example:
        >>> network = DenseNet(depth=121)
        >>> sum(parameter.numel() for parameter in network.parameters())
        7978856
    """

    def __init__(self, depth: int, num_classes: int = 1000, in_channels: int = 3) -> None:
        check_choice("depth", depth, tuple(_BLOCKS), "use CifarDenseNet for 40 and 100")
        check_classes_and_channels(num_classes, in_channels)
        stem = {
            "conv0": nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False),
            "norm0": nn.BatchNorm2d(64),
            "relu0": nn.ReLU(),
            "pool0": nn.MaxPool2d(3, 2, 1),
        }
        super().__init__(stem, 64, _BLOCKS[depth], 32, True, num_classes)
