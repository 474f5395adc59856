"""From raw pixels to what a network eats: scaling, and random crops and flips of a whole batch at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from espalier.errors import DataError
from espalier.search.tasks.classification.data.images import ImageSet

_STATISTICS_BATCH = 256


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Returns ``(images / 255 - mean) / std``, per channel, on the images' device.

    Args:
        images: pixels 0..255, ``uint8`` ``(b, channels, height, width)``; left as they are.
        mean: one number per channel, of pixels scaled to [0, 1].
        std: likewise, the standard deviation.

    Returns:
        ``float32`` ``(b, channels, height, width)``, in the images' memory format.

    Raises:
        DataError: images that are not ``uint8``, or a mean or std of another length than the channels.
    """
    if images.dtype != torch.uint8:
        raise DataError(
            f"images to normalise must be uint8 pixels 0..255, got {images.dtype}: "
            "normalise once, straight from what ImageSet.fetch returns"
        )
    channels = images.shape[1]
    if len(mean) != channels or len(std) != channels:
        raise DataError(
            f"mean and std must have one number for each of the {channels} channels, got {len(mean)} and "
            f"{len(std)}: set data.mean and data.std to lists of {channels}"
        )
    shift = torch.tensor(mean, dtype=torch.float32, device=images.device).view(-1, 1, 1)  # (c, 1, 1)
    scale = torch.tensor(std, dtype=torch.float32, device=images.device).view(-1, 1, 1)
    return images.to(torch.float32).div_(255.0).sub_(shift).div_(scale)


def augment(batch: Tensor, generator: torch.Generator, pad: int, flip: bool) -> Tensor:
    """Shifts each image by up to ``pad`` pixels each way and mirrors it left to right with probability 1/2.

    Each image is padded with zeros on all sides and a window of its own size is cut out at random. The zeros
    are zeros of the space given: black for raw pixels, the mean colour for normalised images.

    Args:
        batch: any dtype, ``(b, channels, height, width)``; left as it is.
        generator: the source of randomness, on any device. One on the CPU gives the same draws whatever
            the batch's device.
        pad: largest shift, in pixels; 0 for none.
        flip: whether to mirror.

    Returns:
        A tensor of the batch's dtype, shape and device; the batch itself where there is nothing to do.

    Raises:
        DataError: a negative ``pad``.
    """
    if pad < 0:
        raise DataError(f"pad must be 0 or more pixels, got {pad}: write 0 for no random crop")
    count, _, height, width = batch.shape
    source = generator.device
    if pad > 0:
        draws = torch.randint(2 * pad + 1, (2, count), generator=generator, device=source)
        top, left = draws.to(batch.device)  # (b,) each
        padded = functional.pad(batch, (pad, pad, pad, pad))
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (b, c, 2 pad + 1, 2 pad + 1, h, w), a view
        batch = windows[torch.arange(count, device=batch.device), :, top, left]  # (b, c, h, w)
    if flip:
        mirrored = torch.randint(2, (count,), generator=generator, device=source).to(batch.device).bool()
        batch = torch.where(mirrored.view(-1, 1, 1, 1), batch.flip(3), batch)
    return batch


ASPECTS = 3 / 4, 4 / 3
"""Of random crops, width over height, as usual on ImageNet."""


def draw_crops(count: int, areas: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Random parts of so many images, (count, 4), as `ImageSet.fetch` takes them (Szegedy et al., CVPR 2015).

    Args:
        count: of images.
        areas: least and greatest share of the area, each drawn evenly.
        generator: the source of randomness, on the CPU.
    """
    area, aspect, across, down = torch.rand(4, count, generator=generator)
    low, high = (math.log(bound) for bound in ASPECTS)
    return torch.stack(
        [areas[0] + area * (areas[1] - areas[0]), (low + aspect * (high - low)).exp(), across, down], 1
    )


def draw_mix(count: int, alpha: float, generator: torch.Generator) -> tuple[float, Tensor]:
    """Share of each image in its mixture, and the other image, (count,), that the rest is of.

    mixup (Zhang et al., ICLR 2018, arXiv 1710.09412): the share is Beta(alpha, alpha), one per batch.
    """
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha)), torch.randperm(count, generator=generator)


def channel_statistics(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and the standard deviation of each channel, of pixels scaled to [0, 1].

    Sums are kept in whole numbers, so that the result depends on neither the order nor the machine.

    Raises:
        DataError: there are no images, or one that cannot be decoded.
    """
    if len(images) == 0:
        raise DataError("mean and std need at least one image, got none: set data.mean and data.std")
    channels, height, width = images.image_shape
    total = torch.zeros(channels, dtype=torch.int64)
    squares = torch.zeros(channels, dtype=torch.int64)
    for indices in torch.split(torch.arange(len(images)), _STATISTICS_BATCH):
        pixels = images.fetch(indices).cpu().to(torch.int32)  # (b, c, h, w)
        total += pixels.sum(dim=(0, 2, 3))
        squares += pixels.square().sum(dim=(0, 2, 3))
    count = len(images) * height * width
    mean = total.double() / count
    std = (squares.double() / count - mean.square()).clamp(min=0).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
