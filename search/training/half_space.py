"""One training that prunes by projected steps: what is to go is pulled to zero, and is zero once it turns round.

OTO has an optimiser of its own; here the projection follows the step of any optimiser.

Notation:
    x           out-in-channel before a step
    y           the same after the loop's own step
    pull        share of x that is taken off
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
from espalier.search.training.schedule import HeldPruning, Pruned, Schedule, Site, ended
from espalier.search.training.soft import ZEROED_ROLES


class HalfSpace(Schedule):
    """What the budget has no room for is chosen once, and pulled to zero by half-space projected steps.

    The first epochs train as they are. Then each step of the channels that are to go ends at

        z = y - (max(0, (y - x).x / ||x||^2) + 1 / r) x,

    with r the steps that are left, so that none grows along itself, and each falls at least along a line to zero.
    A channel is zero as soon as z.x <= 0, where it has left its half-space, and stays so. The paper sets the pull's
    strength by hand, which depends on the learning rate; here it follows from the steps that are left.

    Args:
        begin: share of the epochs after which channels are chosen, at the end of one.
        end: share of the epochs after which those that go are zero.
    """

    paper = Paper("Chen et al.", "ICLR 2023", "arXiv 2303.06862")
    zeroes = True

    def __init__(self, begin: float = 0.25, end: float = 0.75) -> None:
        self._begin, self._end = begin, end

    def run(self, site: Site) -> Pruned:
        """One training."""
        first = max(1, round(self._begin * site.last))

        def choose(epoch: int, before: Tensor) -> Tensor:
            return site.ranking.best(site.scores()) if epoch == first else before

        pruning = _Projected(site, choose, first, self._end)
        with pruning.steps_watched():
            site.train("trained", on_epoch=pruning, on_step=pruning.on_step)
        return ended(site, pruning)


class _Projected(HeldPruning):
    """Takes what was chosen after an epoch to zero, step by step.

    Args:
        site: whose network is trained.
        choose: as of `HeldPruning`; what it keeps after `first` it keeps from then on.
        first: epoch after which channels are chosen.
        end: share of the epochs after which they are zero.
    """

    def __init__(self, site: Site, choose: Callable[[int, Tensor], Tensor], first: int, end: float) -> None:
        super().__init__(site, choose)
        self._first, self._end = first, end
        self._going: Going | None = None
        self._before: list[Tensor] | None = None
        self._last: int | None = None  # step of the last projection

    def __call__(self, epoch: int) -> None:
        if epoch == self._first:
            self._going = None  # of what a file said, which may be chosen otherwise now
        super().__call__(epoch)

    @contextmanager
    def steps_watched(self) -> Iterator[None]:
        """While it is open, weights are known as they were before each step."""
        handle = register_optimizer_step_pre_hook(self._remember)
        try:
            yield
        finally:
            handle.remove()

    def on_step(self, step: int) -> None:
        """After so many steps."""
        before, self._before = self._before, None
        super().on_step(step)
        start = self._begun.get(self._first)
        if start is None or step <= start:
            return
        end = max(start + 1, round(self._end * start / self._first * self._site.stage.epochs))
        if step >= end:
            self.zeros(self._first).multiply(0.0)
        elif before and self._going is not None:  # and something goes
            done = step - (step - 1 if self._last is None else self._last)
            self._going.step(before, done / (end - step + done))
            self._last = step

    def act(self, epoch: int, steps: int) -> None:
        """What is not zero by the last epoch's end becomes so then."""
        if epoch >= self._site.last:
            super().act(epoch, steps)

    def _remember(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._before is not None or self._first not in self._zeroed:
            return
        own = {id(parameter) for parameter in self._site.network.parameters()}
        if any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            self._going = self._going or Going(self._site.network, self._site.graph, self.kept_after(self._first))
            self._before = self._going.weights()


class Going:
    """The slices of a network's parameters that write channels which are to go.

    Args:
        network: that is trained.
        graph: its channel graph.
        keep: bool (n_channels,); the others go.
    """

    def __init__(self, network: nn.Module, graph: ChannelGraph, keep: Tensor) -> None:
        parameters = dict(network.named_parameters())
        self._count = graph.n_channels
        # A parameter, its dimension, the rows along it, and which channels of each row go, (rows, k).
        self._slices: list[tuple[nn.Parameter, int, Tensor, Tensor]] = []
        for slot in graph.slots:
            if slot.tensor in parameters and slot.role in ZEROED_ROLES:
                goes = (slot.channels >= 0) & ~keep[slot.channels.clamp(min=0)]
                rows = goes.any(1).nonzero()[:, 0]
                if len(rows):
                    numbers = torch.where(goes, slot.channels, self._count)[rows]  # the last for none
                    parameter = parameters[slot.tensor]
                    place = parameter.device
                    self._slices.append((parameter, slot.dim, rows.to(place), numbers.to(place)))

    @torch.no_grad()
    def weights(self) -> list[Tensor]:
        """The slices as they are, rows first."""
        return [parameter.movedim(dim, 0)[rows] for parameter, dim, rows, _ in self._slices]

    @torch.no_grad()
    def step(self, before: list[Tensor], pull: float) -> None:
        """Ends a step of the loop's.

        Args:
            before: the slices before it.
            pull: share of these that is taken off, beside what they grew along themselves.
        """
        after = self.weights()
        squares = self._sums(before, before)
        along = self._sums(before, after)
        pulls = (along / squares - 1).clamp(min=0) + pull
        turned = ~(along > pulls * squares)  # or zero before
        pulls[-1], turned[-1] = 0.0, False
        for (parameter, dim, rows, numbers), old, new in zip(self._slices, before, after, strict=True):
            shape = (-1, *[1] * (old.dim() - 1))
            own = pulls.to(old.device)[numbers].amax(1).view(shape)
            zero = turned.to(old.device)[numbers].any(1).view(shape)
            parameter.movedim(dim, 0)[rows] = torch.where(zero, 0.0, new - own.to(old.dtype) * old)

    def _sums(self, one: list[Tensor], other: list[Tensor]) -> Tensor:
        """Inner products of every channel that goes, (n_channels + 1,)."""
        sums = torch.zeros(self._count + 1, device=one[0].device)
        for (_, _, _, numbers), first, second in zip(self._slices, one, other, strict=True):
            products = (first.float() * second.float()).reshape(len(first), -1).sum(1).to(sums.device)
            for column in numbers.T:
                sums.index_add_(0, column.to(sums.device), products)
        return sums
