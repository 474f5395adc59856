"""Criteria that look at how well a layer's outputs are given without some of its input channels.

Notation:
    Y       (n, k) what a layer gives at sampled positions, its bias left out
    Y_c     (n, k) the part of it that input channel c gives: Y is the sum over c
    G       (C, C) products <Y_c, Y_d>, from which everything follows:
            |sum of Y_c over T|^2 = sum of G over T x T
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.inputs import run_on
from espalier.pruning.importance.activations import Batches, Reading, check_read, watched

POSITIONS = 8
"""Of the map that a convolution gives, per example."""
STRENGTHS = 100
"""Of the L1 penalty, from the one that leaves no channel down to a thousandth of it, in equal ratios."""
SWEEPS = 20
"""Of coordinate descent at each strength, at most."""


def thinet(model: nn.Module, graph: ChannelGraph, batches: Batches) -> Tensor:
    """Share of a layer's outputs that is lost once the channel, and those before it, are gone: (n_channels,).

    Channels go greedily, each time the one without which |sum of Y_c over T|^2 stays least. Mean over readers.
    """
    return _over_layers(model, graph, batches, _lost)


def lasso(model: nn.Module, graph: ChannelGraph, batches: Batches) -> Tensor:
    """Strength of an L1 penalty at which the channel leaves the layer that reads it: (n_channels,).

    Of min over b of |Y - sum of b_c Y_c|^2 / 2 + strength |b|_1, relative to the one at which none is left. Mean
    over readers.
    """
    return _over_layers(model, graph, batches, _leaves)


def _lost(gram: Tensor) -> Tensor:
    total, count = max(float(gram.sum()), 1e-300), len(gram)
    lost, left = torch.zeros(count, dtype=gram.dtype), torch.ones(count, dtype=torch.bool)
    own, among, so_far = gram.diagonal(), torch.zeros(count, dtype=gram.dtype), gram.new_zeros(())
    worst = 0.0
    for _ in range(count):
        after = torch.where(left, so_far + own + 2 * among, torch.inf)
        chosen = int(after.argmin())
        so_far = after[chosen]
        worst = max(worst, float(so_far))
        lost[chosen], left[chosen] = worst / total, False
        among = among + gram[chosen]
    return lost


def _leaves(gram: Tensor) -> Tensor:
    wanted = gram.sum(1)  # <Y_c, Y>
    greatest = float(wanted.abs().max())
    entered = torch.zeros(len(gram), dtype=gram.dtype)
    if greatest <= 0:
        return entered
    own = gram.diagonal().tolist()
    weights, rest = torch.zeros_like(wanted), wanted.clone()  # rest: <Y_c, Y - sum of b_d Y_d>
    for share in torch.logspace(0, -3, STRENGTHS, dtype=torch.float64).tolist():
        strength = share * greatest
        for _ in range(SWEEPS):
            moved = 0.0
            active = ((rest.abs() > strength) | (weights != 0)).nonzero()[:, 0].tolist()
            for channel in active:
                if own[channel] <= 0:
                    continue
                before = float(weights[channel])
                slope = float(rest[channel]) + own[channel] * before
                now = max(abs(slope) - strength, 0.0) / own[channel] * (1 if slope > 0 else -1)
                if now != before:
                    weights[channel] = now
                    rest -= (now - before) * gram[channel]
                    moved = max(moved, abs(now - before))
            if moved < 1e-4:
                break
        # a channel that enters between two strengths is worth more, the further in it is
        entered = torch.where(
            (entered == 0) & (weights != 0), share * (1 + 0.01 * weights.abs().clamp(max=1)), entered
        )
    return entered


def _over_layers(
    model: nn.Module, graph: ChannelGraph, batches: Batches, score: Callable[[Tensor], Tensor]
) -> Tensor:
    """Mean over the layers that read a channel of what a function of G says of it: (n_channels,).

    Raises:
        ConfigError: no convolution or linear layer reads the channels of some group, or there are no batches.
    """
    if not len(batches):
        raise ConfigError("layers are reconstructed on batches of inputs, and there are none")
    moments: dict[int, tuple[Reading, list[Tensor]]] = {}  # by the identity of the reading

    def see(reading: Reading, activations: Tensor) -> None:
        found = _moments(model.get_submodule(reading.layer), reading, activations.detach())
        if found is not None:
            _, total = moments.setdefault(id(reading), (reading, [torch.zeros_like(each) for each in found]))
            for one, more in zip(total, found, strict=True):
                one += more

    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), watched(model.eval(), graph, see):
            for batch in batches:
                run_on(model, batch)
    finally:
        for module, mode in modes.items():
            module.training = mode
    scores, readers = torch.zeros(graph.n_channels, dtype=torch.float64), torch.zeros(graph.n_channels)
    for reading, parts in moments.values():
        layer = model.get_submodule(reading.layer)
        gram = torch.block_diag(*(_gram(layer, number, part) for number, part in enumerate(parts)))
        held = reading.channels[reading.channels >= 0].unique()
        member = torch.zeros(len(reading.channels), graph.n_channels + 1, dtype=torch.float64)
        member.scatter_(1, reading.channels % (graph.n_channels + 1), 1.0)  # the last column is of no channel
        member = member[:, held]
        scores[held] += score(member.T @ gram @ member)
        readers[held] += 1
    check_read(graph, readers > 0)
    return scores / readers


def _moments(layer: nn.Module, reading: Reading, inputs: Tensor) -> list[Tensor] | None:
    """X^T X of what each group of a layer's outputs reads, double precision; None of a layer of another kind."""
    if type(layer) is nn.Linear and reading.dim % inputs.dim() == inputs.dim() - 1:
        rows = inputs.reshape(-1, inputs.shape[-1])
        return [_squared(rows)]
    if not isinstance(layer, nn.Conv2d) or reading.dim != 1 or layer.padding_mode != "zeros":
        return None
    if isinstance(layer.padding, str) or layer.weight.shape[1] == 1 < layer.in_channels:  # depthwise: no choice
        return None
    windows = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # (b, c kh kw, p)
    count = windows.shape[2]
    generator = torch.Generator().manual_seed(count)
    chosen = torch.randperm(count, generator=generator)[:POSITIONS].to(inputs.device)
    rows = windows[:, :, chosen].transpose(1, 2).flatten(0, 1)  # (b p, c kh kw)
    return [_squared(part) for part in rows.chunk(layer.groups, 1)]


def _squared(rows: Tensor) -> Tensor:
    wide = rows.double()
    return (wide.T @ wide).cpu()


def _gram(layer: nn.Module, group: int, moments: Tensor) -> Tensor:
    """G of the inputs of one group of a layer's outputs."""
    weight: Tensor = layer.get_parameter("weight").detach().double().cpu()
    groups = getattr(layer, "groups", 1)
    own = weight.chunk(groups)[group].flatten(1)  # (k, c s)
    size = own.shape[1] // weight.shape[1]  # weights of a channel
    products = moments * (own.T @ own)
    return products.reshape(weight.shape[1], size, weight.shape[1], size).sum((1, 3))
