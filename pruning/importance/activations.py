"""Criteria that look at activations: what the layers that read a channel are given.

There a channel has its norm and its non-linearity behind it. Groups that several layers read: the mean over them;
likewise over the positions of a channel that lies at several of what a layer reads, as behind a flattening.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.inputs import Inputs, run_on
from espalier.pruning.importance.criterion import Loss
from espalier.pruning.tracing.grouping import reference_of
from espalier.pruning.tracing.recording import Node

Batches = Sequence[Inputs]
"""Batches of inputs, on the device of the network."""
Statistic = Callable[[Tensor], Tensor]
"""What a layer reads, (examples, positions, ...) -> a number for each position, the mean over examples."""

RANKED = 64
"""Examples whose feature maps `hrank` takes the rank of: the paper finds that it hardly depends on them."""
COMPARED = 16
"""Examples whose feature maps `chip` compares: a matrix is decomposed for each channel and example."""
ATTENTION_STEPS, ATTENTION_RATE = 50, 0.1
"""Of Adam, in `pcas`."""
AT_A_TIME = 64
"""Matrices that `chip` decomposes at once."""


def apoz(model: nn.Module, graph: ChannelGraph, batches: Batches) -> Tensor:
    """Share of activations that are not zero, 1 - APoZ: (n_channels,)."""
    return _over_readers(model, graph, batches, lambda maps: (maps != 0).float().mean(_but_positions(maps)))


def mean_activation(model: nn.Module, graph: ChannelGraph, batches: Batches) -> Tensor:
    """Mean absolute activation: (n_channels,)."""
    return _over_readers(model, graph, batches, lambda maps: maps.abs().mean(_but_positions(maps)))


def hrank(model: nn.Module, graph: ChannelGraph, batches: Batches) -> Tensor:
    """Rank of the feature map, mean over examples: (n_channels,)."""

    def ranks(maps: Tensor) -> Tensor:
        matrices = maps.flatten(3) if maps.dim() > 3 else _flat(maps)[..., None]
        values: Tensor = torch.linalg.svdvals(matrices.double())
        tolerance = max(matrices.shape[-2:]) * torch.finfo(torch.float32).eps  # of what was computed in float32
        found: Tensor = (values > tolerance * values[..., :1]).sum(-1).float().mean(0)
        return found

    return _over_readers(model, graph, batches, ranks, RANKED)


def chip(model: nn.Module, graph: ChannelGraph, batches: Batches) -> Tensor:
    """Channel independence, mean over examples: (n_channels,).

    By how much the nuclear norm of the matrix of all feature maps, one a row, falls without the channel's row.
    """

    def independence(maps: Tensor) -> Tensor:
        return torch.stack([_falls(rows) for rows in _flat(maps).double()]).mean(0)

    return _over_readers(model, graph, batches, independence, COMPARED)


def fisher(model: nn.Module, graph: ChannelGraph, loss: Loss) -> Tensor:
    """Empirical Fisher information of a mask on the channel, mean over examples of (dL_n/dm)^2: (n_channels,).

    One mask m for all that read the channel: its derivative, sum of a dL_n/da over what they read, is summed over
    readers before it is squared. Dimension 0 of activations is taken for the examples of the loss's batch.
    """
    seen: list[tuple[Reading, Tensor]] = []

    def see(reading: Reading, activations: Tensor) -> Tensor:
        given = activations if activations.requires_grad else activations.detach().requires_grad_()
        own = given.view_as(given)  # its gradient is what comes through this reader alone
        seen.append((reading, own))
        return own

    with torch.enable_grad(), watched(model, graph, see):
        value = loss(model)
    read = torch.zeros(graph.n_channels, dtype=torch.bool)
    for reading, _ in seen:
        read[reading.channels[reading.channels >= 0]] = True
    check_read(graph, read)
    gradients = torch.autograd.grad(value, [own for _, own in seen], allow_unused=True)
    examples = min(len(own) for _, own in seen)
    slopes = torch.zeros(examples, graph.n_channels + 1, dtype=torch.float64)
    for (reading, own), gradient in zip(seen, gradients, strict=True):
        if gradient is None:
            continue
        if len(own) % examples:
            raise ConfigError(
                f"fisher: layers read {examples} and {len(own)} examples of one batch: give equal parts"
            )
        along = _flat((own.detach() * gradient).movedim(reading.dim, 1)).double().sum(2).cpu()
        along = along.reshape(examples, -1, along.shape[1]).sum(1)  # windows of an example lie one after another
        for column in reading.channels.T:
            slopes.index_add_(1, torch.where(column >= 0, column, graph.n_channels), along)
    return (slopes[:, :-1] * examples).square().mean(0)


def pcas(model: nn.Module, graph: ChannelGraph, loss: Loss) -> Tensor:
    """Attention that the channel gets, mean over examples, once trained in the frozen network: (n_channels,).

    What a layer reads is multiplied by sigmoid(b + u relu(w s + a)) of its means s over examples' positions, which
    Adam trains on the loss. The hidden layer has one unit, where the paper's has an eighth of the channels, so that
    nothing is drawn and the order of channels does not matter.
    """
    modules: dict[int, tuple[Reading, _Attention]] = {}  # by the identity of the reading
    seen: dict[int, Tensor] = {}

    def see(reading: Reading, activations: Tensor) -> Tensor:
        maps = activations.movedim(reading.dim, 1)
        if id(reading) not in modules:
            modules[id(reading)] = reading, _Attention(len(reading.channels), maps.device)
        attention = modules[id(reading)][1](_flat(maps).mean(2).float())
        seen[id(reading)] = attention
        given: Tensor = maps * attention.to(maps.dtype).view(*attention.shape, *[1] * (maps.dim() - 2))
        return given.movedim(1, reading.dim)

    frozen = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        with torch.enable_grad(), watched(model, graph, see):
            loss(model)  # makes the modules
            weights = [weight for _, module in modules.values() for weight in module.parameters()]
            optimizer = torch.optim.Adam(weights, lr=ATTENTION_RATE, eps=1e-4) if weights else None
            for _ in range(ATTENTION_STEPS if optimizer is not None else 0):
                assert optimizer is not None
                optimizer.zero_grad()
                loss(model).backward()
                optimizer.step()
    finally:
        for parameter, wanted in frozen.items():
            parameter.requires_grad_(wanted)
    scores, readers = torch.zeros(2, graph.n_channels + 1, dtype=torch.float64)
    for number, (reading, _) in modules.items():
        mean = seen[number].detach().double().mean(0).cpu()
        for column in reading.channels.T:
            bins = torch.where(column >= 0, column, graph.n_channels)
            scores.index_add_(0, bins, mean)
            readers.index_add_(0, bins, torch.ones(len(bins), dtype=torch.float64))
    check_read(graph, readers[:-1] > 0)
    found: Tensor = (scores / readers.clamp(min=1))[:-1]
    return found


class _Attention(nn.Module):
    """Means of channels (n, c) -> what they are multiplied by, near 1 at first."""

    def __init__(self, channels: int, device: torch.device) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((channels,), 1 / channels, device=device))
        self.a = nn.Parameter(torch.zeros((), device=device))
        self.u = nn.Parameter(torch.zeros(channels, device=device))
        self.b = nn.Parameter(torch.full((channels,), 3.0, device=device))

    def forward(self, means: Tensor) -> Tensor:
        hidden = torch.relu(means @ self.w + self.a)
        return torch.sigmoid(self.b + hidden[:, None] * self.u)


def _falls(rows: Tensor) -> Tensor:
    """By how much the nuclear norm of a matrix (p, l), float64, falls without each of its rows: (p,)."""
    positions, length = rows.shape
    whole = _nuclear(rows.T @ rows if length <= positions else rows @ rows.T)
    found = []
    for part in torch.arange(positions, device=rows.device).split(AT_A_TIME):
        if length <= positions:
            own = rows[part]
            grams = rows.T @ rows - own[:, :, None] * own[:, None, :]
        else:
            stays = torch.ones(len(part), positions, dtype=rows.dtype, device=rows.device)
            stays[torch.arange(len(part), device=rows.device), part] = 0
            grams = rows @ rows.T * stays[:, :, None] * stays[:, None, :]
        found.append(whole - _nuclear(grams))
    return torch.cat(found).clamp(min=0)


def _nuclear(grams: Tensor) -> Tensor:
    """Nuclear norms of matrices, of their Gram matrices (..., n, n)."""
    values: Tensor = torch.linalg.eigvalsh(grams)
    return values.clamp(min=0).sqrt().sum(-1)


def _flat(maps: Tensor) -> Tensor:
    """(examples, positions, ...) -> (examples, positions, k)."""
    return maps.reshape(*maps.shape[:2], -1)


def _but_positions(maps: Tensor) -> list[int]:
    return [dim for dim in range(maps.dim()) if dim != 1]


# -- what is read


@dataclass(frozen=True)
class Reading:
    """A call of a layer that reads channels.

    Attributes:
        layer: its path.
        dim: of what it reads, along which they lie.
        channels: (n, k) global channels along it, -1 where there are fewer.
    """

    layer: str
    dim: int
    channels: Tensor


def _readings(model: nn.Module, graph: ChannelGraph) -> dict[str, list[Reading | None]]:
    """Path of a layer -> its calls in one forward pass, in order; None for one that reads no prunable channels."""
    reference = reference_of(model, graph)
    reads = {slot.tensor for slot in graph.slots if slot.role in ("in", "depthwise")}
    found: dict[str, list[Reading | None]] = {}
    for node in reference.recording.forward:
        stored = (reference.recording.stored.get(source) for source in node.sources)
        if node.kind != "call" or not reads.intersection(each.name for each in stored if each is not None):
            continue
        if any(True for _ in model.get_submodule(node.layer).children()) or not isinstance(node.args[0], Node):
            continue
        dims = reference.channels.get(node.args[0], [()])[0]
        along = [(dim, channels) for dim, channels in enumerate(dims) if channels is not None]
        found.setdefault(node.layer, []).append(Reading(node.layer, *along[0]) if len(along) == 1 else None)
    return found


@contextmanager
def watched(
    model: nn.Module, graph: ChannelGraph, see: Callable[[Reading, Tensor], Tensor | None]
) -> Iterator[None]:
    """Shows what is read, in one forward pass or several; what `see` returns is read in its place."""
    hooks = []

    def watch(path: str, readings: list[Reading | None]) -> None:
        calls = 0

        def hook(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            nonlocal calls
            reading = readings[calls % len(readings)]
            calls += 1
            if reading is None or not args or not isinstance(args[0], Tensor):
                return None
            if args[0].dim() <= reading.dim or args[0].shape[reading.dim] != len(reading.channels):
                return None
            given = see(reading, args[0])
            return None if given is None else (given, *args[1:])

        hooks.append(model.get_submodule(path).register_forward_pre_hook(hook))

    for path, readings in _readings(model, graph).items():
        watch(path, readings)
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _over_readers(
    model: nn.Module, graph: ChannelGraph, batches: Batches, statistic: Statistic, most: int | None = None
) -> Tensor:
    """Mean of a statistic over examples, positions of a channel, and readers: (n_channels,).

    Args:
        model: the network; runs in eval mode.
        graph: its channel graph.
        batches: of inputs.
        statistic: of what one layer reads.
        most: examples that are looked at; all by default.

    Raises:
        ConfigError: nothing reads the channels of some group so that it could be watched, or there are no batches.
    """
    totals: dict[int, tuple[Reading, Tensor, int]] = {}  # by the identity of the reading

    def see(reading: Reading, activations: Tensor) -> None:
        _, total, examples = totals.get(id(reading), (reading, torch.zeros(len(reading.channels)), 0))
        maps = activations.detach().float().movedim(reading.dim, 1)
        maps = maps if most is None else maps[: most - examples]
        if len(maps):
            total = total + statistic(maps).cpu() * len(maps)
        totals[id(reading)] = reading, total, examples + len(maps)

    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), watched(model.eval(), graph, see):
            for batch in batches:
                run_on(model, batch)
                if most is not None and totals and min(examples for *_, examples in totals.values()) >= most:
                    break
    finally:
        for module, mode in modes.items():
            module.training = mode
    scores, readers = torch.zeros(2, graph.n_channels + 1, dtype=torch.float64)
    for reading, total, examples in totals.values():
        sums, positions = torch.zeros(2, graph.n_channels + 1, dtype=torch.float64)
        for column in reading.channels.T:
            bins = torch.where(column >= 0, column, graph.n_channels)
            sums.index_add_(0, bins, total.double() / max(1, examples))
            positions.index_add_(0, bins, torch.ones(len(bins), dtype=torch.float64))
        scores += sums / positions.clamp(min=1)
        readers += positions > 0
    if not len(batches):
        raise ConfigError("activations are judged on batches of inputs, and there are none")
    check_read(graph, readers[:-1] > 0)
    found: Tensor = (scores / readers.clamp(min=1))[:-1]
    return found


def check_read(graph: ChannelGraph, read: Tensor) -> None:
    """Refuses groups with channels that no watched layer reads."""
    blind = sorted(set(graph.group_of[~read.numpy()].tolist()))
    if blind:
        names = ", ".join(graph.groups[number].name for number in blind[:3])
        raise ConfigError(
            f"activations are judged by what layers read, and no layer with weights reads the channels of {names}: "
            "choose a criterion of weights, such as energy"
        )
