"""What the loop of pruning leaves: its rounds, and the networks at its end."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from torch import Tensor

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.search.spaces.metric import Metric
from espalier.search.training.soft import SoftEpoch


@dataclass(frozen=True)
class Round:
    """What one round did; scores are by the task's metric, on held-out data.

    Attributes:
        number: from 1.
        macs: MACs per image once cut.
        params: parameters once cut.
        trained: score after training with the regulariser.
        cut: score once cut, before retraining.
        retrained: score after retraining; that of `cut` where a schedule retrains at its end alone.
        widths: group name -> channels.
    """

    number: int
    macs: int
    params: int
    trained: float
    cut: float
    retrained: float
    widths: dict[str, int]


@dataclass(frozen=True)
class PruneResult:
    """A whole loop; scores are by the task's metric, on test data, read once by each network.

    Attributes:
        dense_macs: MACs per image of the dense network.
        dense: score of the dense network.
        dense_widths: group name -> channels of the dense network.
        rounds: one after another; a schedule that cuts once is one.
        epochs: of such a schedule, what was zeroed after each.
        retrain: how the pruned network was trained at last.
        before: score of the pruned network before the final retraining.
        after: score after it, one per seed.
        artefact: file of the network of the best seed by held-out score.
        metric: that scores are by.
    """

    dense_macs: int
    dense: float
    dense_widths: dict[str, int]
    rounds: tuple[Round, ...]
    epochs: tuple[SoftEpoch, ...]
    retrain: str
    before: float
    after: tuple[float, ...]
    artefact: str
    metric: Metric

    @property
    def spread(self) -> tuple[float, float]:
        """Mean and standard deviation of `after`."""
        return statistics.mean(self.after), statistics.stdev(self.after) if len(self.after) > 1 else 0.0


def round_of(number: int, graph: ChannelGraph, keep: Tensor, **scores: float) -> Round:
    """The round of a network that is cut; `scores` are its held-out figures."""
    widths = graph.widths(keep)
    named = {group.name: int(width) for group, width in zip(graph.groups, widths, strict=True)}
    return Round(number, int(graph.macs(widths)), int(graph.params(widths)), **scores, widths=named)
