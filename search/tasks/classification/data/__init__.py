"""Data sets: reading them, holding images out for the search, and making batches of them.

`load` is the way in. Nothing is ever downloaded.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from espalier.errors import DataError
from espalier.search.tasks.classification.data.cifar import load_cifar10, load_cifar100
from espalier.search.tasks.classification.data.custom import call, load_callable
from espalier.search.tasks.classification.data.digits import load_digits
from espalier.search.tasks.classification.data.folder import load_folder
from espalier.search.tasks.classification.data.idx import load_fashion_mnist, load_mnist
from espalier.search.tasks.classification.data.images import FolderImages, ImageSet, InMemoryImages, RawData, Splits
from espalier.search.tasks.classification.data.splits import stratified_split, stratified_subset
from espalier.search.tasks.classification.data.transforms import augment, channel_statistics, normalize

__all__ = [
    "DATASETS",
    "FolderImages",
    "ImageSet",
    "InMemoryImages",
    "RawData",
    "Splits",
    "augment",
    "channel_statistics",
    "load",
    "normalize",
    "stratified_split",
    "stratified_subset",
]

DATASETS: Final[Mapping[str, Callable[..., RawData]]] = {
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "digits": load_digits,
    "fashion-mnist": load_fashion_mnist,
    "imagefolder": load_folder,
    "mnist": load_mnist,
}
"""Data set name -> its loader, which is called as ``loader(root=root, **kwargs)``."""


def load(
    name: str,
    root: str | Path | None = None,
    *,
    search_images: int | float,
    seed: int,
    train_images: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    kwargs: Mapping[str, object] | None = None,
) -> Splits:
    """Reads a data set and holds images of its training split out for the search.

    Args:
        name: a key of `DATASETS`, or ``package.module:callable`` (see
            `espalier.search.tasks.classification.data.custom.load_callable`).
        root: the folder with the files; None where the data set needs none.
        search_images: how many training images to hold out, as a number (int) or as a fraction of them
            (float in (0, 1), rounded). They are drawn by ``seed``, each class in proportion.
        seed: 0 or more. It moves no image in or out of the test split.
        train_images: how many of the remaining training images to keep, each class in proportion; None for
            all.
        mean: per channel, of pixels scaled to [0, 1]; None for the data set's own constants, which for a
            callable are computed from all its training images.
        std: likewise, the standard deviation.
        kwargs: further arguments of the loader.

    Returns:
        The splits, with images ``uint8`` ``(n, channels, height, width)``.

    Raises:
        DataError: an unknown name, a file that is missing or not what it should be, or a number out of
            range; the message names the file or the key.
    """
    data = _read(name, root, kwargs or {})
    if data.train.image_shape != data.test.image_shape:
        raise DataError(
            f"training and test images must have the same shape, got {data.train.image_shape} and "
            f"{data.test.image_shape} (channels, height, width) from {name}: the files do not belong together"
        )
    labels = data.train.labels
    held_out = _count_search(search_images, len(labels))
    rest, search = stratified_split(labels, held_out, seed)
    _check_classes("search_images", search_images, labels[search], labels, data.classes)
    _check_classes("search_images", search_images, labels[rest], labels, data.classes, more=False)
    if train_images is not None:
        if isinstance(train_images, bool) or not isinstance(train_images, int) or train_images < 1:
            raise DataError(
                f"data.train_images must be a whole number from 1 up, got {train_images!r}: "
                "leave it out to train on all"
            )
        if train_images > len(rest):
            raise DataError(
                f"data.train_images must be at most the {len(rest)} training images that {held_out} search "
                f"images leave, got {train_images}: lower one of the two"
            )
        pool, rest = labels[rest], rest[stratified_subset(labels[rest], train_images, seed)]
        _check_classes("train_images", train_images, labels[rest], pool, data.classes)
    used_mean, used_std = _statistics(data, mean, std)
    return Splits(
        train=data.train.take(rest),
        search=data.train.take(search),
        test=data.test,
        classes=data.classes,
        mean=used_mean,
        std=used_std,
    )


def _read(name: str, root: str | Path | None, kwargs: Mapping[str, object]) -> RawData:
    if ":" in name:
        return load_callable(name, root, kwargs)
    if name in DATASETS:
        return call(name, DATASETS[name], root, kwargs)
    close = difflib.get_close_matches(name.lower().replace("_", "-"), DATASETS, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "choose one of them"
    raise DataError(
        f"data.name must be one of {', '.join(sorted(DATASETS))}, or package.module:callable, got {name!r}: {hint}"
    )


def _count_search(search_images: int | float, available: int) -> int:
    """Returns how many of the available training images to hold out."""
    if isinstance(search_images, float) and 0 < search_images < 1:
        count = round(search_images * available)
    elif isinstance(search_images, int) and not isinstance(search_images, bool) and search_images > 0:
        count = search_images
    else:
        raise DataError(
            "data.search_images must be a number of images (a whole number from 1 up) or a fraction of the "
            f"training images in (0, 1), got {search_images!r}: write 5000 or 0.1, say"
        )
    if count >= available:
        raise DataError(
            f"data.search_images must leave some of the {available} training images to train on, got "
            f"{search_images}: lower it"
        )
    return count


def _check_classes(
    key: str, value: float, part: Tensor, pool: Tensor, classes: tuple[str, ...], more: bool = True
) -> None:
    """Checks that the labels of a part drawn from a pool, both ``(n,)``, have every class among them.

    ``more`` says whether a higher value of the key makes the part larger.
    """
    absent = torch.nonzero(torch.bincount(part, minlength=len(classes)) == 0).flatten().tolist()
    if not absent:
        return
    there = int((pool == absent[0]).sum())
    if there < 2:
        advice = "add images of it, or remove the class"
    elif more:
        advice = f"write {math.ceil(len(pool) / there)} or more"  # one place in proportion
    else:
        advice = "lower it"
    raise DataError(
        f"every one of the {len(classes)} classes must have an image to train on and one to search with, and "
        f"data.{key} = {value} leaves none of class {classes[absent[0]]!r}, which has {there} of "
        f"{len(pool)} images: {advice}"
    )


def _statistics(
    data: RawData, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and std asked for, else the data set's own, else those of its training images."""
    own_mean, own_std = data.mean, data.std
    if (mean is None and own_mean is None) or (std is None and own_std is None):
        computed_mean, computed_std = channel_statistics(data.train)
        own_mean, own_std = own_mean or computed_mean, own_std or computed_std
    used_mean = tuple(map(float, mean if mean is not None else own_mean or ()))
    used_std = tuple(map(float, std if std is not None else own_std or ()))
    channels = data.train.image_shape[0]
    for key, values in (("mean", used_mean), ("std", used_std)):
        if len(values) != channels or not all(map(math.isfinite, values)):
            raise DataError(
                f"data.{key} must have one finite number for each of the {channels} channels, got "
                f"{list(values)}: correct it, or leave it out for the data set's own"
            )
    if min(used_std) <= 0:
        raise DataError(
            f"data.std must be above 0 in every channel, got {list(used_std)}: set data.std (a channel whose "
            "pixels are all alike has none of its own)"
        )
    return used_mean, used_std
