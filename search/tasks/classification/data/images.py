"""Labelled images, held in memory or decoded when asked for, and the three splits that a study uses.

An `ImageSet` hands out batches of raw ``uint8`` pixels. `transforms` turns them into what a network takes, so that
a batch moves to its device at a quarter of the size.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from espalier.errors import DataError

_DIGEST_IMAGES = 256


class ImageSet(ABC):
    """Images with one label each.

    Attributes:
        labels: class of every image, ``int64`` ``(n,)``.
    """

    labels: Tensor
    decodes = False
    """Whether images are decoded when they are fetched, which takes a processor's time."""
    workers: int | None = None
    """Processes that decode batches; None for as many as there are threads."""

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width, in pixels; the same for every image."""

    @abstractmethod
    def fetch(self, indices: Tensor, crops: Tensor | None = None) -> Tensor:
        """Returns the images at ``indices`` as a fresh tensor.

        Args:
            indices: positions in this set, ``int64`` ``(b,)``.
            crops: of each image the part that is scaled to its shape, ``(b, 4)``: see `crop_box`; None for the
                image as it is.

        Returns:
            Pixels 0..255, ``uint8`` ``(b, channels, height, width)``.

        Raises:
            DataError: an image's file cannot be decoded.
        """

    @abstractmethod
    def take(self, indices: Tensor) -> ImageSet:
        """Returns the images at ``indices``, ``int64`` ``(b,)``, as a set in that order."""


class InMemoryImages(ImageSet):
    """Images in one tensor.

    Args:
        images: pixels 0..255, ``uint8`` ``(n, channels, height, width)``.
        labels: class of every image, any integer dtype, ``(n,)``; kept as ``int64``.

    Raises:
        DataError: another dtype or shape, or as many labels as there are not images.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise DataError(
                "images must be uint8 of shape (n, channels, height, width), got "
                f"{images.dtype} of shape {tuple(images.shape)}: convert them to pixels 0..255 in that order"
            )
        if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise DataError(
                f"labels must be integers of shape (n,), got {labels.dtype} of shape {tuple(labels.shape)}: "
                "give one class number per image"
            )
        if images.shape[0] != labels.shape[0]:
            raise DataError(
                f"there must be one label per image, got {images.shape[0]} images and "
                f"{labels.shape[0]} labels: one of the two is cut short"
            )
        self.images = images
        self.labels = labels.to(torch.int64)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width, in pixels."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def fetch(self, indices: Tensor, crops: Tensor | None = None) -> Tensor:
        """Returns the images at ``indices`` ``(b,)`` as ``uint8`` ``(b, channels, height, width)``."""
        images = self.images[indices.to(self.images.device)]
        if crops is None:
            return images
        height, width = images.shape[2:]
        for number, crop in enumerate(crops.tolist()):
            left, top, wide, high = (round(edge) for edge in crop_box(width, height, crop))
            part = images[number : number + 1, :, top : top + max(1, high), left : left + max(1, wide)]
            images[number] = functional.interpolate(part, (height, width), mode="bilinear", antialias=True)[0]
        return images

    def take(self, indices: Tensor) -> InMemoryImages:
        """Returns a copy of the images at ``indices`` ``(b,)``, in that order."""
        return InMemoryImages(self.fetch(indices), self.labels[indices.to(self.labels.device)])


