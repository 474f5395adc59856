"""What networks are called with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What a network is called with: one tensor, the tuple of its arguments, or arguments by name."""


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return ((inputs,) if isinstance(inputs, Tensor) else tuple(inputs)), {}


def run_on(model: nn.Module, inputs: Inputs) -> Any:
    """What a network gives for its inputs."""
    positional, named = arguments(inputs)
    return model(*positional, **named)
