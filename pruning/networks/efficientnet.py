"""EfficientNet-B0 (Tan and Le 2019, arXiv:1905.11946), for ImageNet and for small images.

Names of parameters are torchvision's. The CIFAR form has the same layers and drops the first two of the five
halvings: 32x32 images end in a map of 4x4. The paper drops whole blocks at random while it trains; this one does
not.
"""

from __future__ import annotations

from typing import Final, Literal

from torch import Tensor, nn

from espalier.pruning.networks.arguments import check_choice, check_classes_and_channels, check_dropout
from espalier.pruning.networks.initialisation import initialise_convolutions
from espalier.pruning.networks.squeeze import Squeeze

# (expansion, kernel, channels, blocks, stride in the ImageNet form, stride in the CIFAR form), the paper's table 1
_STAGES: Final = (
    (1, 3, 16, 1, 1, 1),
    (6, 3, 24, 2, 2, 1),
    (6, 5, 40, 2, 2, 2),
    (6, 3, 80, 3, 2, 2),
    (6, 5, 112, 3, 1, 1),
    (6, 5, 192, 4, 2, 2),
    (6, 3, 320, 1, 1, 1),
)
_STEM, _LAST = 32, 1280


class MBConv(nn.Module):
    """An inverted residual with squeeze-and-excitation.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        kernel: side of the depthwise convolution, in pixels.
        stride: of it.
        expansion: channels of it, per channel that comes in; 1 has no expansion layer.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_conv_norm(inputs, hidden, 1).append(nn.SiLU())]
        layers += [
            _conv_norm(hidden, hidden, kernel, stride, groups=hidden).append(nn.SiLU()),
            Squeeze(hidden, max(1, inputs // 4), nn.SiLU(), nn.Sigmoid()),
            _conv_norm(hidden, outputs, 1),
        ]
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (batch, inputs, height, width).

        Returns:
            (batch, outputs, ceil(height / stride), ceil(width / stride)).
        """
        out: Tensor = self.block(x)
        return x + out if self.residual else out


class EfficientNet(nn.Module):
    """The network that the others of its family are scaled from.

    Args:
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        form: "cifar" strides three times, for images of 32x32; "imagenet" five times, for 224x224.
        dropout: fraction of the classifier's inputs dropped in training, in [0, 1).

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> network = EfficientNet(num_classes=1000, form="imagenet")
        >>> sum(parameter.numel() for parameter in network.parameters())
        5288548
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
        stages: list[nn.Module] = [_conv_norm(in_channels, _STEM, 3, 1 if form == "cifar" else 2).append(nn.SiLU())]
        channels = _STEM
        for expansion, kernel, outputs, blocks, imagenet_stride, cifar_stride in _STAGES:
            stride = cifar_stride if form == "cifar" else imagenet_stride
            layers = [MBConv(channels, outputs, kernel, stride, expansion)]
            layers += [MBConv(outputs, outputs, kernel, 1, expansion) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*layers))
            channels = outputs
        stages.append(_conv_norm(channels, _LAST, 1).append(nn.SiLU()))
        self.features = nn.Sequential(*stages)
        linear = nn.Linear(_LAST, num_classes)
        self.classifier = nn.Sequential(nn.Dropout(dropout), linear)
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
        logits: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return logits


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size of the map at stride 1, and batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )
