"""Kaiming initialisation of convolutions (He et al. 2015, arXiv:1502.01852).

A convolution with weights of shape (outputs, inputs / groups, height, width) is drawn from a normal
distribution of mean 0 and standard deviation sqrt(2 / fan), where

- ``fan_in`` = (inputs / groups) * height * width keeps the variance of the activations, equation 10, and
- ``fan_out`` = outputs * height * width keeps the variance of the gradients, equation 14.
"""

from __future__ import annotations

from typing import Literal

from torch import nn


def initialise_convolutions(network: nn.Module, mode: Literal["fan_in", "fan_out"]) -> None:
    """Draw the weights of every 2-d convolution in place, and set their biases to zero.

    The numbers come from torch's default generator: seed it with `torch.manual_seed` inside a
    `torch.random.fork_rng` for a network that can be made again.

    Args:
        network: its `torch.nn.Conv2d` modules are changed, and nothing else.
        mode: which of the two fans the variance is divided by.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
