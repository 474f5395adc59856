"""The network graph and the agent, in plain Optuna studies: nothing of search/ is imported."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
import torch
from torch_geometric.data import Data

from espalier.agents.actor import OneShotActor, ppo_update
from espalier.agents.network_graph import network_graph
from espalier.agents.sampler import ACTION, BATCH, AgentSampler
from espalier.pruning.energy import channel_energies
from espalier.pruning.graph import ChannelGraph
from espalier.pruning.networks import build
from espalier.pruning.trace import trace


@pytest.fixture(scope="module")
def traced() -> tuple[ChannelGraph, np.ndarray]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build("resnet20")
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    return graph, channel_energies(model, graph).numpy()


@pytest.fixture(scope="module")
def data(traced: tuple[ChannelGraph, np.ndarray]) -> Data:
    return network_graph(*traced)


@pytest.fixture
def names(traced: tuple[ChannelGraph, np.ndarray]) -> list[str]:
    return [group.name for group in traced[0].groups]


def toy(names: list[str], seed: int) -> tuple[optuna.study.study.ObjectiveFuncType, float]:
    """A separable quadratic over the groups and one number more, and its value in the middle."""
    best = np.random.default_rng(seed).uniform(-0.8, 0.8, len(names) + 1)

    def objective(trial: optuna.Trial) -> float:
        x = [trial.suggest_float(name, -1.5, 1.5) / 1.5 for name in names]
        x.append(2 * trial.suggest_float("normalization", 0, 1) - 1)
        return -float(((np.array(x) - best) ** 2).sum())

    return objective, -float((best**2).sum())


def run(sampler: optuna.samplers.BaseSampler, names: list[str], trials: int, seed: int = 0) -> optuna.Study:
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(toy(names, seed)[0], n_trials=trials)
    return study


def test_a_fresh_actor_proposes_the_middle(data: Data, names: list[str]) -> None:
    distribution = OneShotActor(len(names), 2)(data)
    assert distribution.mean.tolist() == [0.0] * (len(names) + 2)


def test_an_update_makes_good_actions_likelier(data: Data, names: list[str]) -> None:
    torch.manual_seed(0)
    actor = OneShotActor(len(names), 0)
    optimizer = torch.optim.Adam(actor.parameters(), lr=0.005)
    actions = torch.randn(32, len(names)).clamp(-1, 1) * 0.3
    with torch.no_grad():
        before = actor(data).log_prob(actions).sum(1)
    ppo_update(actor, optimizer, data, actions, before, actions[:, 0].tolist())
    with torch.no_grad():
        assert actor(data).mean[0] > 0.02
        gained = actor(data).log_prob(actions).sum(1) - before
    best, worst = actions[:, 0].argsort(descending=True)[:8], actions[:, 0].argsort()[:8]
    assert gained[best].mean() > gained[worst].mean()


@pytest.mark.parametrize("seed", range(3))
def test_it_learns_a_toy_problem(data: Data, names: list[str], seed: int) -> None:
    _, middle = toy(names, seed)
    agent = run(AgentSampler(data, names, seed=seed), names, 300, seed).best_value
    random = run(optuna.samplers.RandomSampler(seed=seed), names, 300, seed).best_value
    assert agent > random
    assert agent > 0.35 * middle  # both negative: at least 65 % of the way to the optimum, 0


def test_one_seed_gives_one_run_and_a_resumed_run_is_the_same(data: Data, names: list[str]) -> None:
    whole = run(AgentSampler(data, names, seed=3), names, 3 * BATCH)
    study = run(AgentSampler(data, names, seed=3), names, BATCH + 5)
    study.sampler = AgentSampler(data, names, seed=3)  # what a new process has
    study.optimize(toy(names, 0)[0], n_trials=3 * BATCH - (BATCH + 5))
    assert [trial.params for trial in study.trials] == [trial.params for trial in whole.trials]
    other = run(AgentSampler(data, names, seed=4), names, 3)
    assert other.trials[2].params != whole.trials[2].params


def test_the_executed_action_is_what_is_stored(data: Data, names: list[str]) -> None:
    def objective(trial: optuna.Trial) -> float:
        rung = trial.suggest_int("rung", 0, 2)
        return sum(trial.suggest_float(name, -0.1, 0.1) for name in names) + rung

    study = optuna.create_study(direction="maximize", sampler=AgentSampler(data, names, seed=0))
    study.optimize(objective, n_trials=20)
    for trial in study.trials[1:]:
        action = trial.system_attrs[ACTION]
        assert np.abs(action).max() <= 1
        np.testing.assert_allclose([trial.params[name] / 0.1 for name in names], action[:-1], atol=1e-6)
        assert trial.params["rung"] - 1 == pytest.approx(action[-1])


def test_parallel_late_failed_and_enqueued_trials(data: Data, names: list[str]) -> None:
    objective, _ = toy(names, 0)
    sampler = AgentSampler(data, names, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(dict.fromkeys(names, 0.0) | {"normalization": 1.0})
    study.optimize(objective, n_trials=2)
    late = study.ask()
    late_value = objective(late)
    for _ in range(BATCH + 2):
        trial = study.ask()
        value = objective(trial)
        study.tell(trial, value)
    failed = study.ask()
    objective(failed)
    study.tell(failed, state=optuna.trial.TrialState.FAIL)
    study.tell(late, late_value)  # now comes before trials that were learned from
    following = study.ask()
    objective(following)
    fresh = optuna.create_study(direction="maximize", sampler=AgentSampler(data, names, seed=0))
    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
    fresh.add_trials(study.get_trials(states=finished))
    again = fresh.ask()
    objective(again)
    assert again.params == following.params


def test_a_study_that_minimises(data: Data, names: list[str]) -> None:
    objective, middle = toy(names, 1)
    study = optuna.create_study(direction="minimize", sampler=AgentSampler(data, names, seed=1))
    study.optimize(lambda trial: -float(objective(trial)), n_trials=250)  # type: ignore[arg-type]
    assert study.best_value < -0.5 * middle


def test_another_space_is_left_to_chance(data: Data, names: list[str]) -> None:
    study = optuna.create_study(sampler=AgentSampler(data, names, seed=0))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=4)
    assert len({trial.params["x"] for trial in study.trials}) == 4
