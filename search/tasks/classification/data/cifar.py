"""CIFAR-10 and CIFAR-100, in the two layouts they are published in: binary records and Python pickles.

A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. A binary record is one label byte
(CIFAR-100: coarse, then fine; fine is used) and 3 x 32 x 32 pixel bytes, red plane first. Checksums are not
compared, so that re-encoded or shortened copies can be used.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from espalier.errors import DataError
from espalier.search.tasks.classification.data.files import check_labels, find_folder, read_file, resolve_root
from espalier.search.tasks.classification.data.images import InMemoryImages, RawData
from espalier.search.tasks.classification.data.pickles import load_arrays

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32  # bytes per image

_CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
    lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
    shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
    telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


@dataclass(frozen=True)
class _Variant:
    """What sets the two data sets apart."""

    title: str
    subfolders: tuple[str, ...]
    train: tuple[str, ...]  # file names; the binary ones end in .bin
    test: str
    label_bytes: int  # at the start of a binary record; the last of them is the label
    label_key: str  # in a pickle
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


_CIFAR10 = _Variant(
    title="CIFAR-10",
    subfolders=("cifar-10-batches-bin", "cifar-10-batches-py"),
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    label_bytes=1,
    label_key="labels",
    classes=tuple(_CIFAR10_CLASSES.split()),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
_CIFAR100 = _Variant(
    title="CIFAR-100",
    subfolders=("cifar-100-binary", "cifar-100-python"),
    train=("train",),
    test="test",
    label_bytes=2,
    label_key="fine_labels",
    classes=tuple(_CIFAR100_CLASSES.split()),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def load_cifar10(root: str | Path | None = None) -> RawData:
    """Reads CIFAR-10: 50,000 training and 10,000 test images, ``uint8`` ``(n, 3, 32, 32)``, of 10 classes.

    Args:
        root: folder with ``data_batch_1..5`` and ``test_batch`` (pickles) or the same names ending in
            ``.bin``, or the folder that holds ``cifar-10-batches-bin`` or ``cifar-10-batches-py``.

    Raises:
        DataError: the folder or a file is missing, truncated or damaged, or a label is out of range.
    """
    return _load(_CIFAR10, root)


def load_cifar100(root: str | Path | None = None) -> RawData:
    """Reads CIFAR-100: 50,000 training and 10,000 test images, ``uint8`` ``(n, 3, 32, 32)``, of 100 classes.

    Args:
        root: folder with ``train`` and ``test`` (pickles) or ``train.bin`` and ``test.bin``, or the folder
            that holds ``cifar-100-binary`` or ``cifar-100-python``.

    Raises:
        DataError: the folder or a file is missing, truncated or damaged, or a label is out of range.
    """
    return _load(_CIFAR100, root)


def _load(variant: _Variant, root: str | Path | None) -> RawData:
    holds = f"the {variant.title} files"
    stems = (*variant.train, variant.test)
    names = [f"{stem}.bin" for stem in stems] + list(stems)
    folder = find_folder(resolve_root(root, holds), variant.subfolders, names, holds)
    binary = any((folder / name).is_file() for name in names[: len(stems)])
    suffix, read = (".bin", _read_binary) if binary else ("", _read_pickle)
    parts = [read(folder / f"{stem}{suffix}", variant) for stem in stems]
    return RawData(
        train=_join(parts[:-1]),
        test=_join(parts[-1:]),
        classes=variant.classes,
        mean=variant.mean,
        std=variant.std,
    )


_Part = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]  # images (n, 3, 32, 32) and labels (n,)


def _join(parts: list[_Part]) -> InMemoryImages:
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    return InMemoryImages(torch.from_numpy(images), torch.from_numpy(labels))


def _read_binary(path: Path, variant: _Variant) -> _Part:
    record = variant.label_bytes + _PIXELS
    content = read_file(path)
    if not content or len(content) % record:
        raise DataError(
            f"{path} must be a multiple of {record} bytes long (one record of {variant.title}), got "
            f"{len(content)} bytes: it is truncated, or of another data set"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    labels = records[:, variant.label_bytes - 1].astype(np.int64)
    check_labels(labels, len(variant.classes), path)
    return records[:, variant.label_bytes :].reshape(-1, *_SHAPE), labels


def _read_pickle(path: Path, variant: _Variant) -> _Part:
    content = load_arrays(path)
    for key in ("data", variant.label_key):
        if key not in content:
            raise DataError(
                f"{path} must have the key {key!r}, got {', '.join(sorted(content)) or 'none'}: "
                f"it is no file of {variant.title}"
            )
    images = content["data"]
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (_PIXELS,):
        got = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(
            f"{path}: 'data' must be a uint8 array of shape (n, {_PIXELS}), got {got}: "
            f"it is no file of {variant.title}"
        )
    values = content[variant.label_key]
    listed = isinstance(values, list) and all(isinstance(value, int) for value in values)
    labels: npt.NDArray[Any] = np.asarray(values if listed or isinstance(values, np.ndarray) else None)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: {variant.label_key!r} must be a list of whole numbers, got {reprlib.repr(values)}: "
            f"it is no file of {variant.title}"
        )
    if len(labels) != len(images):
        raise DataError(
            f"{path} must hold one label per image, got {len(images)} images and {len(labels)} labels: "
            "it is damaged"
        )
    check_labels(labels, len(variant.classes), path)
    return images.reshape(-1, *_SHAPE), labels.astype(np.int64)
