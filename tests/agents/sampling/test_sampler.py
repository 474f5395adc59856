"""Agents in plain Optuna studies: nothing of search/ is imported."""

from __future__ import annotations

import copy
import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from espalier.agents.algorithms.kinds import AGENTS
from espalier.agents.algorithms.ppo import Ppo
from espalier.agents.common.buffers import Episode
from espalier.agents.common.log import Log
from espalier.agents.graph.network_graph import NetworkData, network_graph
from espalier.agents.sampling.sampler import ACTION, AgentSampler
from espalier.errors import ConfigError
from tests.agents.conftest import Traced

every_agent = pytest.mark.parametrize("agent", list(AGENTS))
Objective = Callable[[optuna.Trial], float]


@pytest.fixture(scope="module")
def names(layers: Traced) -> list[str]:
    return [group.name for group in layers[0].groups]


@pytest.fixture(scope="module")
def small(layers: Traced) -> NetworkData:
    return network_graph(*layers)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(optuna.logging.INFO)


def bowl(names: list[str], sign: float = 1.0) -> Objective:
    """A separable quadratic over the groups and two numbers more: 0 at the optimum, negative elsewhere."""
    best = np.linspace(-0.6, 0.7, len(names))

    def objective(trial: optuna.Trial) -> float:
        x = np.array([trial.suggest_float(name, -1.5, 1.5) / 1.5 for name in names])
        loss = ((x - best) ** 2).sum() + (trial.suggest_float("normalization", 0, 1) - 0.8) ** 2
        return sign * -float(loss + 0.2 * (trial.suggest_int("rung", 0, 2) - 2) ** 2)

    return objective


def tell(study: optuna.Study, objective: Objective) -> optuna.Trial:
    trial = study.ask()
    study.tell(trial, objective(trial))
    return trial


def run(sampler: AgentSampler, objective: Objective, trials: int) -> optuna.Study:
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=trials)
    return study


@every_agent
def test_an_overflow_teaches_nothing(agent: str, small: NetworkData, names: list[str]) -> None:
    """Such as an infinite perplexity: the agent goes on."""
    inner = bowl(names)

    def objective(trial: optuna.Trial) -> float:
        value = inner(trial)
        return -np.inf if trial.number in (3, 7) else value

    study = run(AgentSampler(small, names, agent=agent, seed=3), objective, 24)
    assert all(np.isfinite(list(trial.params.values())).all() for trial in study.trials)
    assert len({trial.params[names[0]] for trial in study.trials[8:]}) > 1


@every_agent
def test_one_seed_gives_one_run_and_a_resumed_run_is_the_same(
    agent: str, small: NetworkData, names: list[str], tmp_path: Path
) -> None:
    """With and without its checkpoint, and whoever asks."""

    def fresh(checkpoint: Path | None = None) -> AgentSampler:
        return AgentSampler(small, names, agent=agent, seed=3, checkpoint=checkpoint)

    whole = run(fresh(), bowl(names), 45)
    study = run(fresh(checkpoint=tmp_path / "agent.pt"), bowl(names), 25)
    assert (tmp_path / "agent.pt").is_file()
    study.sampler = fresh(checkpoint=tmp_path / "agent.pt")
    study.optimize(bowl(names), n_trials=10)
    study.sampler = fresh()
    study.optimize(bowl(names), n_trials=10)
    assert [trial.params for trial in study.trials] == [trial.params for trial in whole.trials]
    other = run(AgentSampler(small, names, agent=agent, seed=4), bowl(names), 3)
    assert other.trials[2].params != whole.trials[2].params


@every_agent
def test_a_checkpoint_holds_the_agent_that_the_record_makes(
    agent: str, small: NetworkData, names: list[str], tmp_path: Path
) -> None:
    study = run(AgentSampler(small, names, agent=agent, seed=0, checkpoint=tmp_path / "a.pt"), bowl(names), 24)
    learned: list[int] = []

    class Watched(AgentSampler):
        def _learn(self, trial: FrozenTrial, reward: float) -> None:
            learned.append(trial.number)
            super()._learn(trial, reward)

    resumed = Watched(small, names, agent=agent, seed=0, checkpoint=tmp_path / "a.pt")
    study.sampler = resumed
    tell(study, bowl(names))
    assert learned == [20, 21, 22, 23, 24]  # what the checkpoint lacks, and the new one
    stale = Watched(small, names, agent=agent, seed=0, checkpoint=tmp_path / "a.pt")
    learned.clear()
    run(stale, bowl(names, 0.5), 3)  # another study: the file is not of its past
    assert learned == [0, 1, 2]


