"""One network of the ladder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Rung:
    """One trained network of the ladder.

    Attributes:
        strength: of the regularisation it was trained with.
        model: the network, in eval mode.
        digest: of its tensors.
        value: by the task's metric on the held-out examples.
    """

    strength: float
    model: nn.Module
    digest: str
    value: float
