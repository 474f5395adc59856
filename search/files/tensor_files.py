"""Network checkpoints in the run folder: safetensors with a JSON header, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from espalier.errors import ArtefactError
from espalier.persistence import whole_file
from espalier.pruning.networks.weights import digest as digest
from espalier.pruning.networks.weights import tensors_of as tensors_of

HEADER = "espalier"


def save_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Writes tensors and a JSON header; the file appears whole or not at all."""
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with whole_file(path) as partial:
        partial.write_bytes(serialize(contiguous, metadata={HEADER: json.dumps(header)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file that `save_tensors` wrote.

    Raises:
        ArtefactError: it cannot be read, or espalier did not write it.
    """
    with _opened(path) as (file, header):
        return {name: file.get_tensor(name) for name in file.keys()}, header


def load_header(path: Path) -> dict[str, Any]:
    """The header alone.

    Raises:
        ArtefactError: as `load_tensors`.
    """
    with _opened(path) as (_, header):
        return header


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    if path.is_dir():
        raise ArtefactError(f"cannot read {path}: it is a folder")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if HEADER not in metadata:
                raise ArtefactError(f"{path} was not written by espalier")
            yield file, json.loads(metadata[HEADER])
    except SafetensorError as error:
        raise ArtefactError(f"cannot read {path}: it is no file of espalier, or is damaged ({error})") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(f"cannot read {path}: {error}") from error
