"""One training that prunes by projected steps: what is to go is pulled to zero until it turns round.

Of OTO, whose optimiser makes the steps; here any optimiser's step is followed by what that one would add to it.

Notation:
    x           out-in-channel before a step
    y           the same after the loop's own step
    r           steps that are left to reach zero in
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.paper import Paper
from espalier.search.training.schedule import HeldPruning, Pruned, Schedule, Site, ended, sums_of
from espalier.search.training.soft import ZEROED_ROLES


class HalfSpace(Schedule):
    """What the budget has no room for is chosen once, and pulled to zero by half-space projected steps.

    The first epochs train as they are. Then each step of the channels that are to go ends at

        z = y - (max(0, (y - x).x / ||x||^2) + 1 / r) x,

    so that none grows along itself, and each falls at least along a line to zero. A channel is zero as soon as
    z.x <= 0, where it has left its half-space, and stays so. The paper sets a strength, where the line is here: its
    pull needs to know the learning rate.

    Args:
        begin: share of the epochs after which channels are chosen.
        end: share of the epochs after which those that go are zero.
    """

    paper = Paper("Chen et al.", "ICLR 2023", "arXiv 2303.06862")
    zeroes = True

    def __init__(self, begin: float = 0.25, end: float = 0.75) -> None:
        self._begin, self._end = begin, end

    def run(self, site: Site) -> Pruned:
        """One training."""
        first = max(1, round(self._begin * site.last))
        last = max(first + 1, round(self._end * site.last))

        def choose(epoch: int, before: Tensor) -> Tensor:
            return site.ranking.best(site.scores()) if epoch == first else before

        pruning = _Projected(site, choose, first, last)
        with pruning.steps_watched():
            site.train("trained", on_epoch=pruning, on_step=pruning.on_step)
        return ended(site, pruning)


class _Projected(HeldPruning):
    """Takes what was chosen after one epoch to zero by the end of another.

    Args:
        site: whose network is trained.
        choose: as of `HeldPruning`; what it keeps after `first` it keeps from then on.
        first: epoch after which channels are chosen.
        last: epoch at whose end they are zero.
    """

    def __init__(self, site: Site, choose: Callable[[int, Tensor], Tensor], first: int, last: int) -> None:
        super().__init__(site, choose)
        self._first, self._last = first, last
        self._before: dict[str, Tensor] = {}

    @contextmanager
    def steps_watched(self) -> Iterator[None]:
        """While it is open, weights are known as they were before each step."""
        handle = register_optimizer_step_pre_hook(self._remember)
        try:
            yield
        finally:
            handle.remove()

    def act(self, epoch: int, steps: int) -> None:
        """The step's projection; `steps` of 0 is the last step of the epoch itself."""
        before, self._before = self._before, {}
        within = epoch if steps else epoch - 1
        if within < self._first:
            return None
        length = self._begun.get(within, 0) - self._begun.get(within - 1, 0)
        left = (self._last - within) * length - (steps or length) + 1
        if left < 1 or epoch >= self._site.last:
            return super().act(epoch, steps)
        if before:
            step_to_zero(self._site.network, self._site.graph, ~self.kept_after(within), before, left)
        return None

    def _remember(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._before or self._first not in self._zeroed:
            return
        own = dict(self._site.network.named_parameters())
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if any(id(parameter) in held for parameter in own.values()):
            written = {slot.tensor for slot in self._site.graph.slots if slot.role in ZEROED_ROLES}
            self._before = {name: held.detach().clone() for name, held in own.items() if name in written}


@torch.no_grad()
def step_to_zero(
    network: nn.Module, graph: ChannelGraph, gone: Tensor, before: dict[str, Tensor], left: int
) -> None:
    """Ends a step of channels that go, in place.

    Args:
        network: after the step.
        graph: its channel graph.
        gone: which channels go, bool (n_channels,).
        before: name -> weights before the step.
        left: steps that are left, this one among them.
    """
    own = {name: network.get_parameter(name) for name in before}
    squares = sums_of(graph, {name: old.square() for name, old in before.items()}, ZEROED_ROLES)
    along = sums_of(graph, {name: old * own[name] for name, old in before.items()}, ZEROED_ROLES)
    pull = (along / squares - 1).clamp(min=0) + 1 / left
    there = gone & ~(along > pull * squares)  # out of its half-space, or zero before
    for slot in graph.slots:
        if slot.role not in ZEROED_ROLES or slot.tensor not in own:
            continue
        rows = (~graph.kept(slot.channels, ~gone)).nonzero()[:, 0]
        if not len(rows):
            continue
        weight, channels = own[slot.tensor], slot.channels[rows]
        going = (channels >= 0) & gone[channels.clamp(min=0)]
        pulls = torch.where(going, pull[channels.clamp(min=0)], 0.0).amax(1)
        zero = (going & there[channels.clamp(min=0)]).any(1)
        shape = (-1, *[1] * (weight.dim() - 1))
        index = rows.to(weight.device)
        new, old = (each.movedim(slot.dim, 0)[index] for each in (weight, before[slot.tensor]))
        pulled = new - old * pulls.to(old).view(shape)
        weight.movedim(slot.dim, 0)[index] = torch.where(zero.to(weight.device).view(shape), 0.0, pulled)
