"""BN recalibration: a slimmed network's activations have other statistics than the dense network's."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def recalibrate_bn(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replaces the running statistics of every BN layer by those of the given batches, in place.

    Forward passes without gradients; every batch weighs the same (Li et al., EagleEye, ECCV 2020,
    arXiv 2007.02491). The rest of the network stays in eval mode, so that dropout is off.

    Args:
        model: the network; left in eval mode.
        batches: normalised input batches (b, channels, height, width).
    """
    layers = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    model.eval()
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
        layer.train()
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:  # a worker goes on with the same skeleton after a candidate that raises
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
