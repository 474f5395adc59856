"""What every sampler must do; one more in `SAMPLERS` joins by its name there."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pytest
import torch
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from espalier.pruning.trace import trace
from espalier.search.samplers import SAMPLERS, trial_seed
from espalier.search.samplers.cmaes import CmaEs
from espalier.search.samplers.cube import Cube
from espalier.search.samplers.legr import FIRST as LEGR_FIRST
from espalier.search.samplers.local import Local
from espalier.search.samplers.record import Observations, RecordSampler
from espalier.search.samplers.sensitivity import SHARES, Sensitivity
from espalier.search.samplers.surrogate import MOST, Surrogate, features
from espalier.search.spaces.named_spaces import SPACES
from espalier.search.spaces.space import Space


def four_groups(space: str) -> Space:
    """A space of four linear layers, one behind the other."""
    network = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    graph = trace(network, torch.zeros(1, 8))
    energies = np.random.default_rng(0).random((3, graph.n_channels))
    floor = np.ones_like(graph.sizes)
    return SPACES[space](graph, list(energies), normalization="searched", budget=190, floor=floor, width=1.5)


SPACE, WIDTHS = four_groups("multipliers"), four_groups("widths")
NAMES = tuple(group.name for group in SPACE.graph.groups)
TRIALS = {"gp": 12, "ddpg": 12, "agmc": 12}
"""More than every sampler's random beginning, of those that take long to propose or to be rebuilt."""
RESTART = 5
"""Trials that one driver runs, in most tests, before another takes over."""

every_sampler = pytest.mark.parametrize("sampler", list(SAMPLERS))
ours = pytest.mark.parametrize(
    "sampler", [name for name, make in SAMPLERS.items() if isinstance(make(SPACE, 0), RecordSampler)]
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def sphere(trial: optuna.Trial | FrozenTrial) -> float:
    """Greatest at 1, where no search begins."""
    return -sum(float(trial.params[name] - 1) ** 2 for name in NAMES) - 0.1 * int(trial.params["rung"])


def ask(study: optuna.Study, sampler: str, seed: int) -> optuna.Trial:
    """As a driver that was started for this one trial."""
    study.sampler = SAMPLERS[sampler](SPACE, seed)
    trial = study.ask()
    SPACE.suggest(trial)
    return trial


def run(
    study: optuna.Study,
    sampler: str,
    trials: int,
    seed: int = 0,
    objective: Callable[[optuna.Trial], float] = sphere,
    restart: int = RESTART,
) -> None:
    for number in range(trials):
        if number % restart == 0:
            study.sampler = SAMPLERS[sampler](SPACE, seed)
        trial = study.ask()
        SPACE.suggest(trial)
        study.tell(trial, objective(trial))


@cache
def chance() -> float:
    """The mean value of random search."""
    study = open_study()
    run(study, "random", 100)
    return float(np.mean([trial.value for trial in study.trials]))


def open_study(
    storage: BaseStorage | None = None, direction: Literal["maximize", "minimize"] = "maximize"
) -> optuna.Study:
    return optuna.create_study(storage=storage, study_name="s", direction=direction, load_if_exists=True)


def vectors(study: optuna.Study) -> list[dict[str, float]]:
    return [trial.params for trial in study.get_trials()]


def record(
    points: Sequence[Sequence[float]],
    values: Sequence[float],
    marks: Sequence[Any],
    keys: Sequence[str] | None = None,
) -> Observations:
    keys = keys or [str(index) for index in range(len(points))]
    return Observations(len(points), range(len(points)), np.array(points), np.array(values), marks, keys, set(keys))


# ---------------------------------------------------------------------------------------------- every sampler


@every_sampler
def test_it_makes_an_optuna_sampler(sampler: str) -> None:
    assert isinstance(SAMPLERS[sampler](SPACE, 0), BaseSampler)


@every_sampler
@pytest.mark.parametrize("space", [SPACE, WIDTHS], ids=["multipliers", "widths"])
def test_proposals_are_in_range_fill_the_budget_and_differ(sampler: str, space: Space) -> None:
    """In anybody's study, by `optimize`."""
    study = optuna.create_study(sampler=SAMPLERS[sampler](space, 0))

    def damage(trial: optuna.Trial) -> float:
        candidate = space.decode(space.suggest(trial))
        assert space.budget.fits(space.graph, np.array(candidate.widths))
        return float(np.sum(8.0 / np.array(candidate.widths)))

    study.optimize(damage, n_trials=TRIALS.get(sampler, 25))
    for trial in study.trials:
        assert trial.params.keys() == space.distributions().keys()
        for name, found in space.distributions().items():
            assert found.low <= trial.params[name] <= found.high  # type: ignore[attr-defined]
    assert len({tuple(vector.items()) for vector in vectors(study)}) > 0.8 * len(study.trials)


@every_sampler
def test_another_seed_proposes_something_else(sampler: str) -> None:
    first, other = open_study(), open_study()
    trials = 14 if sampler == "sensitivity" else 4  # its pass is the same for all
    run(first, sampler, trials)
    run(other, sampler, trials, seed=1)
    assert vectors(first)[-1] != vectors(other)[-1]


@every_sampler
def test_the_same_seed_proposes_the_same_however_often_it_is_resumed(sampler: str, tmp_path: Path) -> None:
    trials = TRIALS.get(sampler, 20)
    whole = open_study()
    whole.sampler = SAMPLERS[sampler](SPACE, 0)  # one driver all the way
    for _ in range(trials):
        trial = whole.ask()
        SPACE.suggest(trial)
        whole.tell(trial, sphere(trial))
    for part in (1, 6, trials - 7):
        storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))
        run(open_study(storage), sampler, part, restart=1)
    resumed = open_study(JournalStorage(JournalFileBackend(str(tmp_path / "study.log"))))
    assert vectors(resumed) == vectors(whole)
    assert [trial.value for trial in resumed.trials] == [trial.value for trial in whole.trials]


