"""A ladder of proxies: a cheap one has screened every candidate, dearer ones judge the best of them again.

Candidates rise in the order of the rung below, a block at a time. How many do is decided by how well the rungs
agree: the dearer values so far, regressed on the cheaper ones, say what the next candidate may reach, and when that
is less than what the best have, nobody else rises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import scipy.stats

from espalier.pruning.graph.costs import Floats
from espalier.search.spaces.candidate import Candidate

Values = Mapping[Candidate, float]
"""What candidates are worth on one rung; higher is better."""

BLOCK = 8
"""Candidates that rise at a time, at least: fewer say nothing about agreement."""
LUCK = 2.0
"""Standard deviations of the residual by which the next candidate may beat what the rung below promises."""


@dataclass(frozen=True)
class Promotion:
    """What happened on one rung.

    Attributes:
        proxy: by which candidates were judged.
        values: of those that rose.
        agreement: Spearman's rank correlation with the rung below, of those that rose; NaN for fewer than three.
    """

    proxy: str
    values: dict[Candidate, float]
    agreement: float


def promote(
    below: Values,
    judge: Callable[[Sequence[Candidate]], Values],
    *,
    proxy: str,
    share: float,
    wanted: int,
    always: Sequence[Candidate] = (),
) -> Promotion:
    """Lets the best candidates rise to a dearer proxy.

    Args:
        below: what every candidate is worth on the rung below.
        judge: values them by the dearer proxy.
        proxy: its name.
        share: of the candidates, the most that rise.
        wanted: how many will go on from here: so many rise at least.
        always: candidates that rise whatever they are worth, such as the baseline.
    """
    rising = eligible(below, share, wanted, always)
    block = max(BLOCK, wanted, math.ceil(len(rising) / 4))
    values: dict[Candidate, float] = {}
    while rising:
        values |= judge(rising[:block])
        rising = rising[block:]
        if rising and not _may_win(below, values, rising[0], wanted):
            break
    return Promotion(proxy, values, agreement([below[c] for c in values], list(values.values())))


Item = TypeVar("Item")


def eligible(below: Values, share: float, wanted: int, always: Sequence[Candidate] = ()) -> list[Candidate]:
    """The candidates that rise at most, in turn; see `promote`."""
    best = sorted(below, key=lambda candidate: -below[candidate])
    return list(dict.fromkeys([*always, *best[: max(wanted, math.ceil(share * len(best)))]]))


def order(rises: Sequence[Mapping[Item, float]]) -> list[Item]:
    """Candidates from the best to the worst: those of the highest rung first, by their values there.

    Args:
        rises: values by rung, from the lowest, which holds every candidate.
    """
    height = {candidate: level for level, values in enumerate(rises) for candidate in values}
    return sorted(height, key=lambda candidate: (-height[candidate], -rises[height[candidate]][candidate]))


def agreement(cheap: Sequence[float] | Floats, dear: Sequence[float] | Floats) -> float:
    """Spearman's rank correlation; NaN where it is not defined."""
    if len(cheap) < 3 or np.ptp(cheap) == 0 or np.ptp(dear) == 0:
        return math.nan
    return float(np.corrcoef(scipy.stats.rankdata(cheap), scipy.stats.rankdata(dear))[0, 1])


def _may_win(below: Values, values: Values, candidate: Candidate, wanted: int) -> bool:
    """Whether a candidate might come to stand among the `wanted` best of a rung."""
    pairs = [(below[risen], value) for risen, value in values.items()]
    cheap, dear = np.array([pair for pair in pairs if np.isfinite(pair).all()]).reshape(-1, 2).T
    if len(dear) <= wanted or len(dear) < 4:
        return True
    slope = max(0.0, float(np.polyfit(cheap, dear, 1)[0])) if np.ptp(cheap) > 0 else 0.0  # proxies never turn round
    promised = dear.mean() + slope * (cheap - cheap.mean())
    spread = float((dear - promised).std(ddof=2))
    expected = dear.mean() + slope * (below[candidate] - cheap.mean())
    return bool(expected + LUCK * spread > np.sort(dear)[-wanted])
