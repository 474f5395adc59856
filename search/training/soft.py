"""Soft filter pruning: what a budget would remove is zeroed after every epoch, and trained on all the same.

He et al., IJCAI 2018, arXiv 1808.06866. A channel that was zeroed may grow again, so that the choice is made many
times before anything is cut, and the network gets used to doing without.

The paper zeroes the filters with the smallest norms of every layer, a fixed share of each. Here the channels of
all groups are ranked together, as for any cut, and of those that the budget has no room for everything that writes
is zeroed: filters and their biases, and scale and shift of the norms behind them. What reads them stays. So the
network computes what it will compute once they are cut. Nor has a filter of zeros a batch norm behind it that
divides its output, of variance zero, by sqrt(eps): its first gradient would be some 300 times too long, and that
would decide which channels are spared. With scale and filter at zero a channel has no gradient to grow from; the
momentum of the optimiser, which is not touched, moves both off zero in the next step.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from espalier.persistence import whole_file
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.groups import WRITING_ROLES, Role
from espalier.pruning.slimming.surgery import silence

ZEROED_ROLES: tuple[Role, ...] = (*WRITING_ROLES, "bias", "norm", "shift")
"""The slices of a channel that are zeroed."""
PARTIAL_HISTORY = ".partial.json"
"""How the files end that keep what was zeroed while a training is under way."""


@dataclass(frozen=True)
class SoftEpoch:
    """What was zeroed after one epoch.

    Attributes:
        epoch: from 1.
        zeroed: channels.
        returned: of those zeroed after the epoch before, how many were spared now.
    """

    epoch: int
    zeroed: int
    returned: int


class SoftPruning:
    """Zeroes channels after every epoch of a training: its `on_epoch`.

    Args:
        network: that is trained.
        graph: its channel graph.
        rank: the network, in eval mode -> what to keep, bool (n_channels,).
        history: file that keeps what was zeroed, so that an interrupted training can tell of all its epochs.
    """

    def __init__(
        self, network: nn.Module, graph: ChannelGraph, rank: Callable[[nn.Module], Tensor], history: Path
    ) -> None:
        self._network, self._graph, self._rank, self._history = network, graph, rank, history
        self._zeroed: dict[int, list[int]] = {}
        if history.is_file():
            self._zeroed = {int(epoch): gone for epoch, gone in json.loads(history.read_text()).items()}

    def __call__(self, epoch: int) -> None:
        """Ranks and zeroes, after so many epochs."""
        keep = self._rank(self._network.eval())
        silence(self._network.train(), self._graph, keep, ZEROED_ROLES)
        self._note(epoch, keep)

    def _note(self, epoch: int, keep: Tensor) -> None:
        """Keeps what an epoch kept."""
        self._zeroed[epoch] = (~keep).nonzero()[:, 0].tolist()
        with whole_file(self._history) as partial:
            partial.write_text(json.dumps(self._zeroed))

    def keep(self) -> Tensor:
        """What was spared at last, bool (n_channels,)."""
        if not self._zeroed:  # no epochs: nothing was trained
            return self._rank(self._network.eval())
        keep = torch.ones(self._graph.n_channels, dtype=torch.bool)
        keep[self._zeroed[max(self._zeroed)]] = False
        return keep

    def epochs(self) -> tuple[SoftEpoch, ...]:
        """All epochs, those before an interruption too."""
        found, before = [], set[int]()
        for epoch, gone in sorted(self._zeroed.items()):
            found.append(SoftEpoch(epoch, len(gone), len(before - set(gone))))
            before = set(gone)
        return tuple(found)
