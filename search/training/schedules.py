"""The schedules by name: when channels go while a network is trained."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.paper import Paper
from espalier.search.tasks.module_path import instance
from espalier.search.training.half_space import HalfSpace
from espalier.search.training.lottery import Lottery, Refill
from espalier.search.training.regrow import Regrow
from espalier.search.training.schedule import HeldPruning, Pruned, Schedule, Site, ended
from espalier.search.training.soft import PARTIAL_HISTORY, SoftPruning


class Soft(Schedule):
    """What the budget has no room for is zeroed after every epoch, and trained on."""

    paper = Paper("He et al.", "IJCAI 2018", "arXiv 1808.06866")
    zeroes = True

    def run(self, site: Site) -> Pruned:
        """One training."""

        def rank(network: nn.Module) -> Tensor:
            return site.ranking.best(site.ranking.scores(network))

        pruning = SoftPruning(site.network, site.graph, rank, site.file(f"zeroed{PARTIAL_HISTORY}"))
        site.train("trained", on_epoch=pruning)
        return ended(site, pruning)


class Gradual(Schedule):
    """Channels go along a cubic curve, the most at first, and stay away.

    After epoch e the costs are down by share(e) = 1 - (1 - min(1, e / (end E)))^3 of what the budget removes.

    Args:
        end: share of the epochs after which the budget is met.
    """

    paper = Paper("Zhu and Gupta", "ICLR 2018 workshop", "arXiv 1710.01878")
    zeroes = True

    def __init__(self, end: float = 0.75) -> None:
        self._end = end

    def run(self, site: Site) -> Pruned:
        """One training."""

        def choose(epoch: int, before: Tensor) -> Tensor:
            share = 1 - (1 - min(1.0, epoch / max(1.0, self._end * site.last))) ** 3
            return site.ranking.best(site.scores(), site.ranking.looser(share), among=before)

        pruning = HeldPruning(site, choose)
        site.train("trained", on_epoch=pruning, on_step=pruning.on_step)
        return ended(site, pruning)


class Hesso(Schedule):
    """One training that forgets: channels are chosen after an epoch, and shrunk to zero over the next.

    The channels that are to go after epoch e are multiplied after each step of the next epoch, so that they fall
    along a line to zero. They are those that a budget on the way, in equal ratios, has no room for.

    Args:
        end: share of the epochs after which all that are to go are chosen.
    """

    paper = Paper("Chen et al.", "2023", "arXiv 2312.09411")
    zeroes = True

    def __init__(self, end: float = 0.75) -> None:
        self._end = end

    def run(self, site: Site) -> Pruned:
        """One training."""

        def choose(epoch: int, before: Tensor) -> Tensor:
            share = 1.0 if epoch >= site.last - 1 else min(1.0, epoch / (self._end * site.last))
            budget = site.ranking.budget.on_the_way(site.graph, share)
            return site.ranking.best(site.scores(), budget, among=before)

        pruning = _Forgetting(site, choose)
        site.train("trained", on_epoch=pruning, on_step=pruning.on_step)
        return ended(site, pruning)


class LearningCompression(Schedule):
    """Channels outside the budget are pulled to zero, ever harder, and chosen anew after every epoch.

    That is the quadratic penalty mu / 2 ||w - theta||^2 with theta the nearest weights within the budget, whose mu
    grows in equal ratios. A channel that the budget has room for is theta itself; any other one has lost all but
    exp(-mu) of what wrote it by the end of an epoch, and comes back where training makes it large enough for that.

    Args:
        first: mu of the first epoch after which channels are chosen.
        last: mu of the last epoch.
    """

    paper = Paper("Carreira-Perpiñán and Idelbayev", "CVPR 2018")
    zeroes = True

    def __init__(self, first: float = 0.1, last: float = 7.0) -> None:
        self._first, self._last = first, last

    def run(self, site: Site) -> Pruned:
        """One training."""
        ratio = (self._last / self._first) ** (1 / max(1, site.last - 2))

        def strength(epoch: int) -> float:
            return self._last if epoch == site.last - 1 else self._first * ratio ** (epoch - 1)

        pruning = _Pulling(site, strength)
        site.train("trained", on_epoch=pruning, on_step=pruning.on_step)
        return ended(site, pruning)


class _Pulling(HeldPruning):
    """Shrinks what the last epoch did not keep.

    Args:
        site: whose network is trained.
        strength: epoch -> mu of the next one.
    """

    def __init__(self, site: Site, strength: Callable[[int], float]) -> None:
        super().__init__(site, lambda epoch, before: site.ranking.best(site.scores()))
        self._strength = strength

    def __call__(self, epoch: int) -> None:
        self._pull(epoch - 1)
        super().__call__(epoch)

    def act(self, epoch: int, steps: int) -> None:
        if epoch >= self._site.last:
            super().act(epoch, steps)
        elif steps:
            self._pull(epoch)

    def _pull(self, epoch: int) -> None:
        """After one step: what that epoch did not keep."""
        length = self._begun.get(epoch, 0) - self._begun.get(epoch - 1, 0)
        if length:
            self.zeros(epoch).multiply(math.exp(-self._strength(epoch) / length))


class _Forgetting(HeldPruning):
    """Shrinks what an epoch did not keep over the next one, and holds it at zero from then on."""

    def act(self, epoch: int, steps: int) -> None:
        if epoch >= self._site.last:
            return super().act(epoch, steps)
        length = self._begun.get(epoch, 0) - self._begun.get(epoch - 1, 0)
        if 0 < steps <= length:
            self.zeros(epoch).multiply((length - steps) / (length - steps + 1))
        self.zeros(epoch - 1).multiply(0.0)
        return None


SCHEDULES: dict[str, Schedule] = {
    "soft": Soft(),
    "gradual": Gradual(),
    "set": Regrow("random"),
    "rigl": Regrow("gradient"),
    "sparse_momentum": Regrow("momentum"),
    "hesso": Hesso(),
    "oto": HalfSpace(),
    "learning_compression": LearningCompression(),
    "lottery": Lottery(),
    "refill": Refill(),
}
"""Name in a config -> schedule, in place of rounds of cutting and retraining."""


def schedule_of(name: str) -> Schedule:
    """The schedule that is named.

    Args:
        name: in `SCHEDULES`, or ``package.module:Class`` of one of the user's own, made without arguments.

    Raises:
        ConfigError: it cannot be imported or made, or is none.
    """
    if name in SCHEDULES:
        return SCHEDULES[name]
    made = instance(name, "prune.schedule")
    if not isinstance(made, Schedule):
        raise ConfigError(
            f"prune.schedule: {name} must be a Schedule of espalier.search.training.schedule, got {made!r}"
        )
    return made
