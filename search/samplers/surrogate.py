"""What the record says of candidates that were not scored: a Gaussian process over log-widths.

Damage is close to additive over groups and convex in the share that each keeps: hence logarithms, a linear part,
and a smooth one that is as wide as the record. Values count by their rank alone, so that no outlier bends the rest.

Notation:
    n          candidates that were scored
    D          features: ln(width / size) of every group, and the rung
    y          (n,) normal scores of the values' ranks
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import norm, rankdata

from espalier.pruning.graph.costs import Floats, Ints
from espalier.search.spaces.candidate import Candidate

NOISE = 0.01
"""Variance of the values about the function."""
SMOOTH = 2.0
"""Variance of the smooth part; that of the linear one is about 1."""
MOST = 300
"""Candidates that are fitted: half of them the best ones, half the latest, so that fitting stays quick."""


def features(keys: Sequence[str], sizes: Ints, rungs: Sequence[int]) -> Floats:
    """Features of candidates, (len(keys), D).

    Args:
        keys: theirs.
        sizes: (G,) dense widths.
        rungs: those that candidates may be cut from.
    """
    candidates = [Candidate.from_key(key) for key in keys]
    shares = np.log(np.maximum([candidate.widths for candidate in candidates], 0.5) / sizes)
    own = np.array([[candidate.rung == rung for rung in rungs[1:]] for candidate in candidates], dtype=np.float64)
    both: Floats = np.concatenate([shares, own], axis=1)
    return both


class Surrogate:
    """The Gaussian process, fitted.

    Args:
        x: (n, D) features, in the order in which they were proposed.
        values: (n,) greater is better.
    """

    def __init__(self, x: Floats, values: Floats) -> None:
        if len(x) > MOST:
            best = np.argsort(-values, kind="stable")[: MOST // 2]
            kept = np.union1d(best, np.arange(len(x) - MOST // 2, len(x)))
            x, values = x[kept], values[kept]
        self._mean, self._spread = x.mean(0), x.std(0) + 0.05
        self._x = (x - self._mean) / self._spread
        y = norm.ppf((rankdata(values) - 0.5) / len(values))
        covariance = self._kernel(self._x, self._x) + NOISE * np.eye(len(x))
        # By torch, which runs in as many threads as it was told to.
        self._factor = torch.linalg.cholesky(torch.from_numpy(covariance))
        self._weights = self._solved(y[:, None])[:, 0]

    def __call__(self, x: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the scores of other candidates: (m,) each, for features (m, D)."""
        z = (x - self._mean) / self._spread
        across = self._kernel(z, self._x)
        prior = SMOOTH + 1 + (z**2).mean(1)
        variance = prior - np.einsum("mn,nm->m", across, self._solved(across.T))
        return across @ self._weights, np.sqrt(np.maximum(variance, 0))

    def _solved(self, right: Floats) -> Floats:
        solved: Floats = torch.cholesky_solve(torch.tensor(right), self._factor).numpy()
        return solved

    def _kernel(self, one: Floats, other: Floats) -> Floats:
        """SMOOTH exp(-|a - b|^2 / 2D) + a.b / D + 1, of standardised features: (len(one), len(other))."""
        products = one @ other.T / one.shape[1]
        distances = (one**2).mean(1)[:, None] + (other**2).mean(1) - 2 * products
        kernel: Floats = SMOOTH * np.exp(-distances / 2) + products + 1
        return kernel
