"""VGG with batch normalisation for small images: VGG-11, 13, 16 and 19 with one linear layer.

The convolutions are those of Simonyan & Zisserman 2015 (arXiv:1409.1556, table 1: A, B, D and E); batch
normalisation after each and the single classifier of 512 inputs are the CIFAR form of Liu et al. 2017,
"Learning efficient convolutional networks through network slimming" (arXiv:1708.06519). Their fifth pool is
an average: ``pools=4`` on images of 32x32 is their network to the letter, since the average over what is
left of the map comes next anyway. The fifth maximum is Simonyan & Zisserman's.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.networks.arguments import (
    check_choice,
    check_classes_and_channels,
    check_whole,
    check_width_mult,
)
from espalier.pruning.networks.initialisation import initialise_convolutions

_WIDTHS: Final = (64, 128, 256, 512, 512)  # channels of the five stages, each closed by a pool

# depth -> convolutions in each stage
_CONVOLUTIONS: Final[dict[int, tuple[int, ...]]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """A plain stack of 3x3 convolutions, each with batch normalisation and ReLU, and one linear layer.

    Args:
        depth: number of weighted layers of the ImageNet network it is named after: 11, 13, 16 or 19. Its
            three linear layers are one here.
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        width_mult: factor of all widths, rounded to whole channels.
        pools: how many of the five 2x2 max pools are kept, the first ones. Each halves the map, so images
            need at least ``2 ** pools`` pixels a side: 5 for 32x32, 3 for 8x8. A pool that is left out
            leaves an identity in its place, so that the names of parameters do not depend on it.

    Raises:
        ConfigError: the depth is not in the table, or another argument is out of range.

    Example:
        >>> network = VGG(depth=16)
        >>> sum(parameter.numel() for parameter in network.parameters())
        14724042
    """

    def __init__(
        self,
        depth: int = 16,
        num_classes: int = 10,
        in_channels: int = 3,
        pools: int = len(_WIDTHS),
        width_mult: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("depth", depth, tuple(_CONVOLUTIONS), "it names one of the published networks")
        check_classes_and_channels(num_classes, in_channels)
        check_whole("pools", pools, 0, "it counts the max pools kept, so write 3 for images of 8x8")
        check_width_mult(width_mult)
        if pools > len(_WIDTHS):
            raise ConfigError(
                f"pools must be at most {len(_WIDTHS)}, got {pools}: the network has one max pool after each "
                f"of its {len(_WIDTHS)} stages, so write {len(_WIDTHS)} to keep them all."
            )
        layers: list[nn.Module] = []
        inputs = in_channels
        for stage, (width, convolutions) in enumerate(zip(_WIDTHS, _CONVOLUTIONS[depth], strict=True)):
            outputs = max(1, round(width * width_mult))
            for _ in range(convolutions):
                layers += [
                    nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(),
                ]
                inputs = outputs
            layers.append(nn.MaxPool2d(2, 2) if stage < pools else nn.Identity())
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, num_classes)
        initialise_convolutions(self, "fan_out")
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                # Liu et al. 2017, section 4.3: more accurate here than the usual 1.
                nn.init.constant_(module.weight, 0.5)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: images, (batch, in_channels, height, width), with at least ``2 ** pools`` pixels a side.

        Returns:
            logits, (batch, num_classes).
        """
        x = self.pool(self.features(x))
        logits: Tensor = self.classifier(x.flatten(1))
        return logits
