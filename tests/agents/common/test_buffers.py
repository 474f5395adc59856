"""Advantages by hand, scores of ranks, the replay memory, moments, schedules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from espalier.agents.common.buffers import Episode, Moments, ReplayMemory, generalized_advantages, normal_scores
from espalier.agents.common.schedules import constant, exponential


def test_advantages_by_hand() -> None:
    """gamma 0.9, lambda 0.5: d = (1 + .9 x 2 - 3, 0 + .9 x 4 - 2, 5 - 4) = (-.2, 1.6, 1)."""
    advantages, returns = generalized_advantages(
        torch.tensor([1.0, 0.0, 5.0]), torch.tensor([3.0, 2.0, 4.0]), gamma=0.9, lam=0.5
    )
    assert advantages.tolist() == pytest.approx([-0.2 + 0.45 * (1.6 + 0.45), 1.6 + 0.45, 1.0])
    assert returns.tolist() == pytest.approx([2.8 + 0.45 * 2.05, 2 + 2.05, 5.0])


@given(rewards=st.lists(st.floats(-5, 5), min_size=1, max_size=6), gamma=st.floats(0, 1))
def test_the_ends_of_lambda(rewards: list[float], gamma: float) -> None:
    """At 1 returns are discounted sums of rewards, whatever the values; at 0 one reward and the next value."""
    values = torch.linspace(-1, 1, len(rewards))
    _, returns = generalized_advantages(torch.tensor(rewards), values, gamma=gamma, lam=1.0)
    sums = [sum(gamma**k * r for k, r in enumerate(rewards[step:])) for step in range(len(rewards))]
    assert returns.tolist() == pytest.approx(sums, abs=1e-3)
    _, returns = generalized_advantages(torch.tensor(rewards), values, gamma=gamma, lam=0.0)
    following = [*values.tolist()[1:], 0.0]
    assert returns.tolist() == pytest.approx(
        [r + gamma * v for r, v in zip(rewards, following, strict=True)], abs=1e-3
    )


def test_advantages_of_many_episodes_are_those_of_each() -> None:
    rewards, values = torch.randn(5, 4), torch.randn(5, 4)
    found = generalized_advantages(rewards, values, gamma=0.9, lam=0.8)
    each = [generalized_advantages(*both, gamma=0.9, lam=0.8) for both in zip(rewards, values, strict=True)]
    for together, alone in zip(found, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(together, torch.stack(alone))


def test_normal_scores_know_neither_unit_nor_outlier() -> None:
    values = torch.tensor([3.0, -1.0, 2.0, 2.0])
    scores = normal_scores(values)
    assert scores.tolist() == normal_scores(values * 7 + 2).tolist()
    assert scores.tolist() == normal_scores(torch.tensor([3e9, -1.0, 2.0, 2.0])).tolist()
    assert scores[2] == scores[3] and scores[0] > scores[2] > scores[1]
    assert normal_scores(torch.ones(5)).tolist() == [0.0] * 5


def remembered(memory: ReplayMemory, *earned: float) -> ReplayMemory:
    for number in earned:
        memory.add(Episode(torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([number])))
    return memory


def test_the_memory_forgets_the_oldest() -> None:
    memory = remembered(ReplayMemory(3), 0.0, 1.0, 2.0, 9.0, 4.0)
    assert [float(episode.rewards) for episode in memory.episodes] == list(memory.returns) == [2, 9, 4]
    drawn, scores = memory.draw(9, np.random.default_rng(0))
    assert sorted(float(episode.rewards) for episode in drawn) == [2, 4, 9]
    ranks = torch.tensor([[2.0, 4.0, 9.0].index(float(episode.rewards)) for episode in drawn])
    torch.testing.assert_close(scores, normal_scores(torch.tensor([2.0, 4.0, 9.0]))[ranks])


def test_recent_episodes_are_drawn_more_often() -> None:
    """One that is 2 older, with a scale of 2, 1 / e times as often."""
    memory, rng = remembered(ReplayMemory(9, recent=2.0), 0.0, 1.0, 2.0), np.random.default_rng(0)
    drawn = [float(memory.draw(1, rng)[0][0].rewards) for _ in range(4000)]
    assert drawn.count(0.0) / drawn.count(2.0) == pytest.approx(np.exp(-1), abs=0.05)


def test_moments_are_those_of_all_that_was_seen() -> None:
    values = torch.randn(50, 3) * torch.tensor([1.0, 5.0, 0.0]) + torch.tensor([2.0, -9.0, 4.0])
    moments = Moments(3)
    assert torch.equal(moments.normalize(values), values)
    for part in values.split((1, 20, 29)):
        moments.update(part)
    expected = (values - values.mean(0)) / values.std(0, correction=0).where(values.std(0) > 0, torch.ones(3))
    torch.testing.assert_close(moments.normalize(values), expected, rtol=1e-4, atol=1e-4)


def test_schedules() -> None:
    assert [constant(3.0)(0), constant(exponential(1.0, 0.5))(1)] == [3.0, 0.5]
    assert [exponential(1.0, 0.5, after=1, least=0.2)(step) for step in range(5)] == [1.0, 1.0, 0.5, 0.25, 0.2]
