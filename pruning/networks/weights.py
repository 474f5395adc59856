"""Reading weights from a file into a network, with every misfit told in one line."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor, nn

from espalier.errors import WeightsError

_TORCH_SUFFIXES: Final = (".pt", ".pth", ".th")
_NESTED_KEYS: Final = ("state_dict", "model")
_WRAPPER: Final = "module."  # what DataParallel and DistributedDataParallel put before every name
_LISTED: Final = 3  # names of each kind that a message lists


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Copy the weights of a file into a network, all of them or none.

    Reads ``.safetensors``, and ``.pt``, ``.pth`` or ``.th`` without unpickling anything but tensors and plain
    containers. The state dict may lie under a key ``state_dict`` or ``model``, and its names may all begin
    with ``module.``. Every parameter and persistent buffer must be there in the network's shape, and nothing
    else; only the ``num_batches_tracked`` of batch normalisation, which older files lack, may be absent.

    Args:
        model: the network, changed in place; its device and dtypes stay as they are.
        path: the file.

    Raises:
        WeightsError: the file is missing, cannot be read, holds no state dict, or does not fit the network.
    """
    file = Path(path)
    expected = model.state_dict()
    found = _unwrapped(_state_dict(file), expected)
    missing = [name for name in expected if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} has shape {tuple(tensor.shape)} in the file, {tuple(expected[name].shape)} in the network"
        for name, tensor in found.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if missing or unexpected or misshapen:
        faults = [
            _listed("missing from the file", missing),
            _listed("in the file but not in the network", unexpected),
            _listed("of another shape", misshapen, "; "),
        ]
        raise WeightsError(
            f"the weights in {file} must fit {type(model).__name__} exactly, got "
            f"{', '.join(fault for fault in faults if fault)}: build the network with the arguments that the "
            f"file was made with, num_classes and depth among them, or name another file."
        )
    model.load_state_dict(found, strict=False)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, buffers outside the state dict too."""
    return {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers())}


def digest(tensors: dict[str, Tensor]) -> str:
    """Equal digests, equal numbers: sha256 over names, shapes and bytes, 16 hex digits."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous().numpy()
        state.update(f"{name}{array.shape}{array.dtype}".encode())
        state.update(array.tobytes())
    return state.hexdigest()[:16]


def _state_dict(file: Path) -> dict[str, Tensor]:
    """The names and tensors of a file, on the CPU."""
    if not file.is_file():
        state = "is a folder" if file.is_dir() else "does not exist"
        raise WeightsError(f"model.weights must be a file, got {file}, which {state}: check the path.")
    suffix = file.suffix.lower()
    if suffix not in (".safetensors", *_TORCH_SUFFIXES):
        raise WeightsError(
            f"a weights file must end in .safetensors, {', '.join(_TORCH_SUFFIXES)}, got {file}: rename it "
            f"or save the network's state dict in one of these formats."
        )
    try:
        if suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    # A damaged file fails in whatever the bytes happen to say: KeyError, RuntimeError, UnpicklingError, ...
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"a weights file must hold tensors and plain containers only, got {file}, which cannot be read "
            f"as such ({type(error).__name__}: {reason}): download it again, or save model.state_dict() anew."
        ) from error
    return _named_tensors(content, file)


def _named_tensors(content: Any, file: Path) -> dict[str, Tensor]:
    """The state dict in what `torch.load` returned, which may be nested."""
    nested = True
    while isinstance(content, Mapping) and nested:
        inner = [content[key] for key in _NESTED_KEYS if isinstance(content.get(key), Mapping)]
        nested = bool(inner)
        content = inner[0] if nested else content
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"a weights file must hold a state dict, got an object of type {type(content).__name__} in "
            f"{file}: save model.state_dict(), alone or under the key 'state_dict'."
        )
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        met = _listed("of other kinds", others) or "none"
        raise WeightsError(
            f"a state dict must map names to tensors, got {met} in {file}: save model.state_dict(), alone or "
            f"under the key 'state_dict'."
        )
    return {str(name): tensor for name, tensor in content.items()}


def _unwrapped(found: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under their names without ``module.``, unless the network's own names begin with it too."""
    if any(name.startswith(_WRAPPER) for name in expected):
        return found
    while found and all(name.startswith(_WRAPPER) for name in found):
        found = {name.removeprefix(_WRAPPER): tensor for name, tensor in found.items()}
    return found


def _listed(what: str, entries: Sequence[str], separator: str = ", ") -> str:
    """A count and the first few, such as "5 missing from the file (a, b, c and 2 more)"; "" for none."""
    if not entries:
        return ""
    more = f" and {len(entries) - _LISTED} more" if len(entries) > _LISTED else ""
    return f"{len(entries)} {what} ({separator.join(entries[:_LISTED])}{more})"
