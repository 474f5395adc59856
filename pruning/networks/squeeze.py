"""Squeeze-and-excitation by 1x1 convolutions (Hu et al. 2018, arXiv:1709.01507), as mobile networks have it."""

from __future__ import annotations

from torch import Tensor, nn


class Squeeze(nn.Module):
    """Scales every channel by a gate that hangs on the means of all of them.

    Args:
        channels: of the map.
        squeezed: between the two convolutions.
        activation: after the first.
        gate: after the second.
    """

    def __init__(self, channels: int, squeezed: int, activation: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.activation = activation
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """Scale a map.

        Args:
            x: (batch, channels, height, width).

        Returns:
            The same shape.
        """
        scale: Tensor = self.gate(self.fc2(self.activation(self.fc1(x.mean((2, 3), keepdim=True)))))
        return x * scale
