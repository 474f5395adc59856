"""DDPG's networks step by step and at once, and what its updates do and do not depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from espalier.agents.actor_critics.actor_critic import Axis, Problem
from espalier.agents.actor_critics.deterministic import DeterministicActorCritic, GraphLstm, MlpDeterministic
from espalier.agents.algorithms.ddpg import Ddpg
from espalier.agents.common.buffers import Episode
from espalier.agents.graph.encoders import GraphEncoder
from espalier.agents.graph.network_graph import network_graph
from tests.agents.conftest import Traced

STARTS = (0.5, -0.3, 0.0, 0.8)
FEATURES = 3


def mlp(traced: Traced) -> DeterministicActorCritic:
    return MlpDeterministic(FEATURES, 1, torch.tensor(STARTS))


def lstm(traced: Traced) -> DeterministicActorCritic:
    axes = [Axis((node,), "scale", start=start) for node, start in enumerate(STARTS[:3])]
    problem = Problem(network_graph(*traced), (*axes, Axis((), "normalization", start=STARTS[3])))
    return GraphLstm(problem, FEATURES, GraphEncoder(8, 1, "gcn"), width=16)


Maker = Callable[[Traced], DeterministicActorCritic]
both = pytest.mark.parametrize("maker", [mlp, lstm])


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@both
def test_an_episode_walked_is_the_episode_at_once(maker: Maker, layers: Traced) -> None:
    network = maker(layers)
    network.moments.update(torch.randn(20, FEATURES))
    observations = torch.randn(2, 4, FEATURES)
    with torch.no_grad():
        whole = network.states(observations)
        for episode, states in zip(observations, whole, strict=True):
            walked = [network.last_state(episode[: count + 1]) for count in range(4)]
            torch.testing.assert_close(torch.stack(walked), states)
        assert torch.equal(network.actions(whole[:, 2:], 2), network.actions(whole)[:, 2:])


@both
def test_actions_begin_at_the_starts(maker: Maker, layers: Traced) -> None:
    actions = maker(layers).actions(torch.zeros(1, 4, 16 if maker is lstm else FEATURES))
    torch.testing.assert_close(actions[0, :, 0], torch.tensor(STARTS))


def runs(agent: Ddpg, value: Callable[[Tensor], Tensor], episodes: int = 20) -> Tensor:
    """What an agent does after episodes of random actions."""
    rng = np.random.default_rng(0)
    for _ in range(episodes):
        observations, actions = torch.from_numpy(rng.normal(size=(2, 4, FEATURES))).float()
        rewards = torch.zeros(4)
        rewards[-1] = value(actions[:, 0])
        agent.learn(Episode(observations, actions[:, :1].tanh(), rewards), rng)
    return torch.stack([agent.act(torch.zeros(step + 1, FEATURES), None) for step in range(4)])


@both
def test_neither_unit_nor_outlier_of_a_reward_counts(maker: Maker, layers: Traced) -> None:
    """What is learned depends on which episode was better alone."""
    found = []
    for value in (lambda a: a.sum(), lambda a: 1e3 * a.sum() - 7, lambda a: a.sum().exp()):
        torch.manual_seed(0)
        found.append(runs(Ddpg(maker(layers), warmup=0), value))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_the_actor_steps_in_units_of_sigma(layers: Traced) -> None:
    """Adam's first step is as long as its rate: from an offset, 60 times the actor's."""
    for sigma in (0.5, 0.05):
        agent = Ddpg(mlp(layers), warmup=0, sigma=sigma, actor_rate=1e-3, own=60)
        before = agent.network.own.detach().clone()
        runs(agent, lambda a: a.sum(), episodes=1)
        moved = (agent.network.own - before).abs().detach()
        torch.testing.assert_close(moved, torch.full_like(moved, 0.06 * sigma), rtol=1e-2, atol=0)
