"""What every sampler must do; one more in `SAMPLERS` joins by its name there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from espalier.pruning.trace import trace
from espalier.search.samplers import SAMPLERS, trial_seed
from espalier.search.spaces import Multipliers


def four_groups() -> Multipliers:
    """The space of four linear layers, one behind the other."""
    network = nn.Sequential(*(nn.Linear(5, 5) for _ in range(5)))
    graph = trace(network, torch.zeros(1, 5))
    energies = np.random.default_rng(0).random((3, graph.n_channels))
    floor = np.ones_like(graph.sizes)
    return Multipliers(graph, list(energies), normalization="mean", budget=75, floor=floor, width=1.5)


SPACE = four_groups()
NAMES = tuple(group.name for group in SPACE.graph.groups)
LOW, HIGH = -1.5, 1.5
TRIALS = {"gp": 13}
"""More than every sampler's random beginning; a proposal of a Gaussian process takes half a second."""

every_sampler = pytest.mark.parametrize("sampler", list(SAMPLERS))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def suggest(trial: optuna.Trial) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    trial.suggest_int("rung", 0, 2)
    return np.array([trial.suggest_float(name, LOW, HIGH) for name in NAMES])


def ask(study: optuna.Study, sampler: str, seed: int) -> optuna.Trial:
    """As a driver that was started for this one trial."""
    study.sampler = SAMPLERS[sampler](SPACE, seed)
    trial = study.ask()
    suggest(trial)
    return trial


def sphere(trial: optuna.Trial) -> float:
    return -sum(float(trial.params[name] - 0.3) ** 2 for name in NAMES) - 0.1 * int(trial.params["rung"])


def run(
    study: optuna.Study,
    sampler: str,
    trials: int,
    seed: int = 0,
    objective: Callable[[optuna.Trial], float] = sphere,
) -> None:
    for _ in range(trials):
        trial = ask(study, sampler, seed)
        study.tell(trial, objective(trial))


def open_study(url: str | None = None) -> optuna.Study:
    return optuna.create_study(storage=url, study_name="s", direction="maximize", load_if_exists=True)


def vectors(study: optuna.Study) -> list[dict[str, float]]:
    return [trial.params for trial in study.get_trials()]


@every_sampler
def test_it_makes_an_optuna_sampler(sampler: str) -> None:
    assert isinstance(SAMPLERS[sampler](SPACE, 0), BaseSampler)


@every_sampler
def test_proposals_lie_in_the_bounds_and_differ(sampler: str) -> None:
    study = open_study()
    run(study, sampler, TRIALS.get(sampler, 25))
    for trial in study.trials:
        assert set(trial.params) == {"rung", *NAMES}
        assert trial.params["rung"] in (0, 1, 2)
        assert all(LOW <= trial.params[name] <= HIGH for name in NAMES)
    assert len({tuple(vector.items()) for vector in vectors(study)}) == len(study.trials)


@every_sampler
def test_another_seed_proposes_something_else(sampler: str) -> None:
    first, other = open_study(), open_study()
    run(first, sampler, 4)
    run(other, sampler, 4, seed=1)
    assert all(one != two for one, two in zip(vectors(first), vectors(other), strict=True))


@every_sampler
def test_the_same_seed_proposes_the_same_however_often_it_is_resumed(sampler: str, tmp_path: Path) -> None:
    trials = TRIALS.get(sampler, 20)
    whole = open_study()
    run(whole, sampler, trials)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    for part in (1, 6, 5, trials - 12):
        run(open_study(url), sampler, part)
    resumed = open_study(url)
    assert vectors(resumed) == vectors(whole)
    assert [trial.value for trial in resumed.trials] == [trial.value for trial in whole.trials]


@every_sampler
def test_enqueued_points_come_first(sampler: str) -> None:
    study = open_study()
    points = [{"rung": rung} | dict.fromkeys(NAMES, 0.0) for rung in range(3)]
    for point in points:
        study.enqueue_trial(point)
    run(study, sampler, 11)
    assert vectors(study)[:3] == points
    assert all(vector not in points for vector in vectors(study)[3:])


@every_sampler
def test_many_can_be_asked_for_before_one_is_told(sampler: str) -> None:
    study = open_study()
    run(study, sampler, 10)
    running = [ask(study, sampler, 0) for _ in range(3)]
    assert len({tuple(trial.params.items()) for trial in running}) == 3
    study.tell(running[2], sphere(running[2]))
    run(study, sampler, 1)
    for trial in (running[1], running[0]):
        study.tell(trial, sphere(trial))
    run(study, sampler, 1)
    assert all(trial.state is TrialState.COMPLETE for trial in study.trials)


@every_sampler
def test_failed_trials_do_no_harm(sampler: str) -> None:
    study = open_study()
    for _ in range(16):
        trial = ask(study, sampler, 0)
        if trial.number % 3:
            study.tell(trial, sphere(trial))
        else:
            study.tell(trial, state=TrialState.FAIL)
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 10


@every_sampler
def test_extreme_values_do_not_break_it(sampler: str) -> None:
    study = open_study()
    extremes = {2: 1e30, 5: -1e30, 8: 1e30, 10: -1e30}
    run(study, sampler, TRIALS.get(sampler, 20), objective=lambda trial: extremes.get(trial.number, sphere(trial)))
    for trial in study.trials:
        assert all(
            np.isfinite(value) and LOW <= value <= HIGH for name, value in trial.params.items() if name in NAMES
        )


@every_sampler
def test_equal_values_do_not_break_it(sampler: str) -> None:
    study = open_study()
    run(study, sampler, TRIALS.get(sampler, 20), objective=lambda trial: 1.0)
    assert all(np.isfinite(list(trial.params.values())).all() for trial in study.trials)


# The agent needs hundreds of trials: tests/agents shows that it learns.
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in ("random", "agent")])
def test_it_learns(sampler: str) -> None:
    """Its later proposals are better than its first ones, which are no better than chance."""
    study = open_study()
    run(study, sampler, 16 if sampler == "gp" else 40)

    def mean(trials: list[FrozenTrial]) -> float:
        return float(np.mean([trial.value for trial in trials if trial.value is not None]))

    assert mean(study.trials[-5:]) > mean(study.trials[:5]) + 0.5


def test_seeds_of_trials_are_far_apart() -> None:
    seeds = [trial_seed(seed, number) for seed in range(20) for number in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert trial_seed(3, 5) == trial_seed(3, 5)
