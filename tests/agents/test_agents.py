"""Agents on environments: a run repeats, goes on where it was, and learns what trying everything says is best."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from espalier.agents.actor_critic import Axis, MlpActorCritic, Problem
from espalier.agents.agent import Agent
from espalier.agents.buffers import Episode
from espalier.agents.ddpg import Ddpg
from espalier.agents.deterministic import GraphLstm, MlpDeterministic
from espalier.agents.encoders import GraphEncoder
from espalier.agents.environment import LayerwiseEnv, PruningEnv, SimultaneousEnv
from espalier.agents.network_graph import network_graph
from espalier.agents.ppo import Ppo
from espalier.agents.reinforce import Reinforce
from espalier.agents.training import run_episode, train
from espalier.pruning.costs import Ints
from tests.agents.conftest import Traced

BUDGET = 120


def score(widths: Ints) -> float:
    """Layers differ in what they need."""
    return -float((np.array([1.0, 0.2, 2.0, 0.5]) / widths).sum())


def optimum(traced: Traced) -> tuple[float, float]:
    """The best score of all widths within the budget, and that of equal ones, by trying all."""
    widths = np.array(list(itertools.product(range(1, 9), repeat=4)))
    fits = widths[traced[0].macs(widths) <= BUDGET]
    equal = fits[(fits == fits[:, :1]).all(1)]
    return max(map(score, fits)), max(map(score, equal))


def ppo(env: PruningEnv, traced: Traced) -> Agent:
    inputs, outputs = env.observation_space.shape[0], env.action_space.shape[0]  # type: ignore[index]
    return Ppo(MlpActorCritic(inputs, outputs), batch=8, entropy=1e-3, minibatch=16)


def reinforce(env: PruningEnv, traced: Traced) -> Agent:
    inputs, outputs = env.observation_space.shape[0], env.action_space.shape[0]  # type: ignore[index]
    return Reinforce(MlpActorCritic(inputs, outputs), batch=4, learning_rate=5e-3)


def ddpg(env: PruningEnv, traced: Traced) -> Agent:
    inputs, outputs = env.observation_space.shape[0], env.action_space.shape[0]  # type: ignore[index]
    return Ddpg(MlpDeterministic(inputs, outputs, torch.zeros(4)))


def agmc(env: PruningEnv, traced: Traced) -> Agent:
    problem = Problem(network_graph(*traced), tuple(Axis((node,), "scale") for node in range(4)))
    inputs = env.observation_space.shape[0]  # type: ignore[index]
    return Ddpg(GraphLstm(problem, inputs, GraphEncoder(8, 1, "gcn"), width=24))


Maker = Callable[[PruningEnv, Traced], Agent]
every_agent = pytest.mark.parametrize("maker", [ppo, reinforce, ddpg, agmc])


def trained(maker: Maker, traced: Traced, episodes: int, seed: int, checkpoint: Path | None = None) -> list[float]:
    env = LayerwiseEnv(*traced, BUDGET, score)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        agent = maker(env, traced)
    return train(env, agent, episodes, seed=seed, checkpoint=checkpoint, every=10)


@every_agent
def test_a_run_repeats_and_goes_on_where_it_was(maker: Maker, layers: Traced, tmp_path: Path) -> None:
    whole = trained(maker, layers, 50, 0)
    assert trained(maker, layers, 50, 0) == whole
    assert trained(maker, layers, 50, 1) != whole
    trained(maker, layers, 37, 0, tmp_path / "agent.pt")  # 30 are in the checkpoint
    assert trained(maker, layers, 50, 0, tmp_path / "agent.pt") == whole


def test_every_group_moves_at_once(layers: Traced) -> None:
    env = SimultaneousEnv(*layers, BUDGET, score)
    agent = ppo(env, layers)
    earned = train(env, agent, 16, seed=0)
    assert len(earned) == 16 and agent.updates == 2  # type: ignore[attr-defined]


def test_an_anchor_holds_a_policy_where_it_began() -> None:
    """All reward lies at one end; the stronger the anchor, the less of the way the mean goes."""

    def mean_after(anchor: float) -> float:
        torch.manual_seed(0)
        agent = Ppo(MlpActorCritic(1, 1), batch=8, epochs=3, anchor=anchor)
        seen = torch.zeros(1, 1)
        for number in range(160):
            action = agent.act(seen, np.random.default_rng(number))
            episode = Episode(seen, action[None], action.clone(), agent.log_probs(seen, action[None]))
            agent.learn(episode, np.random.default_rng(number))
        return float(agent.act(seen, None))

    free, held, fixed = (mean_after(anchor) for anchor in (0.0, 1.0, 30.0))
    assert abs(fixed) < 0.05 < held < free - 0.1


def test_episodes_hold_what_was_executed(layers: Traced) -> None:
    env = LayerwiseEnv(*layers, BUDGET, score)
    agent = ppo(env, layers)
    episode = run_episode(env, agent, np.random.default_rng(0))
    widths = ((episode.actions[:, 0] + 1) / 2 * 8).round().long().numpy()
    assert env.budget.fits(env.graph, widths)
    assert episode.log_probs is not None
    torch.testing.assert_close(episode.log_probs, agent.log_probs(episode.observations, episode.actions))
    assert run_episode(env, agent, None).log_probs is None


@pytest.mark.slow
@every_agent
@pytest.mark.parametrize("seed", range(5))
def test_it_comes_within_a_twentieth_of_the_optimum(maker: Maker, seed: int, layers: Traced) -> None:
    """95 % of the way from equal widths to the best ones, in 200 episodes."""
    best, equal = optimum(layers)
    earned = trained(maker, layers, 200, seed)
    assert max(earned) >= best - 0.05 * (best - equal)
