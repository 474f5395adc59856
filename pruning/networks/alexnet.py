"""AlexNet of one column (Krizhevsky 2014, "One weird trick", arXiv:1404.5997), for ImageNet and for small images.

In the ImageNet form, layers and names of parameters are torchvision's, so its weights load. As there, the third
convolution has 384 channels and the fourth 256; the local response normalisation of the first AlexNet is gone.

The CIFAR form is the one of W. Yang's https://github.com/bearpaw/pytorch-classification: the same convolutions,
the first padded by 5 pixels, pools of 2x2, and one linear layer in place of three. Images of 32x32 end in a single
pixel of 256 channels. Batch normalisation after each convolution is in neither source.
"""

from __future__ import annotations

from typing import Final, Literal

from torch import Tensor, nn

from espalier.pruning.networks.arguments import check_choice, check_classes_and_channels
from espalier.pruning.networks.initialisation import initialise_convolutions

# (channels, kernel in pixels, whether a max pool follows)
_CONVOLUTIONS: Final = ((64, 11, True), (192, 5, True), (384, 3, False), (256, 3, False), (256, 3, True))


class AlexNet(nn.Module):
    """Five convolutions with three max pools, and the classifier of the form.

    Args:
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        form: "cifar" has one linear layer, for images of 32x32; "imagenet" has three with dropout of a half,
            for 224x224.
        batch_norm: whether each convolution is followed by batch normalisation, and then has no bias. The
            weights of torchvision fit the network without.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> network = AlexNet()
        >>> sum(parameter.numel() for parameter in network.parameters())
        2472266
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        form: Literal["cifar", "imagenet"] = "cifar",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        check_classes_and_channels(num_classes, in_channels)
        check_choice("form", form, ("cifar", "imagenet"), "it sets the pools and the classifier")
        check_choice("batch_norm", batch_norm, (False, True), "it adds batch normalisation")
        layers: list[nn.Module] = []
        inputs = in_channels
        for index, (width, kernel, pooled) in enumerate(_CONVOLUTIONS):
            stride, padding = 1, kernel // 2
            if index == 0:
                stride, padding = 4, 5 if form == "cifar" else 2
            layers.append(nn.Conv2d(inputs, width, kernel, stride, padding, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
            if pooled:
                layers.append(nn.MaxPool2d(2 if form == "cifar" else 3, 2))
            inputs = width
        self.features = nn.Sequential(*layers)
        self.classifier: nn.Module
        if form == "cifar":
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Linear(inputs, num_classes)
        else:
            self.avgpool = nn.AdaptiveAvgPool2d(6)
            self.classifier = nn.Sequential(
                nn.Dropout(0.5),
                nn.Linear(inputs * 6 * 6, 4096),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(4096, 4096),
                nn.ReLU(),
                nn.Linear(4096, num_classes),
            )
        initialise_convolutions(self, "fan_in")

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: images, (batch, in_channels, height, width), with at least 29 pixels a side in the CIFAR form
                and 63 in the ImageNet form.

        Returns:
            logits, (batch, num_classes).
        """
        x = self.avgpool(self.features(x))
        logits: Tensor = self.classifier(x.flatten(1))
        return logits
