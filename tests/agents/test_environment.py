"""The environments: gymnasium's checker, exact budgets, executed actions, and somebody else's agents."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.agents.environment import LayerwiseEnv, PruningEnv, SimultaneousEnv
from espalier.errors import BudgetInfeasible
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.costs import Ints
from tests.agents.conftest import Traced

every_environment = pytest.mark.parametrize("kind", [LayerwiseEnv, SimultaneousEnv])


def damage(widths: Ints) -> float:
    return -float((1.0 / widths).sum())


def make(kind: type[PruningEnv], traced: Traced, keep: float = 0.3, round_to: int = 1) -> PruningEnv:
    graph, energies = traced
    return kind(graph, energies, int(keep * graph.macs(graph.sizes)), damage, round_to=round_to)


def episode(env: PruningEnv, rng: np.random.Generator, bias: float = 0.0) -> tuple[Ints, float, list[np.ndarray]]:
    env.reset()
    executed = []
    for _ in range(1000):
        action = np.clip(rng.uniform(-1, 1, env.action_space.shape) + bias, -1, 1).astype(np.float32)
        observation, reward, ended, truncated, info = env.step(action)
        executed.append(info["executed"])
        assert env.observation_space.contains(observation) and env.action_space.contains(info["executed"])
        assert not truncated
        if ended:
            return info["widths"], reward, executed
        assert reward == 0 and "widths" not in info
    raise AssertionError("the episode does not end")


@every_environment
def test_gymnasium_finds_nothing_wrong(kind: type[PruningEnv], layers: Traced) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(kind, layers), skip_render_check=True)


@every_environment
@given(keep=st.floats(0.05, 0.95), bias=st.sampled_from([-2.0, -0.7, 0.0, 0.7, 2.0]), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_every_episode_fills_the_budget(
    kind: type[PruningEnv], resnet: Traced, keep: float, bias: float, seed: int
) -> None:
    """Published codes overshoot by rounding, and by cutting on."""
    graph, _ = resnet
    env = make(kind, resnet, keep)
    widths, reward, _ = episode(env, np.random.default_rng(seed), bias)
    assert env.budget.fits(graph, widths)
    one_more = widths + np.eye(len(widths), dtype=np.int64)
    assert not (env.budget.fits(graph, one_more) & (widths < graph.sizes)).any()
    assert (widths >= 1).all() and (widths <= graph.sizes).all()
    assert reward == damage(widths)


@every_environment
def test_widths_are_rounded_and_budgets_may_be_several(kind: type[PruningEnv], resnet: Traced) -> None:
    graph, energies = resnet
    budget = Budget(macs=int(0.4 * graph.macs(graph.sizes)), params=int(0.3 * graph.params(graph.sizes)))
    env = kind(graph, energies, budget, damage, round_to=4)
    widths, _, _ = episode(env, np.random.default_rng(0))
    assert (widths % 4 == 0).all() and budget.fits(graph, widths)


@every_environment
def test_the_executed_actions_lead_to_the_same_widths(kind: type[PruningEnv], resnet: Traced) -> None:
    """A published agent learns from the actions that it asked for, which the wall had changed."""
    env = make(kind, resnet, 0.15)
    widths, _, executed = episode(env, np.random.default_rng(3), 0.8)
    env.reset()
    for action in executed:
        _, _, ended, _, info = env.step(action)
        assert info["executed"] == pytest.approx(action, abs=1e-5)
    assert ended and info["widths"].tolist() == widths.tolist()


def test_the_wall_changes_an_action_as_little_as_it_can(layers: Traced) -> None:
    """By hand: layers of 8 x 8, the last one's outputs frozen, so that MACs are 8a + ab + bc + cd + 8d."""
    graph, energies = layers
    env = LayerwiseEnv(graph, energies, 100, damage)
    env.reset()
    executed = []
    for asked in (1.0, 1.0, -1.0, -1.0):
        _, _, _, _, info = env.step(np.array([asked], dtype=np.float32))
        executed.append(round(float((info["executed"][0] + 1) / 2 * 8)))
    # 9a + 10 <= 100: a = 8; 64 + 9b + 9 <= 100: b = 3; 88 + 4c + 8 <= 100: c = 1
    assert executed == [8, 3, 1, 1]
    assert info["widths"].tolist() == [8, 3, 1, 1]


def test_a_budget_out_of_reach(layers: Traced) -> None:
    with pytest.raises(BudgetInfeasible):
        LayerwiseEnv(*layers, 10, damage)
