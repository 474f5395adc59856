"""From channel scores to widths that fill a budget: never over it, and within one step of it.

Notation:
    score      (n_channels,) worth of every channel, comparable across groups
    floor      (G,) fewest channels that each group may keep
    step       (G,) channels by which each group's width moves: one, unless widths are rounded
    removed    numbers of the branches that are taken out, whose groups have no channels
    budget     what the pruned network may cost; a whole number means MACs per example
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from espalier.errors import BudgetInfeasible
from espalier.pruning.graph.budget import Budget, amount
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats, Ints
from espalier.pruning.graph.groups import OUTPUT_REASON

FASTER = (8, 16)
"""Multiples of widths of which a runtime may take less time than of less channels."""


def narrowest(
    graph: ChannelGraph, floor: Ints | None = None, round_to: int = 1, removed: Collection[int] = ()
) -> Ints:
    """The smallest widths that the groups can take: (G,).

    Args:
        graph: groups and costs.
        floor: (G,) fewest channels per group; one each by default.
        round_to: what the widths of layers are multiples of; see `ChannelGraph.steps`.
        removed: branches that are out.
    """
    floor = np.ones_like(graph.sizes) if floor is None else floor
    steps = graph.steps(round_to)
    narrow: Ints = np.minimum(-(-floor // steps) * steps, graph.sizes)
    return np.where(graph.gone(removed), 0, narrow) if removed else narrow


def branches_allowed(graph: ChannelGraph, floor: Ints | None = None) -> list[int]:
    """The branches that may be taken out: those of which no group must keep all of its channels."""
    whole = np.zeros(len(graph.sizes), dtype=np.bool_) if floor is None else floor >= graph.sizes
    return [number for number, branch in enumerate(graph.branches) if not whole[list(branch.groups)].any()]


def branch_order(graph: ChannelGraph, scores: Floats, budget: Budget | int, floor: Ints | None = None) -> list[int]:
    """The branches that may be taken out, the least worth first.

    A branch is worth the scores of its channels, divided by what it costs in the dense network: the greatest share
    of any limit of the budget.

    Args:
        graph: groups and costs.
        scores: (n_channels,) higher is kept longer.
        budget: what the widths may cost; a whole number means MACs per example.
        floor: (G,) fewest channels per group; one each by default.
    """
    budget, numbers = Budget.of(budget, graph), branches_allowed(graph, floor)
    if not numbers:
        return []
    without = np.stack([np.where(graph.gone([number]), 0, graph.sizes) for number in numbers])
    dense = budget.costs(graph, graph.sizes)
    saved = np.max([(dense[m] - c) / budget.limits[m] for m, c in budget.costs(graph, without).items()], axis=0)
    sums = np.bincount(graph.group_of, weights=scores, minlength=len(graph.sizes))
    worth = np.array([sums[list(graph.branches[number].groups)].sum() for number in numbers])
    order = np.argsort(worth / np.maximum(saved, 1e-12), kind="stable")
    return [numbers[place] for place in order.tolist()]


def check_budget(
    graph: ChannelGraph, budget: Budget | int, floor: Ints | None = None, round_to: int = 1, *, depth: bool = False
) -> None:
    """Raises BudgetInfeasible, stating the smallest reachable cost, where the narrowest network is too dear.

    Args:
        graph: groups and costs.
        budget: what the widths may cost; a whole number means MACs per example.
        floor: (G,) fewest channels per group; one each by default.
        round_to: what the widths of layers are multiples of.
        depth: whether branches may be taken out.
    """
    _check_budget(graph, budget, floor, round_to, branches_allowed(graph, floor) if depth else ())


def _check_budget(
    graph: ChannelGraph, budget: Budget | int, floor: Ints | None, round_to: int, removed: Collection[int]
) -> None:
    budget = Budget.of(budget, graph)
    dense = budget.costs(graph, graph.sizes)
    for metric, smallest in budget.costs(graph, narrowest(graph, floor, round_to, removed)).items():
        if smallest > budget.limits[metric]:
            share = math.ceil(1e4 * smallest / dense[metric]) / 1e4
            out = f" and {len(removed)} branches out" if removed else ""
            frozen = _what_is_frozen(graph) if metric == "macs" and round_to == 1 and not removed else ""
            rounded = f", a multiple of {round_to}," if round_to > 1 else ""
            finer = budget.fits(graph, narrowest(graph, floor, 1, removed)) if round_to > 1 else False
            wider = [step for step in FASTER if budget.fits(graph, narrowest(graph, floor, step, removed))]
            ways = ["raise the budget"]
            ways += ["lower the least widths"] if floor is not None and (floor > 1).any() else []
            ways += ["lower round_to"] if finer else []
            ways += (
                [f"round widths to multiples of {wider[0]}, which are faster"] if wider and round_to == 1 else []
            )
            modelled = " by the model" if metric == "latency" else ""
            raise BudgetInfeasible(
                f"a budget of {amount(metric, budget.limits[metric])} cannot be reached: with every group at its "
                f"fewest channels{rounded}{out} the network costs {amount(metric, int(smallest))}{modelled} (keep "
                f"{share:.4f} of {amount(metric, int(dense[metric]))}){frozen}; {' or '.join(ways)}"
            )


def _what_is_frozen(graph: ChannelGraph) -> str:
    """The reason that keeps most MACs, if it keeps a tenth of all, as a part of a sentence."""
    kept = {reason: macs for reason, macs in graph.macs_kept_by_reason().items() if reason != OUTPUT_REASON}
    reason = max(kept, key=lambda each: kept[each], default="")
    share = kept.get(reason, 0) / max(1, graph.dense_cost("macs"))
    return f", {share:.0%} of the dense MACs because of what is frozen: {reason}" if share >= 0.1 else ""


@dataclass(frozen=True)
class _Steps:
    """All steps that widths can take down from the dense network, the least worth first, each group's in order.

    Attributes:
        groups: (S,) the group of each step.
        channels: (S,) how many channels it removes.
        scores: (S,) mean score of these.
        widest: (G,) widths before any step: dense, but for branches that are out.
    """

    groups: Ints
    channels: Ints
    scores: Floats
    widest: Ints

    @staticmethod
    def of(
        graph: ChannelGraph, scores: Floats, floor: Ints | None, round_to: int, removed: Collection[int] = ()
    ) -> _Steps:
        least, steps = narrowest(graph, floor, round_to), graph.steps(round_to)
        gone = graph.gone(removed)
        least = np.where(gone, graph.sizes, least)  # which takes no steps
        ranks = graph.ranks(scores)
        # The step that a channel goes with, from the narrowest width up: the last one is shorter where the dense
        # width is no multiple of the step.
        number = (ranks - least[graph.group_of]) // steps[graph.group_of]
        removable = ranks >= least[graph.group_of]
        places, step_of, channels = np.unique(
            np.stack([graph.group_of[removable], number[removable]]),
            axis=1,
            return_inverse=True,
            return_counts=True,
        )
        means = np.bincount(step_of.reshape(-1), weights=scores[removable], minlength=len(channels)) / channels
        for group in np.unique(places[0]):  # what rounding of the means may have turned round
            own = places[0] == group
            means[own] = np.minimum.accumulate(means[own])
        order = np.lexsort((-places[1], means))  # among equals the wider one first, so that steps follow the ranks
        widest = np.where(gone, 0, graph.sizes)
        return _Steps(places[0][order], channels[order].astype(np.int64), means[order], widest)

    def after(self, graph: ChannelGraph, removed: int) -> Ints:
        """Widths once the first `removed` steps are taken."""
        gone = np.bincount(self.groups[:removed], weights=self.channels[:removed], minlength=len(graph.sizes))
        return self.widest - gone.astype(np.int64)


def greedy(
    graph: ChannelGraph,
    scores: Floats,
    budget: Budget | int,
    floor: Ints | None = None,
    round_to: int = 1,
    *,
    depth: bool = False,
    removed: Collection[int] = (),
) -> Ints:
    """Greedy global pruning (Algorithm 1 of OICSR), then filled up.

    Channels of all groups are ranked together and the lowest-scored are removed, one after another, until the
    budget is met. As the last one may have cost more than was still missing, removed channels then return, best
    score first, while they fit: no single channel can be added to the result without exceeding the budget. Where
    widths are rounded, whole steps of channels go and return, worth their mean score.

    Args:
        graph: groups and costs.
        scores: (n_channels,) higher is kept longer.
        budget: what the widths may cost; a whole number means MACs per example.
        floor: (G,) fewest channels per group; one each by default.
        round_to: what the widths of layers are multiples of, where they are pruned at all; see
            `ChannelGraph.steps`.
        depth: whether branches may be taken out, the least worth first (`branch_order`): as many as leave the kept
            channels the greatest sum of scores. The graph must know of them: ``trace(..., depth=True)``.
        removed: branches that are out in any case, where `depth` does not choose.

    Returns:
        (G,) widths.

    Raises:
        BudgetInfeasible: even the narrowest network exceeds the budget; states the smallest reachable cost.
    """
    budget = Budget.of(budget, graph)
    if depth and graph.branches:
        return _deep(graph, scores, budget, floor, round_to)
    _check_budget(graph, budget, floor, round_to, removed)
    steps = _Steps.of(graph, scores, floor, round_to, removed)
    low, high = 0, len(steps.groups)  # fewest removals that meet the budget: costs fall with every removal
    while low < high:
        middle = (low + high) // 2
        if budget.fits(graph, steps.after(graph, middle)):
            high = middle
        else:
            low = middle + 1
    return _filled(graph, steps, steps.after(graph, low), budget)


def _deep(graph: ChannelGraph, scores: Floats, budget: Budget, floor: Ints | None, round_to: int) -> Ints:
    """The best of `greedy` over how many branches are out, the fewest among equals."""
    order = branch_order(graph, scores, budget, floor)
    fewest = fewest_removed(graph, order, budget, floor, round_to)
    if fewest is None:
        check_budget(graph, budget, floor, round_to, depth=True)
    assert fewest is not None
    places = graph.ranks(scores)
    best: tuple[float, Ints] | None = None
    for count in range(fewest, len(order) + 1):
        widths = greedy(graph, scores, budget, floor, round_to, removed=order[:count])
        kept = float(scores[places < widths[graph.group_of]].sum())
        if best is None or kept > best[0]:
            best = kept, widths
    assert best is not None
    return best[1]


def fewest_removed(
    graph: ChannelGraph, order: Sequence[int], budget: Budget, floor: Ints | None = None, round_to: int = 1
) -> int | None:
    """How many branches, in this order, must go for the narrowest network to fit; None where none are enough."""
    narrow = [narrowest(graph, floor, round_to, order[:count]) for count in range(len(order) + 1)]
    fits = np.flatnonzero(budget.fits(graph, np.stack(narrow)))
    return int(fits[0]) if len(fits) else None


def fill(
    graph: ChannelGraph,
    widths: Ints,
    scores: Floats,
    budget: Budget | int,
    floor: Ints | None = None,
    round_to: int = 1,
) -> Ints:
    """Gives channels back to widths that fit a budget, best score first, until no step fits any more.

    Args:
        graph: groups and costs.
        widths: (G,) that fit, whole steps each.
        scores: (n_channels,) as in `greedy`.
        budget: what the widths may cost; a whole number means MACs per example.
        floor: (G,) fewest channels per group; one each by default.
        round_to: what the widths of layers are multiples of.

    Returns:
        (G,) widths, none below those given.
    """
    return _filled(graph, _Steps.of(graph, scores, floor, round_to), widths, Budget.of(budget, graph))


def _filled(graph: ChannelGraph, steps: _Steps, widths: Ints, budget: Budget) -> Ints:
    """Takes removed steps back while one fits."""
    gone: list[list[int]] = [[] for _ in graph.groups]  # per group its removed steps, the best one last
    missing = steps.widest - widths
    for step, (group, channels) in enumerate(zip(steps.groups.tolist(), steps.channels.tolist(), strict=True)):
        if missing[group] > 0:
            gone[group].append(step)
            missing[group] -= channels
    one_more = np.zeros((len(widths), len(widths)), dtype=np.int64)
    while True:
        for group, waiting in enumerate(gone):
            one_more[group, group] = steps.channels[waiting[-1]] if waiting else 0
        fits = budget.fits(graph, widths + one_more) & (one_more.diagonal() > 0)
        if not fits.any():
            return widths
        best = max(np.flatnonzero(fits).tolist(), key=lambda group: steps.scores[gone[group][-1]])
        widths = widths + one_more[best]
        gone[best].pop()


def uniform(
    graph: ChannelGraph,
    budget: Budget | int,
    floor: Ints | None = None,
    round_to: int = 1,
    *,
    depth: bool = False,
    removed: Collection[int] = (),
) -> Ints:
    """The same share of every group, as near as whole steps allow, filled to the budget.

    Args:
        graph: groups and costs.
        budget: what the widths may cost; a whole number means MACs per example.
        floor: (G,) fewest channels per group; one each by default.
        round_to: what the widths of layers are multiples of.
        depth: whether branches may be taken out; see `greedy`.
        removed: branches that are out in any case.

    Returns:
        (G,) widths.

    Raises:
        BudgetInfeasible: even the narrowest network exceeds the budget.
    """
    place = np.arange(graph.n_channels) - graph.offsets[graph.group_of]
    return greedy(graph, evenness(graph, place), budget, floor, round_to, depth=depth, removed=removed)


def evenness(graph: ChannelGraph, ranks: Ints) -> Floats:
    """Scores by the place in the group alone, so that a global cut falls at one share for all: (n_channels,).

    Args:
        graph: the groups.
        ranks: (n_channels,) place of every channel in its group, 0 for the best.
    """
    scores: Floats = graph.sizes[graph.group_of] / (ranks + 0.5)
    return scores
