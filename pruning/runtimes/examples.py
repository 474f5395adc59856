"""Examples of what a network takes: how many there are, more or fewer of them, and the tensors in them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.torch_private import tree_leaves, tree_map

DYNAMIC: Final[Literal["dynamic"]] = "dynamic"
"""In the place of a batch size: any number of examples."""


def tensors_in(inputs: Inputs) -> list[Tensor]:
    """The tensors of inputs, in the order in which exported files take them."""
    return [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]


def batch_of(inputs: Inputs) -> int:
    """Number of examples: dimension 0 of the first tensor.

    Raises:
        ConfigError: there is no such dimension.
    """
    for tensor in tensors_in(inputs):
        if tensor.dim() and len(tensor):
            return len(tensor)
        break
    raise ConfigError("dimension 0 of the first input must be the batch, got no tensor with examples in it")


def repeated(inputs: Inputs, count: int) -> Inputs:
    """So many examples, the first ones over and over."""
    batch = batch_of(inputs)
    chosen = torch.arange(count) % batch

    def take(value: Any) -> Any:
        return value[chosen] if has_batch(value, batch) else value

    found: Inputs = tree_map(take, inputs)
    return found


def has_batch(value: Any, batch: int) -> bool:
    """Whether dimension 0 of a value counts the examples."""
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == batch


def on_cpu(inputs: Inputs) -> Inputs:
    """The same, on the CPU."""
    moved: Inputs = tree_map(lambda value: value.cpu() if isinstance(value, Tensor) else value, inputs)
    return moved


def in_order(network: nn.Module, inputs: Inputs) -> Inputs:
    """Named inputs in the order of the arguments of the network's ``forward``: that of exported files."""
    if not isinstance(inputs, Mapping):
        return inputs
    order = [name for name in inspect.signature(network.forward).parameters if name in inputs]
    return {name: inputs[name] for name in (*order, *(name for name in inputs if name not in order))}


def all_names(value: Any, name: str, separator: str = "_") -> list[str]:
    """Names of the tensors in nested containers, such as ``output_0`` and ``output_1`` of a tuple.

    Args:
        value: tensors in tuples, lists and mappings.
        name: of the whole; empty where the names of its parts are enough.
        separator: between the parts of a name.
    """
    if isinstance(value, Tensor):
        return [name or "output"]
    parts: Any = value.items() if isinstance(value, Mapping) else ()
    if isinstance(value, list | tuple):
        parts = enumerate(value)
    found = []
    for key, part in parts:
        prefix = (
            f"{name}{separator}{key}" if name else str(key) if isinstance(key, str) else f"output{separator}{key}"
        )
        found += all_names(part, prefix, separator)
    return found
