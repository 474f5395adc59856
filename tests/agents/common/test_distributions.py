"""The truncated normal distribution against numerical integration and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from espalier.agents.common.distributions import TruncatedNormal, truncated_draw

CASES = [(0.0, 0.3), (0.9, 0.5), (-1.2, 0.1), (0.5, 1.0)]


@pytest.mark.parametrize(("mean", "std"), CASES)
def test_it_is_scipys(mean: float, std: float) -> None:
    ours = TruncatedNormal(torch.tensor([mean]), torch.tensor([std]))
    theirs = scipy.stats.truncnorm((-1 - mean) / std, (1 - mean) / std, mean, std)
    shares = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)[:, None]
    drawn = ours.quantile(shares)
    assert drawn[:, 0].numpy() == pytest.approx(theirs.ppf(shares[:, 0]), abs=1e-5)
    if abs(mean) <= 1:
        assert [truncated_draw(mean, std, float(s)) for s in shares] == pytest.approx(
            drawn[:, 0].tolist(), abs=1e-5
        )
    assert ours.log_prob(drawn)[:, 0].numpy() == pytest.approx(theirs.logpdf(drawn[:, 0].numpy()), abs=1e-4)
    assert float(ours.entropy()) == pytest.approx(float(theirs.entropy()), abs=1e-5)


@pytest.mark.parametrize(("mean", "std"), CASES)
def test_masses_of_cells_sum_to_one(mean: float, std: float) -> None:
    middles = torch.tensor([[-2 / 3], [0.0], [2 / 3]])
    ours = TruncatedNormal(torch.tensor([mean]), torch.tensor([std]), torch.tensor([1 / 3]))
    assert float(ours.log_prob(middles).exp().sum()) == pytest.approx(1, abs=1e-5)


def test_the_divergence_is_pytorchs() -> None:
    means, stds = torch.tensor([0.0, 0.9, -1.2]), torch.tensor([0.3, 0.5, 0.1])
    ours = TruncatedNormal(means, stds).divergence(TruncatedNormal(means.flip(0), stds.flip(0)))
    normal = torch.distributions.Normal
    theirs = torch.distributions.kl_divergence(normal(means, stds), normal(means.flip(0), stds.flip(0)))
    assert ours.numpy() == pytest.approx(theirs.numpy(), rel=1e-5, abs=1e-6)


def test_gradients_stay_finite_far_outside() -> None:
    mean = torch.tensor([1.25, -1.25, 0.0], requires_grad=True)
    std = torch.tensor([0.02, 0.02, 1.0], requires_grad=True)
    ours = TruncatedNormal(mean, std, torch.tensor([0.0, 0.5, 0.0]))
    (ours.log_prob(torch.tensor([-1.0, 0.5, 0.3])).sum() + ours.entropy().sum()).backward()
    assert mean.grad is not None and std.grad is not None
    assert torch.isfinite(mean.grad).all() and torch.isfinite(std.grad).all()
    assert np.abs(ours.quantile(torch.full((3,), 0.5)).detach().numpy()).max() <= 1
