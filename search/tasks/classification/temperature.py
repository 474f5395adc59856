"""The temperature of a classifier: how sure of itself it should be.

A network that was cut and hardly healed ranks classes better than its probabilities say: its logits are of another
size than those it was trained to give. At the best temperature (Guo et al., ICML 2017, arXiv 1706.04599)
cross-entropy tells what the logits know, whatever their size.
"""

from __future__ import annotations

import math

import scipy.optimize
import torch.nn.functional as F
from torch import Tensor

SUREST = 100.0
"""The greatest factor of logits of unit deviation: where every label is right, none is the best."""


def best_factor(logits: Tensor, labels: Tensor) -> float:
    """The factor >= 0 of the logits, an inverse temperature, at which their cross-entropy, convex in it, is least.

    Args:
        logits: (n, classes).
        labels: (n,).

    Returns:
        0 where the logits say less than nothing; NaN where one of them is not finite.
    """
    logits = logits.double()
    size = float(logits.std())
    if not math.isfinite(size):
        return math.nan
    if size == 0:
        return 0.0
    logits = logits / size
    own = logits.gather(1, labels[:, None])[:, 0]

    def slope(factor: float) -> float:
        return float((((factor * logits).softmax(1) * logits).sum(1) - own).mean())

    if slope(0.0) >= 0:
        return 0.0
    if slope(SUREST) <= 0:
        return SUREST / size
    return float(scipy.optimize.brentq(slope, 0.0, SUREST, xtol=1e-4, rtol=1e-4)) / size


def calibrated_cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy of the logits at their best temperature, in nats; at most the logarithm of the classes.

    Args:
        logits: (n, classes).
        labels: (n,).
    """
    factor = best_factor(logits, labels)
    return math.nan if math.isnan(factor) else float(F.cross_entropy(factor * logits.double(), labels))
