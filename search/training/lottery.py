"""Lottery tickets: trained, pruned by a part, rewound to early weights, and again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from espalier.errors import ConfigError
from espalier.pruning.graph.costs import Floats
from espalier.pruning.graph.groups import Role
from espalier.pruning.importance.normalizations import normalize
from espalier.pruning.paper import Paper
from espalier.search.files.tensor_files import load_tensors, save_tensors, tensors_of
from espalier.search.files.training_checkpoint import PARTIAL
from espalier.search.training.schedule import Pruned, Schedule, Site, Zeros, sums_of

_FILTERS: tuple[Role, ...] = ("out",)


class Lottery(Schedule):
    """Lottery tickets: trained, pruned by a part, rewound to an early epoch, and again, to the budget.

    What is cut are the rewound weights. The network that the training begins with is the one given; with
    ``training.epochs: 0`` it is new.

    Args:
        rounds: of training and pruning.
        early: epoch to whose end weights are rewound; 0 for where the training began.
    """

    paper = Paper("Frankle et al.", "ICML 2020", "arXiv 1912.05671")
    zeroes = True

    def __init__(self, rounds: int = 3, early: int = 1) -> None:
        self._rounds, self._early = rounds, early

    def run(self, site: Site) -> Pruned:
        """As many trainings as there are rounds."""
        site.check_processes()
        keep, early = torch.ones(site.graph.n_channels, dtype=torch.bool), _Early(site, self._early)
        trained: float | None = None
        for number in range(1, self._rounds + 1):
            zeros = Zeros(site.network, site.graph, keep)
            zeros.multiply(0.0)
            early.train(site, number, partial(zeros.multiply, 0.0))
            budget = site.ranking.budget.on_the_way(site.graph, number / self._rounds)
            keep = site.ranking.best(site.scores(), budget, among=keep)
            trained = site.held_out() if number == self._rounds else None
            early.rewind()
        return Pruned(keep, trained=trained)


class Refill(Schedule):
    """Lottery tickets of single weights, of which whole channels are refilled.

    The smallest weights of all layers go round by round, as great a share in all as the budget removes of costs.
    The channels with the greatest mean magnitude of what is left, relative to their group's, are kept, with all of
    their early weights.

    Args:
        rounds: of training and pruning.
        early: epoch to whose end weights are rewound; 0 for where the training began.
    """

    paper = Paper("Chen et al.", "ICML 2022", "arXiv 2202.04736")
    zeroes = True

    def __init__(self, rounds: int = 3, early: int = 1) -> None:
        self._rounds, self._early = rounds, early

    def run(self, site: Site) -> Pruned:
        """As many trainings as there are rounds."""
        site.check_processes()
        early, ranking = _Early(site, self._early), site.ranking
        dense = ranking.budget.costs(site.graph, site.graph.sizes)
        left = min(limit / max(1, int(dense[each])) for each, limit in ranking.budget.limits.items())
        named = dict(site.network.named_parameters())
        tensors = {
            slot.tensor: named[slot.tensor]
            for slot in site.graph.slots
            if slot.role == "out" and slot.tensor in named
        }
        there = {name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in tensors.items()}

        @torch.no_grad()
        def hold() -> None:
            for name, tensor in tensors.items():
                tensor.mul_(there[name].to(tensor.device))  # a network may move between trainings

        trained: float | None = None
        worth: Floats = np.ones(site.graph.n_channels)
        for number in range(1, self._rounds + 1):
            hold()
            early.train(site, number, hold)
            magnitudes = {
                name: tensor.detach().abs() * there[name].to(tensor.device) for name, tensor in tensors.items()
            }
            every = torch.cat([each.flatten() for each in magnitudes.values()]).sort(descending=True).values
            least = every[max(1, round(len(every) * min(1.0, left) ** (number / self._rounds))) - 1]
            there = {name: (each >= least) & there[name] for name, each in magnitudes.items()}
            left_over = {name: each * there[name] for name, each in magnitudes.items()}
            ones = {name: torch.ones_like(each) for name, each in magnitudes.items()}
            worth = (
                sums_of(site.graph, left_over, _FILTERS) / sums_of(site.graph, ones, _FILTERS).clamp(min=1)
            ).numpy()
            trained = site.held_out() if number == self._rounds else None
            early.rewind()
        return Pruned(ranking.best(normalize(worth, site.graph, "mean")), trained=trained)


class _Early:
    """The weights at the end of an early epoch of the first training, kept in a file."""

    def __init__(self, site: Site, epoch: int) -> None:
        if not 0 <= epoch <= site.last:
            raise ConfigError(f"early must be one of the {site.last} epochs of a training, or 0, got {epoch}")
        self._network, self._epoch, self._file = site.network, epoch, site.file(f"early{PARTIAL}")
        self._start = {name: tensor.clone() for name, tensor in tensors_of(site.network).items()}

    def train(self, site: Site, number: int, hold: Callable[[], None]) -> None:
        """A round's training; the first one keeps the weights."""

        def keep(epoch: int) -> None:
            if epoch == self._epoch:
                save_tensors(self._file, tensors_of(self._network), {})

        site.train(
            f"round{number}", on_epoch=keep if number == 1 and self._epoch else None, on_step=lambda _: hold()
        )

    @torch.no_grad()
    def rewind(self) -> None:
        """Puts them into the network."""
        tensors = load_tensors(self._file)[0] if self._file.is_file() else self._start
        for name, tensor in tensors_of(self._network).items():
            tensor.copy_(tensors[name])
