"""What the best of many policies would win over greedy pruning, from fine-tunings of a few.

Model, with greater values better:
    y_i      value of policy i, fine-tuned with one seed: mu_i + e_i
    mu_i     what it is worth: the best of n are those of a normal of mean m and standard deviation b; how bad the
             others are says nothing
    e_i      chance of the seed, normal of standard deviation s, known from networks that are fine-tuned again
    g        what greedy pruning is worth

Values of a metric that has a floor and a ceiling are log-odds here, log (y - floor) / (ceiling - y): no policy is
better than the ceiling. The best of T policies is expected at m + b E_T, E_T the mean of the greatest of T standard
normals, so that

    headroom = m + b E_T - g.

m and b^2 + s^2 follow from a line through the best third of the y_i over the greatest of n standard normals. The
interval is a generalised confidence interval (Weerahandi, JASA 1993, doi 10.1080/01621459.1993.10476355): both
estimates move and stretch with the y_i, so that draws of normals say how far off they are. Simulation tests its
coverage.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy import integrate, special, stats

from espalier.errors import EspalierError
from espalier.pruning.graph.costs import Floats

DRAWS = 4000
"""Of the interval."""
FEWEST = 6
"""Policies that the estimate goes by: the best third, but so many at least."""
LEAST = 2e-3
"""Share of the way between floor and ceiling that tells no two networks apart at either end: log-odds grow without
limit there, and a single network would decide the estimate."""


@dataclass(frozen=True)
class Headroom:
    """What could be won over greedy pruning.

    Attributes:
        expected: by the best of `trials` policies.
        low: end of the 95 % interval.
        high: likewise.
        trials: policies that a search tries.
        spread: what a policy of b above the mean is worth more than one at it.
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
        """One of ``greedy``, ``doubtful``, ``search`` and ``open``."""
        if self.high < self.noticed:
            return "greedy"
        if self.found_low > 0 or self.low > self.noticed:
            return "search"
        return "open" if max(self.expected, self.found) > 0 else "doubtful"


def headroom(
    first: Floats,
    again: Floats,
    greedy: Floats,
    *,
    trials: int,
    seeds: int,
    seed: int,
    bounds: tuple[float, float] | None = None,
) -> Headroom:
    """Estimates it.

    Args:
        first: (n,) values of different policies with one seed each, 8 or more.
        again: (k, r) values of the k best of them with r other seeds, 2 or more, the best one first.
        greedy: (r,) values of greedy pruning with these other seeds.
        trials: policies that a search would try.
        seeds: of its final comparison.
        seed: of the interval's draws.
        bounds: floor and ceiling of the values, if they have any.

    Raises:
        EspalierError: a value is not finite.
    """
    if not all(np.isfinite(each).all() for each in (first, again, greedy)):
        raise EspalierError("a fine-tuned network is worth no finite number: headroom cannot be told")
    groups = np.vstack([again, greedy[None]])
    chance, freedom = _variance(groups), groups.size - len(groups)
    ahead = again[0] - greedy
    half = float(stats.t.ppf(0.975, freedom)) * (2 * chance / len(ahead)) ** 0.5
    scale = _Scale(bounds)
    scaled, base = _variance(scale.of(groups)), float(scale.of(greedy).mean())
    best, draw, kept = expected_greatest(trials), np.random.default_rng(seed), max(FEWEST, len(first) // 3)
    (middle,), (total,) = _line(scale.of(first)[None], kept)
    spread = max(0.0, float(total) ** 2 - scaled) ** 0.5
    off, stretched = _line(draw.standard_normal((DRAWS, len(first))), kept)
    totals = total / stretched
    chances = scaled * freedom / draw.chisquare(freedom, DRAWS)
    greedies = base + np.sqrt(chances / len(greedy)) * draw.standard_normal(DRAWS)
    tops = middle - totals * off + np.sqrt(np.maximum(0.0, totals**2 - chances)) * best
    low, high = np.quantile(scale.back(tops) - scale.back(greedies), (0.025, 0.975))
    return Headroom(
        expected=float(scale.back(middle + spread * best) - scale.back(base)),
        low=float(low),
        high=float(high),
        trials=trials,
        spread=float(scale.back(middle + spread) - scale.back(middle)),
        chance=chance**0.5,
        found=float(ahead.mean()),
        found_low=float(ahead.mean()) - half,
        found_high=float(ahead.mean()) + half,
        noticed=float(stats.t.ppf(0.975, max(1, seeds - 1))) * (2 * chance / seeds) ** 0.5,
    )


def _variance(groups: Floats) -> float:
    """Of values (k, r) about the means of their rows."""
    squares = ((groups - groups.mean(1, keepdims=True)) ** 2).sum()
    return 1e-12 + float(squares / (groups.size - len(groups)))


def _line(values: Floats, kept: int) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the normals that rows (d, n) are drawn of, by the greatest of each: (d,)."""
    count = values.shape[1]
    normal = stats.norm.ppf((np.arange(1, count + 1) - 0.375) / (count + 0.25))[-kept:]
    top, centred = np.sort(values, axis=1)[:, -kept:], normal - normal.mean()
    slope = top @ centred / (centred @ centred)
    return top.mean(1) - slope * normal.mean(), slope


class _Scale:
    """The scale on which values are normal: log-odds between bounds, else the values.

    Args:
        bounds: floor and ceiling.
    """

    def __init__(self, bounds: tuple[float, float] | None) -> None:
        self._bounds = bounds

    def of(self, values: Floats) -> Floats:
        """On this scale."""
        if self._bounds is None:
            return values
        shares = (values - self._bounds[0]) / (self._bounds[1] - self._bounds[0])
        found: Floats = special.logit(np.clip(shares, LEAST, 1 - LEAST))
        return found

    def back(self, scaled: Floats | float) -> Floats:
        """The values themselves."""
        if self._bounds is None:
            return np.asarray(scaled, dtype=np.float64)
        found: Floats = self._bounds[0] + (self._bounds[1] - self._bounds[0]) * special.expit(scaled)
        return found


@functools.cache
def expected_greatest(count: int) -> float:
    """Mean of the greatest of so many standard normals."""
    found, _ = integrate.quad(lambda x: x * count * stats.norm.pdf(x) * stats.norm.cdf(x) ** (count - 1), -8, 12)
    return float(found)