@every_sampler
def test_enqueued_points_come_first(sampler: str) -> None:
    study = open_study()
    points = SPACE.greedy_params()
    for point in points:
        study.enqueue_trial(point)
    run(study, sampler, 12)
    assert vectors(study)[: len(points)] == points
    assert all(vector not in points for vector in vectors(study)[len(points) :])


@every_sampler
def test_many_can_be_asked_for_before_one_is_told(sampler: str) -> None:
    study = open_study()
    begun = [ask(study, sampler, 0) for _ in range(3)]
    assert len({tuple(trial.params.items()) for trial in begun}) == 3
    for trial in begun:
        study.tell(trial, sphere(trial))
    run(study, sampler, 8)
    running = [ask(study, sampler, 0) for _ in range(3)]
    assert len({tuple(trial.params.items()) for trial in running}) == 3
    study.tell(running[2], sphere(running[2]))
    run(study, sampler, 1)
    for trial in (running[1], running[0]):
        study.tell(trial, sphere(trial))
    run(study, sampler, 1)
    assert all(trial.state is TrialState.COMPLETE for trial in study.trials)


@every_sampler
def test_late_results_are_learned_from_as_a_resumed_study_would(sampler: str) -> None:
    """A driver that goes on and one that begins propose the same when slow trials finish after quick ones."""
    study = open_study()
    study.sampler = steady = SAMPLERS[sampler](SPACE, 0)
    waiting: list[optuna.Trial] = []
    for number in range(TRIALS.get(sampler, 45)):
        trial = study.ask()
        SPACE.suggest(trial)
        waiting.append(trial)
        if number % 7:
            late = waiting.pop(0 if number % 5 == 0 else -1)
            study.tell(late, sphere(late))
    other = copy.deepcopy(study)
    assert other._storage is not study._storage
    other.sampler = SAMPLERS[sampler](SPACE, 0)
    study.sampler = steady
    assert SPACE.suggest(other.ask()) == SPACE.suggest(study.ask())


@every_sampler
def test_failed_trials_do_no_harm(sampler: str) -> None:
    study = open_study()
    for number in range(16):
        if number % RESTART == 0:
            study.sampler = SAMPLERS[sampler](SPACE, 0)
        trial = study.ask()
        SPACE.suggest(trial)
        if trial.number % 3:
            study.tell(trial, sphere(trial))
        else:
            study.tell(trial, state=TrialState.FAIL)
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 10
    assert len({tuple(vector.items()) for vector in vectors(study)[1:]}) == 15


@every_sampler
@pytest.mark.parametrize("values", [{2: 1e30, 5: -1e30, 8: 1e30, 10: -1e30}, dict.fromkeys(range(99), 1.0)])
def test_extreme_and_equal_values_do_not_break_it(sampler: str, values: dict[int, float]) -> None:
    study = open_study()
    trials = TRIALS.get(sampler, 20)
    run(study, sampler, trials, objective=lambda trial: values.get(trial.number, sphere(trial)))
    assert all(np.isfinite(list(trial.params.values())).all() for trial in study.trials)


