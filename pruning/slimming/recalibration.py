"""BN recalibration: a slimmed network's activations have other statistics than the dense network's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.pruning.graph.inputs import Inputs, run_on
from espalier.pruning.slimming.quantised_layers import observing, quantised_layers
from espalier.pruning.slimming.removed import Removed
from espalier.pruning.torch_private import BATCH_NORMS, batch_statistics, has_batch_statistics

LANES = 256
"""Numbers side by side that statistics are taken of: with few channels alone PyTorch takes ten times longer."""


def recalibrate_bn(model: nn.Module, batches: Iterable[Inputs]) -> None:
    """Replaces the running statistics of every BN layer by those of the given batches, in place.

    Forward passes without gradients; every batch weighs the same (Li et al., EagleEye, ECCV 2020,
    arXiv 2007.02491). The rest of the network stays in eval mode, so that dropout is off. What is left of a branch
    that is out is then the shift of its norm, as if that had seen nothing but the constant. Layers in fewer bits
    take the ranges of their inputs from the same batches.

    Args:
        model: the network; left in eval mode.
        batches: what the network takes, one after another: tensors, tuples of arguments, or arguments by name.
    """
    layers = [m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    model.eval()
    for module in model.modules():
        if isinstance(module, Removed):
            module.recalibrate()
    if not layers and not quantised_layers(model):
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
        layer.train()
    try:
        with torch.no_grad(), _side_by_side(layers), observing(model):
            for batch in batches:
                run_on(model, batch)
    finally:  # a worker goes on with the same skeleton after a candidate that raises
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()


@contextmanager
def _side_by_side(layers: Sequence[nn.Module]) -> Iterator[None]:
    """BN layers that take the statistics of channels-last batches faster on a CPU than PyTorch's own."""
    able = has_batch_statistics()
    ours = [layer for layer in layers if able and type(layer) is nn.BatchNorm2d and "forward" not in layer.__dict__]
    for layer in ours:
        layer.__dict__["forward"] = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in ours:
            del layer.__dict__["forward"]


def _forward(layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """What the layer does in training mode with a cumulative average, on (b, channels, height, width)."""
    count = x.numel() // max(1, x.shape[1])
    running_mean, running_var = layer.running_mean, layer.running_var
    assert running_mean is not None and running_var is not None and layer.num_batches_tracked is not None
    suited = x.dim() == 4 and x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
    exact = x.dtype in (torch.float32, torch.bfloat16) and running_mean.dtype == torch.float32
    if not (suited and exact and layer.training and count > 1):
        return nn.BatchNorm2d.forward(layer, x)
    channels, side = x.shape[1], 1
    while side * channels < LANES and count % (2 * side) == 0:
        side *= 2
    rows = x.permute(0, 2, 3, 1).reshape(count // side, side * channels)  # a view
    means, variances = (each.view(side, channels) for each in batch_statistics(rows))
    mean = means.mean(0)  # (channels,)
    variance = variances.mean(0) + (means - mean).square().mean(0)
    layer.num_batches_tracked += 1
    share = 1 / int(layer.num_batches_tracked)
    running_mean.lerp_(mean, share)
    running_var.lerp_(variance * (count / (count - 1)), share)
    weight = None if layer.weight is None else layer.weight.repeat(side)
    bias = None if layer.bias is None else layer.bias.repeat(side)
    normalised = F.batch_norm(rows, mean.repeat(side), variance.repeat(side), weight, bias, eps=layer.eps)
    return normalised.view(len(x), *x.shape[2:], channels).permute(0, 3, 1, 2)
