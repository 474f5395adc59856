"""Example inputs of a network, as JSON: a study that was given them in Python is resumed without them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from espalier.errors import ConfigError, StorageError

LARGEST = 1 << 16
"""Bytes of a tensor that is kept; of a larger one the shape is, and it is made of zeros again."""


def to_json(inputs: Any) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ConfigError: they are not made of tensors, tuples, lists, dicts, numbers and strings.
    """
    if isinstance(inputs, Tensor):
        plain = inputs.detach().cpu().contiguous()
        small = plain.numel() * plain.element_size() <= LARGEST
        data = base64.b64encode(plain.view(-1).view(torch.uint8).numpy().tobytes()).decode() if small else None
        return {"shape": list(plain.shape), "dtype": str(plain.dtype).removeprefix("torch."), "data": data}
    if isinstance(inputs, Mapping):
        return {"named": {str(name): to_json(value) for name, value in inputs.items()}}
    if isinstance(inputs, list | tuple):
        return {type(inputs).__name__ if type(inputs) is list else "tuple": [to_json(value) for value in inputs]}
    if inputs is None or isinstance(inputs, bool | int | float | str):
        return {"value": inputs}
    raise ConfigError(
        f"example_inputs must be made of tensors, tuples, lists, dicts, numbers and strings, got a "
        f"{type(inputs).__name__}: a study could not be resumed without them"
    )


def from_json(content: Any) -> Any:
    """From `to_json`.

    Raises:
        StorageError: it is not of that form.
    """
    try:
        if "shape" in content:
            shape, dtype = [int(size) for size in content["shape"]], getattr(torch, content["dtype"])
            if not isinstance(dtype, torch.dtype):
                raise TypeError(f"{content['dtype']} is no type of tensor")
            if content["data"] is None:
                return torch.zeros(shape, dtype=dtype)
            data = bytearray(base64.b64decode(content["data"]))
            return torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.zeros(shape, dtype=dtype)
        if "named" in content:
            return {name: from_json(value) for name, value in content["named"].items()}
        if "tuple" in content:
            return tuple(from_json(value) for value in content["tuple"])
        return [from_json(value) for value in content["list"]] if "list" in content else content["value"]
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise StorageError(f"the study's example inputs are damaged: {error}") from error
