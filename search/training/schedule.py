"""What every schedule of pruning has: a network in training, a ranking under a budget, channels held at zero."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from espalier.errors import ConfigError, EspalierError, raised
from espalier.persistence import whole_file
from espalier.pruning.graph.allocation import greedy, narrowest
from espalier.pruning.graph.budget import Budget, amount
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats, Ints
from espalier.pruning.graph.groups import Role
from espalier.pruning.paper import Paper
from espalier.pruning.slimming.surgery import silence
from espalier.search.tasks.device import device_here
from espalier.search.tasks.task import Need, Stage, Task, missing
from espalier.search.training.soft import PARTIAL_HISTORY, ZEROED_ROLES, SoftEpoch, SoftPruning


@dataclass(frozen=True)
class Ranking:
    """Ranks the channels of all groups together under a budget.

    Attributes:
        graph: the channels.
        budget: what is met at last.
        floor: (G,) fewest channels of a group.
        round_to: what widths are multiples of.
        scores: a network in eval mode -> (n_channels,), not negative and comparable across groups.
    """

    graph: ChannelGraph
    budget: Budget
    floor: Ints
    round_to: int
    scores: Callable[[nn.Module], Floats]

    def best(self, scores: Floats, budget: Budget | None = None, among: Tensor | None = None) -> Tensor:
        """What a budget has room for, bool (n_channels,).

        Args:
            scores: (n_channels,).
            budget: by default the last one.
            among: bool (n_channels,), what a budget at least as great had room for: nothing else is kept.
        """
        if among is None:
            widths = greedy(self.graph, scores, budget or self.budget, self.floor, self.round_to)
            return self.graph.keep_best(scores, widths)
        there = among.numpy()
        widths = greedy(self.graph, np.where(there, scores, 0.0), budget or self.budget, self.floor, self.round_to)
        return self.graph.keep_best(np.where(there, scores, -1.0), np.minimum(widths, self.graph.widths(among)))

    def looser(self, share: float) -> Budget:
        """The budget of which that share of the costs is removed that the last one removes."""
        dense = {metric: int(cost) for metric, cost in self.budget.costs(self.graph, self.graph.sizes).items()}
        limits = self.budget.limits
        return Budget(
            **{each: dense[each] - math.floor(share * max(0, dense[each] - limits[each])) for each in limits}
        )

    def tighter(self, share: float) -> Budget:
        """The budget on the way from the last one, at 0, to the narrowest network, at 1."""
        narrow = self.budget.costs(self.graph, narrowest(self.graph, self.floor, self.round_to))
        limits = self.budget.limits
        return Budget(
            **{each: math.ceil(limits[each] - share * (limits[each] - int(narrow[each]))) for each in limits}
        )


class Train(Protocol):
    """One training of a schedule's network, in place; goes on where it was interrupted."""

    def __call__(  # noqa: D102
        self,
        name: str,
        *,
        on_epoch: Callable[[int], None] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> None: ...


@dataclass(frozen=True)
class Site:
    """What a schedule works with.

    Attributes:
        network: that is trained in place, and left as it is to be cut.
        graph: its channel graph.
        ranking: under the budget.
        task: what it is for.
        seed: of what is drawn.
        stage: of every training.
        train: trains the network; every training of a schedule has a name of its own.
        file: name -> file that is kept until the schedule is done.
    """

    network: nn.Module
    graph: ChannelGraph
    ranking: Ranking
    task: Task
    seed: int
    stage: Stage
    train: Train
    file: Callable[[str], Path]

    @property
    def last(self) -> int:
        """The number of the last epoch, from 1, that a training tells of; its steps are a whole number."""
        steps, of_one = (self.task.steps(replace(self.stage, epochs=each)) for each in (self.stage.epochs, 1.0))
        return math.ceil(steps / of_one if of_one else self.stage.epochs)

    def check_processes(self) -> None:
        """Refuses several processes, where channels are held at zero: only this one is told of steps.

        Raises:
            ConfigError: there are.
        """
        if self.task.recipe(self.stage).get("processes", 1) > 1:
            raise ConfigError("this schedule holds channels at zero, in one process: set training.processes to 1")

    def held_out(self) -> float:
        """What the network is worth on the held-out part as it stands, by the task's metric."""
        network = self.network.to(device_here(self.task.home))
        return self.task.evaluate(network.eval(), "held_out").value

    def scores(self) -> Floats:
        """Of the network as it stands."""
        training = self.network.training
        found = self.ranking.scores(self.network.eval())
        self.network.train(training)
        return found


@dataclass(frozen=True)
class Pruned:
    """What a schedule ended with.

    Attributes:
        keep: bool (n_channels,), within the budget.
        epochs: what was zeroed after each, where it was.
        trained: what the network was worth on the held-out part, by the task's metric, before its weights were
            rewound; None where they were not.
    """

    keep: Tensor
    epochs: tuple[SoftEpoch, ...] = ()
    trained: float | None = None


class Schedule(ABC):
    """When channels go while a network is trained, and which."""

    paper: ClassVar[Paper | None] = None
    needs: ClassVar[Sequence[Need]] = ()
    """Of the task, beside training."""
    zeroes: ClassVar[bool] = False
    """Whether it sets channels to zero while it trains, told of every step and epoch."""

    @abstractmethod
    def run(self, site: Site) -> Pruned:
        """Trains the network of a site, in place, and says what to keep of it.

        Everything must follow from the site, so that a schedule that was interrupted and begins again, its
        trainings going on where they were, ends with what it would have ended with.
        """


def check_schedule(name: str, schedule: Schedule, task: Task, graph: ChannelGraph) -> None:
    """Refuses a schedule that a task or a network cannot have, before anything is trained.

    Raises:
        ConfigError: says what is missing, or which weight cannot be zero.
    """
    if lacking := missing(task.offers, schedule.needs):
        raise ConfigError(f"{name} needs {lacking}, which this task does not offer")
    if not schedule.zeroes:
        return
    if not task.tells_epochs:
        raise ConfigError(f"{name} needs the end of every epoch, which this task's training does not tell")
    tensors = {slot.tensor for slot in graph.slots}
    for direction, size in (("original1", "original0"), ("weight_v", "weight_g")):
        for tensor in sorted(tensors):
            if tensor.endswith(direction) and tensor.removesuffix(direction) + size in tensors:
                raise ConfigError(
                    f"{name} sets channels to zero, and a weight norm would divide by the norm of {tensor}: remove "
                    "weight norms first"
                )


def run_schedule(name: str, schedule: Schedule, site: Site) -> Pruned:
    """What a schedule ends with, checked.

    Raises:
        EspalierError: it raises something, or ends with something else than channels that the budget has room for.
    """
    try:
        found = schedule.run(site)
    except (EspalierError, OSError):
        raise
    except Exception as error:  # whatever a user's schedule, network or training raises
        raise EspalierError(f"{name} failed: {raised(error)}") from error
    if not isinstance(found, Pruned):
        raise EspalierError(f"{name} must return a Pruned, got {type(found).__name__}")
    keep, wanted = found.keep, (site.graph.n_channels,)
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool or keep.shape != wanted:
        got = f"{keep.dtype} of shape {tuple(keep.shape)}" if isinstance(keep, Tensor) else type(keep).__name__
        raise EspalierError(f"{name} must keep channels by a tensor of torch.bool of shape {wanted}, got {got}")
    keep, budget = keep.cpu(), site.ranking.budget
    widths = site.graph.widths(keep)
    if not budget.fits(site.graph, widths):
        metric = budget.binding(site.graph, widths)
        kept, limit = int(getattr(site.graph, metric)(widths)), budget.limits[metric]
        raise EspalierError(
            f"{name} keeps {amount(metric, kept)}, where the budget has room for {amount(metric, limit)}: let "
            "site.ranking.best choose what is kept"
        )
    return replace(found, keep=keep)


def remove_files(folder: Path, pattern: str) -> None:
    """Removes files of trainings and schedules whose results are kept."""
    for file in folder.glob(pattern):
        file.unlink(missing_ok=True)


class Zeros:
    """Slices of a network's parameters that are set to zero, again and again.

    Args:
        network: the network.
        graph: its channel graph.
        keep: bool (n_channels,); the slices of the others that write a channel are set to zero.
    """

    def __init__(self, network: nn.Module, graph: ChannelGraph, keep: Tensor) -> None:
        parameters = dict(network.named_parameters())
        self._slices = []
        for slot in graph.slots:
            if slot.tensor in parameters and slot.role in ZEROED_ROLES:
                gone = (~graph.kept(slot.channels, keep)).nonzero()[:, 0]
                if len(gone):
                    tensor = parameters[slot.tensor]
                    self._slices.append((tensor, slot.dim, gone))

    @torch.no_grad()
    def multiply(self, factor: float) -> None:
        """Multiplies the slices; 0 sets them to zero."""
        for tensor, dim, channels in self._slices:
            gone = channels.to(tensor.device)  # a network may move between trainings
            if factor:
                tensor.index_copy_(dim, gone, tensor.index_select(dim, gone) * factor)
            else:
                tensor.index_fill_(dim, gone, 0.0)


class HeldPruning(SoftPruning):
    """Zeroes channels after every epoch, and again after every step: what is zero stays zero.

    Args:
        site: whose network is trained.
        choose: epoch and what was kept after the one before, bool (n_channels,) -> what to keep now.
    """

    def __init__(self, site: Site, choose: Callable[[int, Tensor], Tensor]) -> None:
        site.check_processes()
        super().__init__(site.network, site.graph, self._never, site.file(f"zeroed{PARTIAL_HISTORY}"))
        self._site, self._choose = site, choose
        self._begun: dict[int, int] = {}  # epoch -> the steps that were done at its end
        self._held: dict[int, Zeros] = {}
        self._ended: int | None = None
        self._steps = site.file(f"steps{PARTIAL_HISTORY}")
        if self._steps.is_file():
            self._begun = {int(epoch): step for epoch, step in json.loads(self._steps.read_text()).items()}

    def __call__(self, epoch: int) -> None:
        """Chooses and zeroes, after so many epochs."""
        self._note(epoch, self._choose(epoch, self.kept_after(epoch - 1)))
        self._ended = epoch
        self.act(epoch, 0)

    def on_step(self, step: int) -> None:
        """After so many steps, and what an epoch's end does."""
        if self._ended is not None:
            self._begun[self._ended] = step
            with whole_file(self._steps) as partial:
                partial.write_text(json.dumps(self._begun))
            self._ended = None
            return
        over = [epoch for epoch, end in self._begun.items() if end < step]
        if over:
            self.act(max(over), step - self._begun[max(over)])

    def act(self, epoch: int, steps: int) -> None:
        """What happens so many steps after an epoch: what that one zeroed is zeroed."""
        self.zeros(epoch).multiply(0.0)

    def kept_after(self, epoch: int) -> Tensor:
        """What an epoch kept; before the first everything: bool (n_channels,)."""
        keep = torch.ones(self._site.graph.n_channels, dtype=torch.bool)
        keep[self._zeroed.get(epoch, [])] = False
        return keep

    def zeros(self, epoch: int) -> Zeros:
        """The slices of what an epoch did not keep."""
        if epoch not in self._held:
            self._held.pop(epoch - 2, None)
            self._held[epoch] = Zeros(self._site.network, self._site.graph, self.kept_after(epoch))
        return self._held[epoch]

    def keep(self) -> Tensor:
        """What was kept at last, bool (n_channels,)."""
        return self.kept_after(max(self._zeroed)) if self._zeroed else self._site.ranking.best(self._site.scores())

    def _never(self, _: nn.Module) -> Tensor:
        raise AssertionError("what is kept is chosen by the epoch")


def ended(site: Site, pruning: SoftPruning) -> Pruned:
    """What a training ended with that zeroed channels after every epoch.

    They are zeroed once more: where a training ends with an average of its weights, that brings them back.
    """
    keep, epochs = pruning.keep(), pruning.epochs()
    if epochs:
        silence(site.network, site.graph, keep, ZEROED_ROLES)
    return Pruned(keep, epochs)


def sums_of(graph: ChannelGraph, values: Mapping[str, Tensor], roles: Collection[Role]) -> Tensor:
    """Sums of values, in the shape of parameters, over the slices of every channel that have these roles."""
    sums = torch.zeros(graph.n_channels + 1, dtype=torch.float64)  # the last for -1, no channel
    for slot in graph.slots:
        if slot.role in roles and slot.tensor in values:
            rows = values[slot.tensor].detach().double().cpu().movedim(slot.dim, 0)
            for column in slot.channels.T:
                sums.index_add_(0, column % len(sums), rows.reshape(len(rows), -1).sum(1))
    return sums[:-1]
