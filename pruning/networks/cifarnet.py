"""CifarNet: two convolutions and three linear layers, the small network that papers on pruning start from.

It descends from cuda-convnet's network for CIFAR-10 (Krizhevsky, https://code.google.com/archive/p/cuda-convnet)
by way of TensorFlow's tutorial. Layers, widths and pools are those of TF-Slim's ``cifarnet``,
https://github.com/tensorflow/models/blob/master/research/slim/nets/cifarnet.py, on images of 32x32. Papers on
structured sparsity, such as OICSR (Li et al. 2019, arXiv:1905.11664), compare on a network of this name. It
differs from TF-Slim's in one thing: batch normalisation after each convolution stands in for local response
normalisation. The latter divides a channel by a sum over its neighbours in the order of channels, so that
removing a channel would change what happens to those that stay.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

from espalier.pruning.networks.arguments import check_classes_and_channels, check_dropout
from espalier.pruning.networks.initialisation import initialise_convolutions

_MAP: Final = 8  # pixels a side of the map that is flattened: what two pools leave of 32


class CifarNet(nn.Module):
    """Two 5x5 convolutions of 64 channels, each closed by a pool, and linear layers of 384 and 192.

    Args:
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        dropout: fraction of the 384 features dropped in training, in [0, 1).

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> network = CifarNet()
        >>> sum(parameter.numel() for parameter in network.parameters())
        1756554
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        check_classes_and_channels(num_classes, in_channels)
        check_dropout(dropout)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 64, 5, padding=2, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(64, 64, 5, padding=2, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2, 2),
        )
        # Changes nothing on images of 32x32, and lets images of other sizes in.
        self.pool = nn.AdaptiveAvgPool2d(_MAP)
        hidden = (nn.Linear(64 * _MAP**2, 384), nn.Linear(384, 192))
        linear = nn.Linear(192, num_classes)
        self.classifier = nn.Sequential(hidden[0], nn.ReLU(), nn.Dropout(dropout), hidden[1], nn.ReLU(), linear)
        initialise_convolutions(self, "fan_in")
        for layer in hidden:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(linear.weight, std=1 / 192)  # as TF-Slim
        nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: images, (batch, in_channels, height, width), with at least 4 pixels a side.

        Returns:
            logits, (batch, num_classes).
        """
        x = self.pool(self.features(x))
        logits: Tensor = self.classifier(x.flatten(1))
        return logits
