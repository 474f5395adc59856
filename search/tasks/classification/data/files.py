"""What the readers of file formats share: finding folders, reading files, checking labels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from espalier.errors import DataError


def resolve_root(root: str | Path | None, holds: str) -> Path:
    """Returns the folder that ``data.root`` names.

    Args:
        root: the folder, or None where it was not set; ``~`` is expanded.
        holds: what should lie in it, for the message.

    Raises:
        DataError: not set, or not a folder.
    """
    if root is None:
        raise DataError(
            f"data.root must name the folder that holds {holds}, and it is not set: set it, as nothing "
            "is downloaded"
        )
    path = Path(root).expanduser()
    if not path.is_dir():
        raise DataError(
            f"data.root must name the folder that holds {holds}, and {path} is no folder: correct "
            "data.root, or put the files there (nothing is downloaded)"
        )
    return path


def find_folder(root: Path, subfolders: Iterable[str], names: Iterable[str], holds: str) -> Path:
    """Returns the first of ``root`` and its ``subfolders`` in which a file of one of ``names`` lies.

    Raises:
        DataError: there is none; lists where it looked.
    """
    names = tuple(names)
    folders = [root, *(root / subfolder for subfolder in subfolders)]
    for folder in folders:
        if any((folder / name).is_file() for name in names):
            return folder
    raise DataError(
        f"data.root must hold {holds}, and there is no {names[0]} (nor another of its files) in "
        f"{' or '.join(map(str, folders))}: correct data.root, or put the files there (nothing is downloaded)"
    )


def read_file(path: Path) -> bytes:
    """Returns the bytes of a file.

    Raises:
        DataError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: put it there, or correct data.root") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check its kind and permissions") from error


def check_labels(labels: npt.NDArray[np.integer], num_classes: int, source: str | Path) -> None:
    """Checks that labels, ``(n,)``, lie in 0..num_classes - 1.

    Raises:
        DataError: one does not; names ``source``, the label and its position.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise DataError(
            f"{source}: labels must lie in 0..{num_classes - 1}, got {labels[wrong[0]]} for image "
            f"{wrong[0]}: the file is damaged or of another data set"
        )
