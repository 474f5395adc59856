"""Sparse training with regrowth: channels change hands while a network is trained under its budget."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from espalier.pruning.graph.costs import Floats
from espalier.pruning.paper import Paper
from espalier.pruning.seeding import seeded
from espalier.search.training.schedule import HeldPruning, Pruned, Schedule, Site, ended, sums_of
from espalier.search.training.soft import ZEROED_ROLES

Growth = Literal["random", "gradient", "momentum"]


class Regrow(Schedule):
    """Sparse training: after every epoch the worst channels that are there go, and others return for them.

    The share of what is there that goes falls along a cosine from `share` to none at `end` of the epochs. A channel
    returns with what it had when the training began: at zero, in front of a ReLU, it would have no gradient to grow
    from.

    Args:
        by: what says which channels return: ``random`` draws them (SET); ``gradient`` takes those with the steepest
            loss along a gate z that switches them on, abs(dL/dz) at z near 0 (RigL); ``momentum`` draws them from
            the groups whose present channels the optimiser's momentum moves most (Dettmers and Zettlemoyer).
        share: of the budget above the narrowest network that changes hands at first.
        end: share of the epochs after which the channels stay as they are.
    """

    zeroes = True
    _PAPERS: ClassVar[Mapping[str, Paper]] = {
        "random": Paper("Mocanu et al.", "Nature Communications 2018", "arXiv 1707.04780"),
        "gradient": Paper("Evci et al.", "ICML 2020", "arXiv 1911.11134"),
        "momentum": Paper("Dettmers and Zettlemoyer", "2019", "arXiv 1907.04840"),
    }

    def __init__(self, by: Growth, share: float = 0.3, end: float = 0.75) -> None:
        self._by, self._share, self._end = by, share, end
        self.paper = self._PAPERS[by]  # type: ignore[misc]
        self.needs = ("loss",) if by == "gradient" else ()  # type: ignore[misc]

    def run(self, site: Site) -> Pruned:
        """One training."""
        start = copy.deepcopy(site.network)
        optimizers: list[Optimizer] = []
        own = set(map(id, site.network.parameters()))

        def choose(epoch: int, before: Tensor) -> Tensor:
            if before.all():
                return site.ranking.best(site.scores())
            done = epoch / max(1.0, self._end * site.last)
            if done >= 1:
                return before
            going = self._share * (1 + math.cos(math.pi * done)) / 2
            left = site.ranking.best(site.scores(), site.ranking.tighter(going), among=before)
            if self._by == "gradient":
                returning = slopes(site, start, ~before, epoch)
            else:
                returning = np.random.default_rng([site.seed, epoch]).random(site.graph.n_channels)
                if self._by == "momentum":
                    returning *= moved(site, optimizers, before)
            worth = np.where(before.numpy(), 0.0, (returning + 1e-12) / (returning.max() + 1e-12))  # at most 1
            keep = site.ranking.best(np.where(left.numpy(), 2.0, worth))
            _restore(site, start, keep & ~before)
            return keep

        def remember(optimizer: Optimizer, *_: Any) -> None:
            if own & {id(each) for group in optimizer.param_groups for each in group["params"]}:
                optimizers[:] = [optimizer]

        pruning = HeldPruning(site, choose)
        handle = register_optimizer_step_post_hook(remember)
        try:
            site.train("trained", on_epoch=pruning, on_step=pruning.on_step)
        finally:
            handle.remove()
        return ended(site, pruning)


def slopes(site: Site, start: nn.Module, gone: Tensor, epoch: int, near: float = 1e-3) -> Floats:
    """abs(dL/dz) at z = `near` of channels that are gone, (n_channels,); z multiplies what they had at the start.

    That is scale and shift of a channel's norms, or its filters where it has none.
    """
    graph, probe = site.graph, copy.deepcopy(site.network).train()  # a norm has no statistics of what was zero
    parameters, before = dict(probe.named_parameters()), dict(start.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(parameter.is_floating_point())  # frozen layers have slopes too
    normed = torch.zeros(graph.n_channels, dtype=torch.bool)
    for slot in graph.slots:
        if slot.role == "norm":
            normed[slot.channels[slot.channels >= 0]] = True
    gates = {"norm": normed, "shift": normed} | dict.fromkeys(("out", "depthwise", "bias"), ~normed)
    with torch.no_grad():
        for slot in graph.slots:
            if slot.role in ZEROED_ROLES and slot.tensor in parameters:
                for channels, factor in ((gone & gates[slot.role], near), (gone & ~gates[slot.role], 1.0)):
                    rows = (~graph.kept(slot.channels, ~channels)).nonzero()[:, 0]
                    _copy_rows(parameters[slot.tensor], before[slot.tensor], slot.dim, rows, factor)
    with seeded(epoch):
        wanted = {slot.tensor: parameters[slot.tensor] for slot in graph.slots if slot.tensor in parameters}
        found = torch.autograd.grad(site.task.loss(probe), list(wanted.values()), allow_unused=True)
    along = {
        name: gradient * before[name].to(gradient)
        for name, gradient in zip(wanted, found, strict=True)
        if gradient is not None
    }
    slopes = torch.zeros(graph.n_channels, dtype=torch.float64)
    for role in ZEROED_ROLES:
        slopes += torch.where(gates[role], sums_of(graph, along, (role,)), 0.0)
    return slopes.abs().numpy()


def moved(site: Site, optimizers: list[Optimizer], there: Tensor) -> Floats:
    """Mean norm of the momentum of a group's channels that are there, for all of its channels: (n_channels,)."""
    squares = {}
    for name, tensor in site.network.named_parameters():
        state = optimizers[-1].state.get(tensor, {}) if optimizers else {}
        momentum = state.get("momentum_buffer", state.get("exp_avg"))
        if momentum is not None:
            squares[name] = momentum.square()
    norms, group_of = sums_of(site.graph, squares, ZEROED_ROLES).sqrt().numpy(), site.graph.group_of
    present = there.numpy()
    means: Floats = np.bincount(group_of[present], norms[present]) / np.bincount(group_of[present])
    return means[group_of]


@torch.no_grad()
def _restore(site: Site, start: nn.Module, back: Tensor) -> None:
    """Gives channels, bool (n_channels,), what wrote them at the start."""
    parameters, before = dict(site.network.named_parameters()), dict(start.named_parameters())
    for slot in site.graph.slots:
        if slot.role in ZEROED_ROLES and slot.tensor in parameters:
            rows = (~site.graph.kept(slot.channels, ~back)).nonzero()[:, 0]
            _copy_rows(parameters[slot.tensor], before[slot.tensor], slot.dim, rows, 1.0)


def _copy_rows(tensor: Tensor, source: Tensor, dim: int, rows: Tensor, factor: float) -> None:
    rows = rows.to(tensor.device)
    tensor.index_copy_(dim, rows, factor * source.index_select(dim, rows))
