"""MNIST and Fashion-MNIST, in the IDX format, gzipped or not.

An IDX file starts with a 32-bit magic number (0x0803 for bytes in three dimensions, 0x0801 for one), then one
32-bit size per dimension, all big-endian, then the bytes. http://yann.lecun.com/exdb/mnist/
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from espalier.errors import DataError
from espalier.search.tasks.classification.data.files import check_labels, find_folder, read_file, resolve_root
from espalier.search.tasks.classification.data.images import InMemoryImages, RawData

# Where the Debian package dataset-fashion-mnist puts the files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

_GZIP = b"\x1f\x8b"
_MNIST_CLASSES = tuple("0123456789")
_FASHION_CLASSES = tuple("T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(","))


def load_mnist(root: str | Path | None = None) -> RawData:
    """Reads MNIST: 60,000 training and 10,000 test images, ``uint8`` ``(n, 1, 28, 28)``.

    Args:
        root: folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same two of
            ``t10k``, each perhaps ending in ``.gz`` or written with ``.idx``; or the folder that holds
            ``mnist`` or ``MNIST/raw``.

    Raises:
        DataError: the folder or a file is missing, truncated or of another kind, image and label counts
            differ, or a label is out of range.
    """
    folder = _find(root, ("mnist", "MNIST/raw"), "the MNIST files")
    return _load(folder, _MNIST_CLASSES, (0.1307,), (0.3081,))


def load_fashion_mnist(root: str | Path | None = None) -> RawData:
    """Reads Fashion-MNIST: 60,000 training and 10,000 test images, ``uint8`` ``(n, 1, 28, 28)``.

    Args:
        root: folder with files named as for `load_mnist`, or the folder that holds ``fashion-mnist`` or
            ``FashionMNIST/raw``; None for where the Debian package ``dataset-fashion-mnist`` puts them.

    Raises:
        DataError: as for `load_mnist`.
    """
    if root is None and DEBIAN_FASHION_MNIST.is_dir():
        root = DEBIAN_FASHION_MNIST
    holds = "the Fashion-MNIST files (Debian has them in the package dataset-fashion-mnist)"
    folder = _find(root, ("fashion-mnist", "FashionMNIST/raw"), holds)
    return _load(folder, _FASHION_CLASSES, (0.2860,), (0.3530,))


def _load(folder: Path, classes: tuple[str, ...], mean: tuple[float], std: tuple[float]) -> RawData:
    return RawData(
        train=_read_split(folder, "train", classes),
        test=_read_split(folder, "t10k", classes),
        classes=classes,
        mean=mean,
        std=std,
    )


def _names(split: str, kind: str, dimensions: int) -> list[str]:
    stems = [f"{split}-{kind}{mark}idx{dimensions}-ubyte" for mark in "-."]
    return [stem + suffix for stem in stems for suffix in ("", ".gz")]


def _find(root: str | Path | None, subfolders: tuple[str, ...], holds: str) -> Path:
    names = [name for split in ("train", "t10k") for name in _names(split, "images", 3)]
    return find_folder(resolve_root(root, holds), subfolders, names, holds)


def _read_split(folder: Path, split: str, classes: tuple[str, ...]) -> InMemoryImages:
    image_path, images = _read_idx(folder, split, "images", 3)
    label_path, labels = _read_idx(folder, split, "labels", 1)
    if len(images) != len(labels):
        raise DataError(
            f"{label_path} must hold one label per image of {image_path.name}, got {len(labels)} labels and "
            f"{len(images)} images: the two files belong to different data sets"
        )
    check_labels(labels, len(classes), label_path)
    return InMemoryImages(torch.from_numpy(images.copy()).unsqueeze(1), torch.from_numpy(labels.copy()))


def _read_idx(folder: Path, split: str, kind: str, dimensions: int) -> tuple[Path, npt.NDArray[np.uint8]]:
    paths = [folder / name for name in _names(split, kind, dimensions)]
    path = next((path for path in paths if path.is_file()), paths[0])
    content = read_file(path)
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(
                f"{path} must be a complete gzip file, and it is truncated or damaged ({error}): "
                "fetch it again from its publisher"
            ) from error
    header = 4 + 4 * dimensions
    magic = 0x0800 + dimensions
    if len(content) < header:
        raise DataError(
            f"{path} must begin with {header} bytes of header, got {len(content)} bytes: it is truncated"
        )
    found = int.from_bytes(content[:4], "big")
    if found != magic:
        raise DataError(
            f"{path} must begin with the magic number 0x{magic:08x} (IDX bytes, {dimensions} dimensions), "
            f"got 0x{found:08x}: it is no IDX file of {kind}"
        )
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], dtype=">u4"))
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise DataError(
            f"{path} must be {expected} bytes long for the shape {shape} in its header, got {len(content)}"
            f"{' after decompression' if path.suffix == '.gz' else ''}: it is truncated or damaged"
        )
    return path, np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