@every_sampler
def test_a_study_of_other_parameters_goes_on(sampler: str) -> None:
    """The space's own among them, one in another range."""
    study = optuna.create_study(sampler=SAMPLERS[sampler](SPACE, 0))

    def objective(trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("kind", ["a", "b"])
        known, other = trial.suggest_float(NAMES[0], -1.5, 1.5), trial.suggest_float(NAMES[1], 2.0, 3.0)
        return known + other + trial.suggest_int("depth", 1, 9) + (kind == "a")

    study.optimize(objective, n_trials=12)
    assert len({trial.params["depth"] for trial in study.trials}) > 2


# Agents that learn values first need hundreds of trials: tests/agents shows that they learn.
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in ("random", "qmc", "ddpg", "agmc")])
def test_it_learns(sampler: str) -> None:
    """Its later proposals are far better than chance, and than where searches begin."""
    study = open_study()
    for point in SPACE.greedy_params():
        study.enqueue_trial(point)
    trials = 18 if sampler == "gp" else 70
    run(study, sampler, trials, restart=trials)
    begun = max(trial.value or -np.inf for trial in study.trials[:6])
    later = float(np.mean([trial.value for trial in study.trials[-6:]]))
    assert later > chance() + 1.5
    assert study.best_value > begun + 1.5


