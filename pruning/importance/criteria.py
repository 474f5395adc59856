"""What a channel is worth: scores by which channels are ranked, the higher the longer kept.

Notation:
    W_c        the slices of channel c: those that write it and those that read it
    F_c        those that write it: its filters
    gamma_c    scale of the norm behind it

    energy          E_c = ||W_c||_2^2; the default
    folded_energy   the same of the weights with the scales of their batch norms folded in
    l1, l2          ||F_c||_1, ||F_c||_2
    bn_scale        |gamma_c|
    fpgm            sum over d of ||F_c - F_d||_2
    random          uniform in [0, 1); the control

`gradients`, `activations` and `reconstruction` hold those that look at more than weights.

Multiplying a channel's filter by a number and its batch norm's statistics likewise leaves the network as it is, but
changes its energy: layers in front of batch norms have energies that cannot be compared as they are. Folded, the
weights are those that the network applies, gamma / sqrt(variance + eps) included, and do not change.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.groups import SCALE_ROLES, WRITING_ROLES
from espalier.pruning.importance.activations import apoz, chip, fisher, hrank, mean_activation, pcas
from espalier.pruning.importance.criterion import Criterion
from espalier.pruning.importance.energy import ChannelNorms
from espalier.pruning.importance.gradients import grasp, obd_c, snip, synflow, taylor
from espalier.pruning.importance.reconstruction import lasso, thinet
from espalier.pruning.paper import Paper
from espalier.pruning.torch_private import BATCH_NORMS


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


def random(model: nn.Module, graph: ChannelGraph, generator: torch.Generator) -> Tensor:
    """Uniform numbers: (n_channels,)."""
    return torch.rand(graph.n_channels, generator=generator)


CRITERIA: dict[str, Criterion] = {
    "energy": Criterion(energy, Paper("Li et al.", "CVPR 2019", "arXiv 1905.11664")),
    "folded_energy": Criterion(folded_energy, Paper("Li et al.", "CVPR 2019", "arXiv 1905.11664")),
    "l1": Criterion(l1, Paper("Li et al.", "ICLR 2017", "arXiv 1608.08710")),
    "l2": Criterion(l2, Paper("Li et al.", "ICLR 2017", "arXiv 1608.08710")),
    "bn_scale": Criterion(bn_scale, Paper("Liu et al.", "ICCV 2017", "arXiv 1708.06519")),
    "fpgm": Criterion(fpgm, Paper("He et al.", "CVPR 2019", "arXiv 1811.00250")),
    "taylor": Criterion(taylor, Paper("Molchanov et al.", "CVPR 2019", "arXiv 1906.10771"), ("loss",)),
    "random": Criterion(random, None, ("generator",)),
    "snip": Criterion(snip, Paper("Lee et al.", "ICLR 2019", "arXiv 1810.02340"), ("loss",)),
    "grasp": Criterion(grasp, Paper("Wang et al.", "ICLR 2020", "arXiv 2002.07376"), ("loss",)),
    "synflow": Criterion(synflow, Paper("Tanaka et al.", "NeurIPS 2020", "arXiv 2006.05467"), iterations=100),
    "obd_c": Criterion(obd_c, Paper("Wang et al.", "ICML 2019", "arXiv 1905.05934"), ("loss", "generator")),
    "fisher": Criterion(fisher, Paper("Liu et al.", "ICML 2021", "arXiv 2108.00708"), ("loss",)),
    "apoz": Criterion(apoz, Paper("Hu et al.", "2016", "arXiv 1607.03250"), ("batches",)),
    "mean_activation": Criterion(
        mean_activation, Paper("Molchanov et al.", "ICLR 2017", "arXiv 1611.06440"), ("batches",)
    ),
    "hrank": Criterion(hrank, Paper("Lin et al.", "CVPR 2020", "arXiv 2002.10179"), ("batches",)),
    "chip": Criterion(chip, Paper("Sui et al.", "NeurIPS 2021", "arXiv 2110.13981"), ("batches",)),
    "pcas": Criterion(pcas, Paper("Yamamoto and Maeno", "2018", "arXiv 1806.05382"), ("loss",)),
    "thinet": Criterion(thinet, Paper("Luo et al.", "ICCV 2017", "arXiv 1707.06342"), ("batches",)),
    "lasso": Criterion(lasso, Paper("He et al.", "ICCV 2017", "arXiv 1707.06168"), ("batches",)),
}
"""Name in a config -> criterion."""


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
