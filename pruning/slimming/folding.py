"""Batch norms folded into the convolutions before them, for as long as a network is only run.

Notation, per channel c:
    y = gamma (W x + b - mu) / sqrt(var + eps) + beta      a convolution and its norm in eval mode
    s = gamma / sqrt(var + eps)
    y = (s W) x + s (b - mu) + beta                        the convolution alone
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.groups import Operation


def foldable(model: nn.Module, graph: ChannelGraph) -> list[tuple[str, str]]:
    """Paths of the convolutions, each with that of the norm which alone reads what it writes.

    Args:
        model: a network of the graph's structure, whatever its widths; of no branch that is out.
        graph: its channel graph.
    """
    operations = graph.operations
    reads = Counter(source for operation in operations for source in operation.inputs)
    tensors = Counter(name for operation in operations for name in operation.tensors)
    runs = Counter((operation.layer, operation.kind) for operation in operations)

    def own(operation: Operation, kind: type[nn.Module]) -> bool:
        once = runs[operation.layer, operation.kind] == 1 and all(tensors[name] == 1 for name in operation.tensors)
        named = all(name.rpartition(".")[0] == operation.layer for name in operation.tensors)
        return once and named and bool(operation.tensors) and type(model.get_submodule(operation.layer)) is kind

    found = []
    for norm in operations:
        if norm.kind == "batch_norm" and len(norm.inputs) == 1 and own(norm, nn.BatchNorm2d):
            layer = operations[norm.inputs[0]]
            if layer.kind == "conv2d" and reads[norm.inputs[0]] == 1 and own(layer, nn.Conv2d):
                found.append((layer.layer, norm.layer))
    return found


@contextmanager
def without_norms(model: nn.Module, pairs: Sequence[tuple[str, str]], dtype: torch.dtype) -> Iterator[None]:
    """Runs a network without the norms that can be folded; it is as it was afterwards. Not for gradients.

    Args:
        model: in eval mode; norms in training mode, or without statistics, stay.
        pairs: from `foldable`.
        dtype: of the folded weights, such as that which autocast runs convolutions in.
    """
    folded: list[tuple[nn.Conv2d, nn.BatchNorm2d, Any, Any]] = []
    modules = dict(model.named_modules())
    try:
        for path, norm_path in pairs:
            layer, norm = modules.get(path), modules.get(norm_path)
            if not isinstance(layer, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue  # of a branch that is out
            if norm.training or norm.running_mean is None or norm.running_var is None:
                continue
            weight, bias = _folded(layer, norm)
            folded.append((layer, norm, layer.weight, layer.bias))
            layer._parameters["weight"] = nn.Parameter(weight.to(dtype), requires_grad=False)
            layer._parameters["bias"] = nn.Parameter(bias.to(dtype), requires_grad=False)
            norm.__dict__["forward"] = _identity
        yield
    finally:
        for layer, norm, own_weight, own_bias in folded:
            layer._parameters["weight"], layer._parameters["bias"] = own_weight, own_bias
            del norm.__dict__["forward"]


def _folded(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    with torch.no_grad():
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
        bias = scale * shift if norm.bias is None else torch.addcmul(norm.bias, scale, shift)
        return layer.weight * scale.view(-1, 1, 1, 1), bias


def _identity(x: Tensor) -> Tensor:
    return x
