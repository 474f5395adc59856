"""What a channel is worth: scores by which channels are ranked, the higher the longer kept.

Notation:
    W_c        the slices of channel c: those that write it and those that read it
    F_c        those that write it: its filters
    gamma_c    scale of the norm behind it

    energy          E_c = ||W_c||_2^2                          Li et al., CVPR 2019, arXiv 1905.11664 (default)
    folded_energy   the same of the weights with the scales of their batch norms folded in
    l1, l2          ||F_c||_1, ||F_c||_2                       Li et al., ICLR 2017, arXiv 1608.08710
    bn_scale        |gamma_c|                                  Liu et al., ICCV 2017, arXiv 1708.06519
    fpgm            sum over d of ||F_c - F_d||_2              He et al., CVPR 2019, arXiv 1811.00250
    taylor          |sum over W_c of w dL/dw|                  Molchanov et al., CVPR 2019, arXiv 1906.10771
    random          uniform in [0, 1)                          the control

Multiplying a channel's filter by a number and its batch norm's statistics likewise leaves the network as it is, but
changes its energy: layers in front of batch norms have energies that cannot be compared as they are. Folded, the
weights are those that the network applies, gamma / sqrt(variance + eps) included, and do not change.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import SCALE_ROLES, WEIGHT_ROLES, WRITING_ROLES, ChannelGraph
from espalier.pruning.importance.energy import ChannelNorms
from espalier.pruning.torch_private import BATCH_NORMS

Loss = Callable[[nn.Module], Tensor]
"""What `taylor` differentiates: the network -> its loss on some batch."""


def energy(model: nn.Module, graph: ChannelGraph) -> Tensor:
    """Squared norm of the out-in-channel: (n_channels,)."""
    return ChannelNorms(graph)(_parameters(model))


def folded_energy(model: nn.Module, graph: ChannelGraph) -> Tensor:
    """Energy of the weights as the network without batch norms would have them: (n_channels,)."""
    return ChannelNorms(graph)(folded(model, graph))


def l1(model: nn.Module, graph: ChannelGraph) -> Tensor:
    """Sum of the absolute weights of the filters: (n_channels,)."""
    norms = ChannelNorms(graph, WRITING_ROLES)
    weights = _parameters(model)
    return norms.sums({name: weights[name].abs() for name in norms.tensors})


def l2(model: nn.Module, graph: ChannelGraph) -> Tensor:
    """Norm of the filters: (n_channels,)."""
    return ChannelNorms(graph, WRITING_ROLES)(_parameters(model)).sqrt()


def bn_scale(model: nn.Module, graph: ChannelGraph) -> Tensor:
    """Sum of the absolute scales of the norms that a channel runs through: (n_channels,).

    Raises:
        ConfigError: some group runs through no norm with a scale.
    """
    norms = ChannelNorms(graph, SCALE_ROLES)
    bare = [group.name for group in graph.groups if not any(member.role == "norm" for member in group.members)]
    if bare:
        raise ConfigError(f"bn_scale ranks channels by the scale of their norm, and {', '.join(bare[:3])} has none")
    weights = _parameters(model)
    return norms.sums({name: weights[name].abs() for name in norms.tensors})


def fpgm(model: nn.Module, graph: ChannelGraph) -> Tensor:
    """Sum of the distances from a filter to the others of its group, over the layers that write it: (n_channels,).

    The filters nearest to the geometric median of a layer are the ones that others stand in for.
    """
    weights = _parameters(model)
    scores = torch.zeros(graph.n_channels)
    for slot in graph.slots:
        if slot.role not in WRITING_ROLES:
            continue
        filters = weights[slot.tensor].movedim(slot.dim, 0).flatten(1).float()  # (dim size, weights of one)
        for column in slot.channels.T:
            held = (column >= 0).nonzero()[:, 0]
            groups = torch.from_numpy(graph.group_of)[column[held]]
            for group in groups.unique().tolist():
                own = held[groups == group]
                # Exact differences: by products, filters that are nearly alike would cancel.
                apart = torch.cdist(filters[own], filters[own], compute_mode="donot_use_mm_for_euclid_dist")
                scores.index_add_(0, column[own], apart.sum(1).cpu())
    return scores


def taylor(model: nn.Module, graph: ChannelGraph, loss: Loss) -> Tensor:
    """First-order estimate of how the loss changes when a channel goes: (n_channels,).

    Args:
        model: the network.
        graph: its channel graph.
        loss: differentiable loss of the network on a batch; no gradients are left behind.
    """
    norms = ChannelNorms(graph, WEIGHT_ROLES)
    named = dict(model.named_parameters())
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss(model), [named[name] for name in norms.tensors], allow_unused=True)
    products = {
        name: torch.zeros_like(named[name]) if gradient is None else named[name].detach() * gradient
        for name, gradient in zip(norms.tensors, gradients, strict=True)
    }
    return norms.sums(products).abs()


def random(model: nn.Module, graph: ChannelGraph, generator: torch.Generator) -> Tensor:
    """Uniform numbers: (n_channels,)."""
    return torch.rand(graph.n_channels, generator=generator)


CRITERIA: dict[str, Callable[..., Tensor]] = {
    "energy": energy,
    "folded_energy": folded_energy,
    "l1": l1,
    "l2": l2,
    "bn_scale": bn_scale,
    "fpgm": fpgm,
    "taylor": taylor,
    "random": random,
}
"""Name -> criterion: (model, graph) -> (n_channels,); `taylor` takes a loss too, `random` a generator."""


def folded(model: nn.Module, graph: ChannelGraph) -> dict[str, Tensor]:
    """Parameters with the scale of every batch norm folded into the layer before it.

    A batch norm in eval mode multiplies channel c by gamma_c / sqrt(variance_c + eps); so does the layer that it
    follows directly, if its filter is multiplied instead. Norms behind anything else fold into nothing.

    Args:
        model: the network; left as it is.
        graph: its channel graph.

    Returns:
        Name -> tensor, of all parameters; those that nothing is folded into are the network's own.
    """
    weights = _parameters(model)
    writes = {slot.tensor: slot.dim for slot in graph.slots if slot.role in WRITING_ROLES}
    readers = [0] * len(graph.operations)
    for operation in graph.operations:
        for source in operation.inputs:
            readers[source] += 1
    for operation in graph.operations:
        if operation.kind != "batch_norm" or len(operation.inputs) != 1 or readers[operation.inputs[0]] > 1:
            continue
        norm = model.get_submodule(operation.layer)
        before = graph.operations[operation.inputs[0]]
        name = next((name for name in before.tensors if name in writes), None)
        if name is None or not isinstance(norm, BATCH_NORMS) or norm.running_var is None:
            continue
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.detach()
        along = [1] * weights[name].dim()
        along[writes[name]] = -1
        weights[name] = weights[name] * scale.view(along)
    return weights


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