def test_another_studys_checkpoint_is_left_alone(small: NetworkData, names: list[str], tmp_path: Path) -> None:
    """One run folder may serve two studies whose trials have the same numbers."""
    file = tmp_path / "agent.pt"

    def fresh(checkpoint: Path | None) -> AgentSampler:
        return AgentSampler(small, names, seed=0, checkpoint=checkpoint)

    one, two = (optuna.create_study(study_name=name, direction="maximize") for name in ("one", "two"))
    for study, sign, trials in ((one, 1.0, 45), (two, -1.0, 25)):
        study.sampler = fresh(file)
        study.optimize(bowl(names, sign), n_trials=trials)
    proposals = []
    for checkpoint in (file, None):
        resumed = copy.deepcopy(one)
        resumed.sampler = fresh(checkpoint)
        proposals.append(tell(resumed, bowl(names)).params)
    assert proposals[0] == proposals[1]


@every_agent
def test_late_results_failures_and_enqueued_trials(agent: str, small: NetworkData, names: list[str]) -> None:
    """A driver that goes on and one that begins propose the same."""
    objective = bowl(names)
    study = optuna.create_study(direction="maximize", sampler=AgentSampler(small, names, agent=agent, seed=0))
    study.enqueue_trial(dict.fromkeys(names, 0.3) | {"normalization": 1.0, "rung": 1})
    for _ in range(3):
        tell(study, objective)
    late, failed = study.ask(), study.ask()
    late_value = objective(late)
    objective(failed)
    for _ in range(20):
        tell(study, objective)
    study.tell(failed, state=TrialState.FAIL)
    study.tell(late, late_value)
    for _ in range(20):
        tell(study, objective)
    other = copy.deepcopy(study)
    other.sampler = AgentSampler(small, names, agent=agent, seed=0)
    one, another = study.ask(), other.ask()
    objective(one), objective(another)
    assert one.params == another.params


