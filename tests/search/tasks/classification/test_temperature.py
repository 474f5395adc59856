"""The temperature of least cross-entropy, and what is left at it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from espalier.search.tasks.classification.temperature import SUREST, best_factor, calibrated_cross_entropy


def noisy(seed: int, right: float = 0.3) -> tuple[Tensor, Tensor]:
    """Logits that tell of labels through noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (200,), generator=generator)
    return F.one_hot(labels, 4) * right + 0.2 * torch.randn(200, 4, generator=generator), labels


@pytest.mark.parametrize("seed", range(3))
def test_it_minimises_cross_entropy(seed: int) -> None:
    logits, labels = noisy(seed)
    best = best_factor(logits, labels)
    losses = [float(F.cross_entropy(factor * logits, labels)) for factor in (0.95 * best, best, 1.05 * best)]
    assert min(losses) == losses[1]
    assert calibrated_cross_entropy(logits, labels) == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("size", [1e-6, 1e-2, 1e3, 1e8])
def test_the_size_of_logits_does_not_matter(size: float) -> None:
    logits, labels = noisy(0)
    expected = calibrated_cross_entropy(logits, labels)
    assert calibrated_cross_entropy(size * logits, labels) == pytest.approx(expected, rel=1e-4)
    assert best_factor(size * logits, labels) == pytest.approx(best_factor(logits, labels) / size, rel=1e-3)


def test_logits_that_say_nothing_or_the_contrary_are_not_believed() -> None:
    logits, labels = noisy(0)
    for given in (-logits, torch.zeros(200, 4)):
        assert best_factor(given, labels) == 0
        assert calibrated_cross_entropy(given, labels) == pytest.approx(math.log(4))


def test_labels_that_are_all_right_need_no_endless_search() -> None:
    labels = torch.arange(4).repeat(5)
    logits = F.one_hot(labels, 4).float()
    assert best_factor(logits, labels) == pytest.approx(SUREST / float(logits.double().std()))
    assert calibrated_cross_entropy(logits, labels) < 1e-6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_has_no_temperature(bad: float) -> None:
    logits, labels = noisy(0)
    logits[3, 2] = bad
    assert math.isnan(best_factor(logits, labels)) and math.isnan(calibrated_cross_entropy(logits, labels))


def test_it_ranks_by_what_logits_know() -> None:
    """The surer of two networks has the greater cross-entropy and knows more."""
    (poor, labels), (good, _) = noisy(1, right=0.2), noisy(1, right=0.5)
    assert F.cross_entropy(1000 * good, labels) > F.cross_entropy(poor, labels)
    assert calibrated_cross_entropy(1000 * good, labels) < calibrated_cross_entropy(poor, labels)
    assert np.isfinite(best_factor(1000 * good, labels))