class FolderImages(ImageSet):
    """Image files, decoded by Pillow each time they are fetched.

    Every image becomes RGB, is resized (bilinear, aspect kept) until its shorter side is ``resize`` and
    loses all but the ``size`` by ``size`` pixels in its centre.

    Args:
        paths: one file per image.
        labels: class of every image, ``int64`` ``(n,)``.
        resize: length of the shorter side after resizing, in pixels.
        size: side of the square cut from the centre, in pixels; at most ``resize``.
        workers: processes that decode batches; None for as many as there are threads.

    Raises:
        DataError: as many labels as there are not files, or a size, resize or workers out of range.
    """

    decodes = True

    def __init__(
        self, paths: Sequence[str | Path], labels: Tensor, *, resize: int, size: int, workers: int | None = None
    ) -> None:
        for name, value in (("resize", resize), ("size", size), ("workers", 1 if workers is None else workers)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DataError(f"data.kwargs.{name} must be a whole number from 1 up, got {value!r}: set it so")
        if size > resize:
            raise DataError(
                f"data.kwargs.size must be at most data.kwargs.resize = {resize} pixels, got {size}: "
                "the crop cannot be larger than the resized image"
            )
        if len(paths) != labels.shape[0]:
            raise DataError(
                f"there must be one label per image, got {len(paths)} files and {labels.shape[0]} labels: "
                "pass lists of the same length"
            )
        # One array: strings are copied into every process that decodes, as their counts of references change.
        self._paths = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
        self.labels = labels.to(torch.int64)
        self.resize = resize
        self.size = size
        self.workers = workers

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width, in pixels."""
        return 3, self.size, self.size

    def fetch(self, indices: Tensor, crops: Tensor | None = None) -> Tensor:
        """Decodes the images at ``indices`` ``(b,)`` into ``uint8`` ``(b, 3, size, size)``.

        Raises:
            DataError: a file is gone or is no image that Pillow can decode; names it.
        """
        pixels = np.empty((indices.shape[0], self.size, self.size, 3), dtype=np.uint8)
        for row, index in enumerate(indices.tolist()):
            pixels[row] = self._decode(
                os.fsdecode(self._paths[index]), None if crops is None else crops[row].tolist()
            )
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def take(self, indices: Tensor) -> FolderImages:
        """Returns the files at ``indices`` ``(b,)`` as a set in that order; decodes nothing."""
        taken = copy.copy(self)
        taken._paths, taken.labels = self._paths[indices.numpy()], self.labels[indices]
        return taken

    def _decode(self, path: str, crop: Sequence[float] | None) -> npt.NDArray[np.uint8]:
        from PIL import Image

        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except Exception as error:  # each of Pillow's formats raises errors of its own kind
            raise DataError(
                f"{path} must be an image that Pillow can decode, and it is not "
                f"({type(error).__name__}: {error}): replace or remove it"
            ) from error
        if crop is not None:
            left, top, width, height = crop_box(*image.size, crop)
            box = left, top, left + width, top + height
            return np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR, box))
        shorter = min(image.size)
        width, height = (side * self.resize // shorter for side in image.size)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))


def crop_box(width: int, height: int, crop: Sequence[float]) -> tuple[float, float, float, float]:
    """Left, top, width and height, in pixels, of a part of an image.

    Args:
        width: of the image.
        height: of the image.
        crop: the part's share of the area, its width over its height, and where it lies between left and right and
            between top and bottom, both in [0, 1]. What would be longer than the image is as long as it.
    """
    area, aspect, across, down = crop
    wide = min(width, math.sqrt(area * width * height * aspect))
    high = min(height, math.sqrt(area * width * height / aspect))
    return across * (width - wide), down * (height - high), wide, high


@dataclass(frozen=True)
class RawData:
    """A data set as it was published, before images are held out for the search.

    Attributes:
        train: the training split.
        test: the test split.
        classes: class names; a label is a position in them.
        mean: per channel, of pixels scaled to [0, 1]; None to have it computed from ``train``.
        std: likewise, the standard deviation.
    """

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Splits:
    """The images of one study.

    Attributes:
        train: images that networks are trained and calibrated on.
        search: training images held out to score candidates on; none of them is in ``train``.
        test: the test split, to be read once.
        classes: class names; a label is a position in them.
        mean: per channel, of pixels scaled to [0, 1].
        std: likewise, the standard deviation.
    """

    train: ImageSet
    search: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image, in pixels."""
        return self.train.image_shape

    def digest(self) -> str:
        """Returns 16 hex digits that tell whether a resumed study sees the data it began with.

        They are the start of a SHA-256 over the classes, the labels of ``train`` and ``search`` in order,
        and the pixels of the first 256 search images: cheap, and enough to notice another split.

        Raises:
            DataError: an image's file cannot be decoded.
        """
        sha = hashlib.sha256(repr((self.image_shape, self.classes, len(self.train))).encode())
        for part in (self.train, self.search):
            sha.update(part.labels.cpu().numpy().astype("<i8").tobytes())
        head = torch.arange(min(len(self.search), _DIGEST_IMAGES))
        sha.update(self.search.fetch(head).cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()[:16]