def test_seeds_of_trials_are_far_apart() -> None:
    seeds = [trial_seed(seed, number) for seed in range(20) for number in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert trial_seed(3, 5) == trial_seed(3, 5)


# ---------------------------------------------------------------------------------------------- from the record


@ours
def test_it_minimises_where_the_study_does(sampler: str) -> None:
    up, down = open_study(), open_study(direction="minimize")
    run(up, sampler, 18)
    run(down, sampler, 18, objective=lambda trial: -sphere(trial))
    assert vectors(up) == vectors(down)


@ours
def test_a_trial_that_was_half_drawn_is_finished_alike(sampler: str) -> None:
    whole, broken = open_study(), open_study()
    run(whole, sampler, 18)
    run(broken, sampler, 17)
    broken.sampler = SAMPLERS[sampler](SPACE, 0)
    broken.ask().suggest_int("rung", 0, 2)  # its driver dies
    broken.sampler = SAMPLERS[sampler](SPACE, 0)
    SPACE.suggest(optuna.Trial(broken, broken.get_trials()[17]._trial_id))
    assert vectors(whole) == vectors(broken)


def test_a_point_comes_back_from_its_vector_and_numbers_keep_their_range() -> None:
    rng = np.random.default_rng(0)
    for space in (SPACE, WIDTHS):
        cube = Cube(space.distributions())
        for params in (*space.greedy_params(), *space.uniform_params()):
            assert cube.decode(cube.encode(params)) == pytest.approx(params)
        for point in (np.zeros(cube.dim), np.ones(cube.dim), rng.random(cube.dim), rng.normal(size=cube.dim) * 9):
            settled = cube.settled(point)
            assert cube.settled(settled) == pytest.approx(settled)
            for name, found in space.distributions().items():
                value = cube.decode(point)[name]
                assert found.low <= value <= found.high  # type: ignore[attr-defined]


def test_every_whole_number_has_an_equal_share_of_its_axis() -> None:
    cube = Cube({"rung": optuna.distributions.IntDistribution(0, 2)})
    found = [cube.decode(np.array([share]))["rung"] for share in np.linspace(0, 1, 301)]
    assert np.bincount(found).tolist() == [100, 100, 101]


def test_first_individuals_of_legr_differ() -> None:
    """A port of it seeds every draw alike, so that its first population is one individual."""
    study = open_study()
    run(study, "legr", LEGR_FIRST + 4)
    found = np.array([[vector[name] for name in NAMES] for vector in vectors(study)])
    assert all(len(np.unique(column)) > LEGR_FIRST / 2 for column in found.T)


def test_legr_begins_a_child_with_one_of_the_latest() -> None:
    """Whatever an old one was worth, it is gone."""
    sampler = SAMPLERS["legr"](SPACE, 0)
    assert isinstance(sampler, RecordSampler)
    points = np.full((300, sampler.cube.dim), 0.5)
    points[0] = 0.9
    told = record(points.tolist(), [9.0] + [1.0] * 299, [None] * 300)
    for seed in range(50):
        point, _ = sampler.propose(told, np.random.default_rng(seed))
        assert np.isclose(point, 0.5).any() and not np.isclose(point, 0.9).any()


def test_cmaes_begins_at_the_best_that_others_proposed() -> None:
    """Not at its own: where it began must not move."""
    sampler = CmaEs(SPACE, 0, sigma=1e-3)
    points = [*sampler.anchors.tolist(), [0.3] * sampler.cube.dim]
    for best in range(len(sampler.anchors)):
        values = [float(number == best) for number in range(len(points))]
        told = record(points, [*values[:-1], 2.0], [None] * len(sampler.anchors) + [0])
        point, generation = sampler.propose(told, np.random.default_rng(0))
        assert point == pytest.approx(np.clip(points[best], 5e-4, 1 - 5e-4), abs=0.01)
        assert generation == 0


def test_cmaes_learns_anew_when_a_trial_of_an_old_generation_finishes() -> None:
    """It is one of the first of its generation then, and as many follow as before."""
    steady = CmaEs(SPACE, 0)
    rng = np.random.default_rng(0)
    points, values = rng.random((30, steady.cube.dim)).tolist(), rng.random(30).tolist()
    whole = record(points, values, [0] * 30)
    without = [number for number in range(30) if number != 3]
    first = replace(
        whole,
        numbers=without,
        points=whole.points[without],
        values=whole.values[without],
        marks=whole.marks[1:],
        candidates=whole.candidates[1:],
    )
    steady.propose(first, np.random.default_rng(0))
    point, _ = steady.propose(whole, np.random.default_rng(1))
    other, _ = CmaEs(SPACE, 0).propose(whole, np.random.default_rng(1))
    assert point.tolist() == other.tolist()


def test_moves_lengthen_with_success_and_shorten_with_failure() -> None:
    sampler = Local(SPACE, 0)
    point = [0.5] * sampler.cube.dim
    begun = sampler._length(record([point], [0.0], [None]))
    rising = sampler._length(record([point] * 3, [0.0, 1.0, 2.0], [None, "move", "move"]))
    falling = sampler._length(record([point] * 5, [0.0, -1.0, -2.0, -3.0, -4.0], [None, *["move"] * 4]))
    assert falling < begun < rising


def test_a_move_raises_one_axis_and_lowers_another() -> None:
    sampler = Local(SPACE, 0)
    told = record([[0.5] * sampler.cube.dim], [0.0], [None])
    axes = [list(sampler.cube.ranges).index(name) for name in NAMES]
    pairs = 0
    for seed in range(40):
        point, _ = sampler.propose(told, np.random.default_rng(seed))
        signs = sorted(np.sign(point[axes] - 0.5).tolist())
        assert signs in ([-1, 0, 0, 1], [0, 0, 0, 0])
        pairs += signs == [-1, 0, 0, 1]
    assert pairs > 25


class ByPoint(Sensitivity):
    """By which every point is a candidate of its own."""

    def key(self, point: Any) -> str:
        return str(point.round(9).tolist())


def test_the_pass_finds_the_top_of_a_separable_parabola() -> None:
    """Each axis is looked at twice, and the fourth part of the way together is the last of the pass."""
    sampler = ByPoint(SPACE, 0)
    axes = [list(sampler.cube.ranges).index(name) for name in NAMES]
    top = np.array([0.4, 0.55, 0.7, 0.35])
    points = [sampler.anchors[0]]
    values = [-float(((points[0][axes] - top) ** 2).sum())]
    marks: list[Any] = [None]
    for number in range(2 * len(NAMES) + len(SHARES)):
        told = record([point.tolist() for point in points], values, marks, [sampler.key(each) for each in points])
        point, mark = sampler.propose(told, np.random.default_rng(number))
        points.append(sampler.cube.settled(point))
        values.append(-float(((points[-1][axes] - top) ** 2).sum()))
        marks.append(mark)
    assert marks[1:] == ["alone"] * 8 + ["together"] * 4
    assert points[9][axes] == pytest.approx(top)


def test_the_surrogate_ranks_unseen_candidates_and_ignores_the_size_of_values() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([16, 32, 64])
    widths = np.stack([rng.integers(1, size + 1, 90) for size in sizes], 1)
    damage = (np.array([0.3, 0.1, 0.2]) * sizes / widths).sum(1)
    x = features([f"0:{','.join(map(str, row))}" for row in widths.tolist()], sizes, (0, 1))
    fitted, cubed = Surrogate(x[:60], -damage[:60]), Surrogate(x[:60], -(damage[:60] ** 3))
    mean, spread = fitted(x[60:])
    assert np.corrcoef(np.argsort(np.argsort(mean)), np.argsort(np.argsort(-damage[60:])))[0, 1] > 0.9
    assert cubed(x[60:])[0] == pytest.approx(mean)
    assert fitted(x[:60])[1].mean() < spread.mean()


def test_the_surrogate_keeps_the_best_and_the_latest() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((MOST + 100, 3))
    values = x.sum(1)
    values[0] = 10.0
    fitted = Surrogate(x, values)
    kept = {tuple(row) for row in np.round(fitted._x * fitted._spread + fitted._mean, 9).tolist()}
    assert {tuple(row) for row in np.round(x[[0, *range(250, 400)]], 9).tolist()} <= kept
    assert len(kept) <= MOST
