"""Criteria that differentiate: the loss, or the flow through the network.

Notation:
    w          a weight of W_c, the slices of channel c that write it and that read it
    L          the loss on a batch, the mean over its examples
    H          its Hessian

Groups that several layers write or read: the weights of all of them are summed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.groups import WEIGHT_ROLES
from espalier.pruning.graph.inputs import Inputs, arguments
from espalier.pruning.importance.criterion import Loss
from espalier.pruning.importance.energy import ChannelNorms
from espalier.pruning.torch_private import BATCH_NORMS, tree_leaves, tree_map

PROBES = 16
"""Random vectors of Hutchinson's estimate."""


def taylor(model: nn.Module, graph: ChannelGraph, loss: Loss) -> Tensor:
    """First-order estimate of how the loss changes when a channel goes, |sum w dL/dw|: (n_channels,).

    Args:
        model: the network.
        graph: its channel graph.
        loss: differentiable loss of the network on a batch; no gradients are left behind.
    """
    norms, weights, gradients = _differentiated(model, graph, loss)
    return norms.sums(_times(weights, gradients)).abs()


def snip(model: nn.Module, graph: ChannelGraph, loss: Loss) -> Tensor:
    """Connection sensitivity of all weights of a channel, sum |w dL/dw|: (n_channels,)."""
    norms, weights, gradients = _differentiated(model, graph, loss)
    return norms.sums({name: product.abs() for name, product in _times(weights, gradients).items()})


def grasp(model: nn.Module, graph: ChannelGraph, loss: Loss) -> Tensor:
    """How much gradient flow goes with a channel, sum w (H dL/dw), less the least of all channels: (n_channels,).

    The paper keeps weights whose removal lowers the norm of the gradient most. Its temperature is 1 here.
    """
    with sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention are differentiated once
        norms, weights, gradients = _differentiated(model, graph, loss, twice=True)
        products = _hessian_times(weights, gradients, {name: each.detach() for name, each in gradients.items()})
    scores = norms.sums(_times(weights, products))
    return scores - scores.min()


def obd_c(model: nn.Module, graph: ChannelGraph, loss: Loss, generator: torch.Generator) -> Tensor:
    """Second-order estimate of how the loss changes when a channel goes, |sum 1/2 w^2 H_ww|: (n_channels,).

    The diagonal of the Hessian is Hutchinson's estimate E[v (H v)] over `PROBES` vectors of +1 and -1, which is
    exact where H is diagonal.
    """
    with sdpa_kernel(SDPBackend.MATH):
        norms, weights, gradients = _differentiated(model, graph, loss, twice=True)
        diagonal = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for _ in range(PROBES):
            signs = {
                name: (torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1).to(weight)
                for name, weight in weights.items()
            }
            for name, product in _hessian_times(weights, gradients, signs).items():
                diagonal[name] += signs[name] * product / PROBES
    return norms.sums({name: 0.5 * weights[name].detach().square() * diagonal[name] for name in weights}).abs()


def synflow(model: nn.Module, graph: ChannelGraph) -> Tensor:
    """Synaptic flow, sum w dR/dw of the network of absolute weights: (n_channels,), the greatest is 1.

    R is the sum of what that network gives for an input of ones; batch norms only scale. In float64, as R grows
    with every layer.
    """
    norms = ChannelNorms(graph, WEIGHT_ROLES)
    state: dict[str, Tensor] = {
        name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in model.named_buffers()
    }
    state |= _statistics_that_only_scale(model, state)
    positive = {name: weight.detach().double().abs().requires_grad_() for name, weight in model.named_parameters()}
    device = next(iter(positive.values())).device
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.enable_grad():
            args, kwargs = arguments(_ones(graph.example, device))
            outputs = torch.func.functional_call(model.eval(), state | positive, args, kwargs)
            flow = _sum(outputs)
            gradients = torch.autograd.grad(flow, [positive[name] for name in norms.tensors], allow_unused=True)
    finally:
        for module, mode in modes.items():
            module.training = mode
    weights = {name: positive[name] for name in norms.tensors}
    found = _times(weights, _filled(weights, gradients))
    scores = norms.sums({name: product.abs() for name, product in found.items()})
    return scores / scores.max().clamp(min=torch.finfo(scores.dtype).tiny)


def _statistics_that_only_scale(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Means of zero and variances of one for all batch norms."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, BATCH_NORMS):
            for name, value in (("running_mean", 0.0), ("running_var", 1.0)):
                key = f"{path}.{name}".lstrip(".")
                if key in state:
                    found[key] = torch.full_like(state[key], value)
    return found


def _ones(example: Any, device: torch.device) -> Inputs:
    """One example, every number of which is one, in double precision; whole numbers stay."""

    def ones(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.ones_like(value, device=device).double() if value.is_floating_point() else value.to(device)

    found: Inputs = tree_map(ones, example)
    return found


def _sum(outputs: Any) -> Tensor:
    """Of all numbers that a network gives."""
    tensors = [each for each in tree_leaves(outputs) if isinstance(each, Tensor) and each.is_floating_point()]
    return torch.stack([tensor.sum() for tensor in tensors]).sum()


# -- derivatives


def _differentiated(
    model: nn.Module, graph: ChannelGraph, loss: Loss, twice: bool = False
) -> tuple[ChannelNorms, dict[str, nn.Parameter], dict[str, Tensor]]:
    """What sums over channels, the weights of all channels, and the gradient of each."""
    norms, named = ChannelNorms(graph, WEIGHT_ROLES), dict(model.named_parameters())
    weights = {name: named[name] for name in norms.tensors}
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss(model), list(weights.values()), create_graph=twice, allow_unused=True)
    return norms, weights, _filled(weights, gradients)


def _hessian_times(
    weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], vector: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """H v, of gradients that can be differentiated again."""
    with torch.enable_grad():
        along = torch.stack([(gradients[name] * vector[name]).sum() for name in weights]).sum()
    if not along.requires_grad:  # a loss that is linear in all of them
        return {name: torch.zeros_like(weight) for name, weight in weights.items()}
    found = torch.autograd.grad(along, list(weights.values()), retain_graph=True, allow_unused=True)
    return _filled(weights, found)


def _filled(weights: Mapping[str, Tensor], gradients: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """Gradients by name, zeros for weights that nothing depends on."""
    return {
        name: torch.zeros_like(weight) if gradient is None else gradient
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }


def _times(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach() * others[name].detach() for name, weight in weights.items()}