def test_what_is_learned_from_is_what_was_carried_out(
    small: NetworkData, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded, clipped, and where somebody fixed a parameter, as fixed: then no policy drew it."""
    learned: list[Episode] = []

    learn = Ppo.learn

    def watched(self: Ppo, episode: Episode, rng: np.random.Generator) -> dict[str, float]:
        learned.append(episode)
        return learn(self, episode, rng)

    monkeypatch.setattr(Ppo, "learn", watched)
    study = optuna.create_study(direction="maximize", sampler=AgentSampler(small, names, seed=0))
    for number in range(9):
        if number == 6:
            study.enqueue_trial({names[0]: -1.5})
        tell(study, bowl(names))
    assert len(learned) == 9
    # In the order of the names: the layers, normalization, rung.
    for trial, episode in zip(study.trials, learned, strict=True):
        expected = [trial.params[name] / 1.5 for name in names]
        expected += [2 * trial.params["normalization"] - 1, (trial.params["rung"] - 1) / 1.5]
        assert episode.actions[0].tolist() == pytest.approx(expected, abs=1e-5)
        assert float(episode.rewards.sum()) == pytest.approx(trial.value)
        assert (episode.log_probs is None) == (trial.number in (0, 6))  # at random, and fixed


def test_it_begins_at_the_best_that_was_enqueued(small: NetworkData, names: list[str]) -> None:
    study = optuna.create_study(direction="minimize", sampler=AgentSampler(small, names, seed=0))
    points = [dict.fromkeys(names, 1.5 * at) | {"normalization": 1.0, "rung": 2} for at in (-0.9, 0.8, 0.0)]
    for point in points:
        study.enqueue_trial(point)
    for _ in range(11):
        trial = study.ask()
        bowl(names)(trial)
        study.tell(trial, -trial.params[names[0]])  # the second is the best
    drawn = [trial.params for trial in study.trials[3:]]
    assert np.mean([[vector[name] / 1.5 for name in names] for vector in drawn]) == pytest.approx(0.65, abs=0.15)
    assert sum(vector["rung"] == 2 for vector in drawn) > 4
    assert {trial.system_attrs[ACTION]["begun"] for trial in study.trials[3:]} == {1}


def test_trials_that_another_driver_has_asked_for_may_not_be_known_yet(
    small: NetworkData, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number is no position in the list."""
    found = {}
    for hidden in (frozenset[int](), {1, 4}):
        study = optuna.create_study(direction="maximize")
        for number in range(6):
            value = number if number not in (1, 4) else None
            state = TrialState.COMPLETE if value is not None else TrialState.FAIL
            params = {name: 0.1 * number for name in [*names, "normalization"]} | {"rung": 1}
            distributions: dict[str, optuna.distributions.BaseDistribution] = {
                name: optuna.distributions.FloatDistribution(-1.5, 1.5) for name in names
            }
            distributions |= {"normalization": optuna.distributions.FloatDistribution(0, 1)}
            distributions |= {"rung": optuna.distributions.IntDistribution(0, 2)}
            study.add_trial(
                optuna.trial.create_trial(state=state, value=value, params=params, distributions=distributions)
            )
        study.sampler = AgentSampler(small, names, seed=0)
        known = [trial for trial in study.get_trials() if trial.number not in hidden]
        monkeypatch.setattr(study, "get_trials", lambda known=known, **_: known)
        asked = study.ask()
        bowl(names)(asked)
        found[len(hidden)] = asked.params
    assert found[0] == found[2]


def test_agents_that_are_none(small: NetworkData, names: list[str]) -> None:
    with pytest.raises(ConfigError, match="unknown agent 'sarsa', valid names are ppo, reinforce, ddpg, agmc"):
        run(AgentSampler(small, names, agent="sarsa", seed=0), bowl(names), 2)
    with pytest.raises(ConfigError, match="ddpg acts step by step"):
        run(AgentSampler(small, names, agent="ddpg", seed=0, pretrained={}), bowl(names), 2)


@every_agent
def test_another_space_and_equal_or_extreme_values(agent: str, small: NetworkData, names: list[str]) -> None:
    study = optuna.create_study(sampler=AgentSampler(small, names, agent=agent, seed=0))
    values = iter([1e30, -1e30, *[1.0] * 40])

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 1e-3, 1e3, log=True), trial.suggest_categorical("kind", ["a", "b"])
        assert trial.suggest_int("n", 2, 10, step=4) in (2, 6, 10)
        return next(values)

    study.optimize(objective, n_trials=36)
    found = [trial.params["x"] for trial in study.trials]
    assert len(set(found)) == 36 and np.isfinite(found).all()


def test_updates_are_logged(
    small: NetworkData, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # no dependency of ours
    study = run(AgentSampler(small, names, seed=0, log=Log(tmp_path)), bowl(names), 20)
    study.sampler = AgentSampler(small, names, seed=0, log=Log(tmp_path))  # learns the same again, and goes on
    study.optimize(bowl(names), n_trials=14)
    with (tmp_path / "agent.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [9, 17, 25, 33]  # the first trial is at random
    assert all(np.isfinite(float(row["value_error"])) for row in rows)
    pytest.importorskip("tensorboard")
    assert list(tmp_path.glob("events.*"))


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["ppo", "reinforce", "ddpg"])  # AGMC needs more trials
@pytest.mark.parametrize("seed", range(5))
def test_it_comes_within_a_twentieth_of_the_optimum(
    agent: str, seed: int, small: NetworkData, names: list[str]
) -> None:
    """The agent's best in 600 trials closes 95 % of the gap from the middle of the ranges to the optimum."""
    study = run(AgentSampler(small, names, agent=agent, seed=seed), bowl(names), 600)
    middle = optuna.create_study(direction="maximize")
    middle.enqueue_trial(dict.fromkeys(names, 0.0) | {"normalization": 0.5, "rung": 1})
    tell(middle, bowl(names))
    assert study.best_value > 0.05 * middle.best_value
