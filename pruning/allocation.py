"""From channel scores to widths that fill a budget: never over it, and within one channel of it.

Notation:
    score      (n_channels,) worth of every channel, comparable across groups
    floor      (G,) fewest channels that each group may keep
    budget     MACs per example that the pruned network may cost
"""

from __future__ import annotations

import numpy as np

from espalier.errors import BudgetInfeasible
from espalier.pruning.costs import Floats, Ints
from espalier.pruning.graph import ChannelGraph


def check_budget(graph: ChannelGraph, budget: int, floor: Ints) -> None:
    """Raises BudgetInfeasible, stating the smallest reachable cost, where `floor` itself is too dear."""
    smallest, dense = int(graph.macs(floor)), int(graph.macs(graph.sizes))
    if budget < smallest:
        raise BudgetInfeasible(
            f"a budget of {budget:,} MACs cannot be reached: with every group at its fewest channels the network "
            f"costs {smallest:,} MACs (keep {smallest / dense:.4f} of {dense:,}); raise budget.keep"
        )


def greedy(graph: ChannelGraph, scores: Floats, budget: int, floor: Ints | None = None) -> Ints:
    """Greedy global pruning (Algorithm 1 of OICSR), then filled up.

    Channels of all groups are ranked together and the lowest-scored are removed, one after another, until the
    budget is met. As the last one may have cost more than was still missing, removed channels then return, best
    score first, while they fit: no single channel can be added to the result without exceeding the budget.

    Args:
        graph: groups and costs.
        scores: (n_channels,) higher is kept longer.
        budget: most MACs per example.
        floor: (G,) fewest channels per group; one each by default.

    Returns:
        (G,) widths.

    Raises:
        BudgetInfeasible: even `floor` exceeds the budget; states the smallest reachable cost.
    """
    floor = np.ones_like(graph.sizes) if floor is None else floor
    check_budget(graph, budget, floor)
    ranks = graph.ranks(scores)
    removable = np.flatnonzero(ranks >= floor[graph.group_of])
    # Lowest score first; among equals the lower-ranked channel first, so that removal follows the ranks.
    order = removable[np.lexsort((-ranks[removable], scores[removable]))]
    groups = graph.group_of[order]

    def after(removed: int) -> Ints:
        return graph.sizes - np.bincount(groups[:removed], minlength=len(graph.sizes))

    low, high = 0, len(order)  # fewest removals that meet the budget: costs fall with every removal
    while low < high:
        middle = (low + high) // 2
        if graph.macs(after(middle)) <= budget:
            high = middle
        else:
            low = middle + 1
    return _fill(graph, scores, ranks, after(low), budget)


def _fill(graph: ChannelGraph, scores: Floats, ranks: Ints, widths: Ints, budget: int) -> Ints:
    by_rank = np.empty(graph.n_channels)
    by_rank[graph.offsets[graph.group_of] + ranks] = scores  # scores in rank order, group after group
    step = np.eye(len(widths), dtype=np.int64)
    while True:
        fits = (widths < graph.sizes) & (graph.macs(widths + step) <= budget)
        if not fits.any():
            return widths
        candidates = np.flatnonzero(fits)
        best = candidates[np.argmax(by_rank[(graph.offsets[:-1] + widths)[candidates]])]
        widths = widths + step[best]


def uniform(graph: ChannelGraph, budget: int, floor: Ints | None = None) -> Ints:
    """The same share of every group, as near as whole channels allow, filled to the budget.

    Args:
        graph: groups and costs.
        budget: most MACs per example.
        floor: (G,) fewest channels per group; one each by default.

    Returns:
        (G,) widths.

    Raises:
        BudgetInfeasible: even `floor` exceeds the budget.
    """
    # A channel's score is how far up in its group it stands: a global cut then falls at one share for all.
    place = np.arange(graph.n_channels) - graph.offsets[graph.group_of]
    return greedy(graph, -(place + 0.5) / graph.sizes[graph.group_of], budget, floor)
