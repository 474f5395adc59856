"""What the best of many policies would win over greedy pruning, from fine-tunings of a few.

Model, with greater values better:
    y_i      value of policy i, fine-tuned with one seed: mu_i + e_i
    mu_i     what it is worth: above their median m, the mu_i fall off like a normal of standard deviation b
    e_i      chance of the seed, normal of standard deviation s, known from networks that are fine-tuned again
    g        what greedy pruning is worth

The best of T policies is expected at m + b E_T, E_T the mean of the greatest of T standard normals, so that

    headroom = m + b E_T - g.

b^2 is the mean square of y_i - m over the policies above the median, less s^2. The interval is a generalised
confidence interval (Weerahandi, JASA 1993, doi 10.1080/01621459.1993.10476355); simulation tests its coverage.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy import integrate, stats

from espalier.errors import EspalierError
from espalier.pruning.graph.costs import Floats

DRAWS = 4000
"""Of the interval."""


@dataclass(frozen=True)
class Headroom:
    """What could be won over greedy pruning.

    Attributes:
        expected: by the best of `trials` policies.
        low: end of the 95 % interval.
        high: likewise.
        trials: policies that a search tries.
        spread: standard deviation of what policies are worth, b.
        chance: standard deviation of a seed, s.
        found: mean that the best policy of those tried is ahead of greedy with seeds that did not choose it.
        found_low: end of its 95 % interval.
        found_high: likewise.
        noticed: least difference that the final comparison would tell from chance.
    """

    expected: float
    low: float
    high: float
    trials: int
    spread: float
    chance: float
    found: float
    found_low: float
    found_high: float
    noticed: float

    @property
    def advice(self) -> str:
        """One of ``greedy``, ``search`` and ``open``."""
        if self.high < self.noticed:
            return "greedy"
        return "search" if self.found_low > 0 or self.low > self.noticed else "open"


def headroom(first: Floats, again: Floats, greedy: Floats, *, trials: int, seeds: int, seed: int) -> Headroom:
    """Estimates it.

    Args:
        first: (n,) values of different policies with one seed each, 8 or more.
        again: (k, r) values of the k best of them with r other seeds, 2 or more, the best one first.
        greedy: (r,) values of greedy pruning with these other seeds.
        trials: policies that a search would try.
        seeds: of its final comparison.
        seed: of the interval's draws.

    Raises:
        EspalierError: a value is not finite.
    """
    if not all(np.isfinite(each).all() for each in (first, again, greedy)):
        raise EspalierError("a fine-tuned network is worth no finite number: headroom cannot be told")
    groups = np.vstack([again, greedy[None]])
    freedom = groups.size - len(groups)
    chance = 1e-12 + float(((groups - groups.mean(1, keepdims=True)) ** 2).sum() / freedom)  # variance
    middle = float(np.median(first))
    above = np.sort(first)[-(len(first) // 2) :]
    total = 1e-12 + float(((above - middle) ** 2).mean())
    best = expected_greatest(trials)
    spread = max(0.0, total - chance) ** 0.5
    draw = np.random.default_rng(seed)
    chances = chance * freedom / draw.chisquare(freedom, DRAWS)
    totals = total * len(above) / draw.chisquare(len(above), DRAWS)
    # The median of n normals has a variance of about pi / 2n of theirs.
    middles = middle + np.sqrt(np.pi / 2 / len(first) * totals) * draw.standard_normal(DRAWS)
    greedies = greedy.mean() + np.sqrt(chances / len(greedy)) * draw.standard_normal(DRAWS)
    drawn = middles + np.sqrt(np.maximum(0.0, totals - chances)) * best - greedies
    low, high = np.quantile(drawn, (0.025, 0.975))
    ahead = again[0] - greedy
    half = float(stats.t.ppf(0.975, freedom)) * (2 * chance / len(ahead)) ** 0.5
    return Headroom(
        expected=middle + spread * best - float(greedy.mean()),
        low=float(low),
        high=float(high),
        trials=trials,
        spread=spread,
        chance=chance**0.5,
        found=float(ahead.mean()),
        found_low=float(ahead.mean()) - half,
        found_high=float(ahead.mean()) + half,
        noticed=float(stats.t.ppf(0.975, max(1, seeds - 1))) * (2 * chance / seeds) ** 0.5,
    )


@functools.cache
def expected_greatest(count: int) -> float:
    """Mean of the greatest of so many standard normals."""
    found, _ = integrate.quad(lambda x: x * count * stats.norm.pdf(x) * stats.norm.cdf(x) ** (count - 1), -8, 12)
    return float(found)
