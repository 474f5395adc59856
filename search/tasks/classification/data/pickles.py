"""Reading the pickles that data sets are published as, without running what is in them.

An unpickler calls whatever functions the file names. This one knows the few that rebuild a NumPy array
and refuses all others, so a file from anywhere is safe to open.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from espalier.errors import DataError
from espalier.search.tasks.classification.data.files import read_file


def _latin1(text: str, encoding: str) -> bytes:
    """`_codecs.encode`, as Python 3 calls it in protocol 2 to write ``bytes``, and no other way."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes must be encoded in latin1, got {encoding!r}")
    return text.encode("latin1")


def _dtype(spec: str | bytes, align: int = 0, copy: int = 1) -> np.dtype[Any]:
    """`numpy.dtype`, called as older NumPy's pickles do, with whole numbers for truth values."""
    return np.dtype(spec.decode("latin1") if isinstance(spec, bytes) else spec, bool(align), bool(copy))


# NumPy's own functions, asked of an array, as the modules they live in were renamed in NumPy 2.
_RECONSTRUCT = np.empty(1).__reduce__()[0]
_FROM_BUFFER = np.empty(1).__reduce_ex__(5)[0]

_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("_codecs", "encode"): _latin1,
}


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler of containers, numbers, texts and NumPy arrays."""

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._path = path

    def find_class(self, module: str, name: str) -> object:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise DataError(
                f"{self._path} asks to run {module}.{name}, and a data set's pickle may only hold NumPy "
                "arrays, texts and numbers: do not trust this file, fetch it again from its publisher"
            ) from None


def load_arrays(path: Path) -> dict[str, object]:
    """Returns the dictionary pickled in a file, its keys as text.

    Files of Python 2 are read too; their texts come as ``bytes``.

    Raises:
        DataError: the file is missing, is no complete pickle of a dictionary, or names a function or class
            that arrays do not need (nothing of it is run).
    """
    try:
        content = _ArrayUnpickler(read_file(path), path).load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle may fail in any of the calls it makes
        raise DataError(
            f"{path} must be a complete pickle, and it is truncated or damaged "
            f"({type(error).__name__}: {error}): fetch it again from its publisher"
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path} must be the pickle of a dictionary, got {type(content).__name__}: it is another data set's"
        )
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): content[key] for key in content}
