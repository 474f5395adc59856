"""Folders of image files, one sub-folder per class, as ImageNet is usually laid out."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from espalier.errors import DataError
from espalier.search.tasks.classification.data.files import resolve_root
from espalier.search.tasks.classification.data.images import FolderImages, RawData

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")

# Of ImageNet-1k, as torchvision and timm use them.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def load_folder(
    root: str | Path | None = None,
    *,
    resize: int = 256,
    size: int = 224,
    workers: int | None = None,
    test_folder: str | None = None,
) -> RawData:
    """Lists ``root/train/<class>/*`` and ``root/val/<class>/*`` (or ``root/test``), decoding nothing yet.

    Classes are the sub-folders' names in order; files are taken by their suffix (`SUFFIXES`, in any case),
    and hidden ones passed over.

    Args:
        root: the folder with ``train`` in it.
        resize: length of the shorter side after resizing, in pixels.
        size: side of the square cut from the centre, in pixels.
        workers: processes that decode batches; None for as many as there are threads.
        test_folder: name of the sub-folder that serves as the test split; None for whichever of ``val`` and
            ``test`` is there.

    Returns:
        Images of shape ``(3, size, size)``.

    Raises:
        DataError: a folder is missing, a class has no image, the classes of the two splits differ, both
            ``val`` and ``test`` are there and none was chosen, or a number is out of range.
    """
    path = resolve_root(root, "the image folders train/<class>/ and val/<class>/")
    test = path / (_choose_test(path) if test_folder is None else test_folder)
    listed, test_listed = _list(path / "train"), _list(test)
    if listed.keys() != test_listed.keys():
        only = [f"{name} only in train" for name in sorted(listed.keys() - test_listed.keys())]
        only += [f"{name} only in {test.name}" for name in sorted(test_listed.keys() - listed.keys())]
        more = f" and {len(only) - 3} more" if len(only) > 3 else ""
        raise DataError(
            f"{test} must have the same class folders as {path / 'train'}, got {', '.join(only[:3])}{more}: "
            "add or remove them"
        )

    def images(files: dict[str, list[str]]) -> FolderImages:
        labels = [label for label, name in enumerate(files) for _ in files[name]]
        paths = [file for name in files for file in files[name]]
        return FolderImages(paths, torch.tensor(labels), resize=resize, size=size, workers=workers)

    return RawData(train=images(listed), test=images(test_listed), classes=tuple(listed), mean=_MEAN, std=_STD)


def _choose_test(root: Path) -> str:
    there = [name for name in ("val", "test") if (root / name).is_dir()]
    if not there:
        raise DataError(
            f"{root} must hold a folder val or test with the test images, and it has neither: add one, or "
            "name another in data.kwargs.test_folder"
        )
    if len(there) > 1:
        raise DataError(
            f"{root} must say which images test the winner, and it has both val and test: set "
            "data.kwargs.test_folder to one of them"
        )
    return there[0]


def _list(folder: Path) -> dict[str, list[str]]:
    """Returns the image files of each class; classes and files in the order of their names."""
    if not folder.is_dir():
        raise DataError(f"{folder} is missing: it must hold one sub-folder of images per class")
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    files = {name: _list_images(folder / name) for name in names}
    if not any(files.values()):
        raise DataError(
            f"{folder} must hold one sub-folder per class with images ({' '.join(SUFFIXES)}), and there "
            "are none: correct data.root"
        )
    for name, found in files.items():
        if not found:
            raise DataError(
                f"{folder / name} must hold images ({' '.join(SUFFIXES)}), and there are none: "
                "add some, or remove the class from every split"
            )
    return files


def _list_images(folder: Path) -> list[str]:
    return sorted(
        entry.path
        for entry in os.scandir(folder)
        if entry.name[0] != "." and entry.name.lower().endswith(SUFFIXES) and entry.is_file()
    )
