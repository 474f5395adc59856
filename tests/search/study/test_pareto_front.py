"""Searching between budgets: the front is what nothing else beats, and every budget has its candidates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch

from espalier.errors import ConfigError
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.networks import CifarResNet
from espalier.pruning.trace import trace
from espalier.search.analysis import figure_data as curves
from espalier.search.cluster.in_process import search_in_process
from espalier.search.config.loading import parse_config
from espalier.search.progress.reporter import Silent
from espalier.search.run.search_run import default_storage, run
from espalier.search.samplers import FRONT_SAMPLERS, SAMPLERS
from espalier.search.spaces.candidate import Candidate, Score
from espalier.search.spaces.named_spaces import SPACES
from espalier.search.spaces.space import BUDGET, Space
from espalier.search.study.ledger import Ledger
from espalier.search.study.pareto_front import BAND, front, near
from espalier.search.study.storage import create_study, open_storage
from espalier.search.tasks.classification.measures import MEASURES

KEEPS = (0.8, 0.5, 0.2)


@pytest.fixture(scope="module", params=["multipliers", "widths"])
def space(request: pytest.FixtureRequest) -> Space:
    graph = trace(CifarResNet(depth=8, width=4, in_channels=1), torch.zeros(1, 1, 8, 8))
    budgets = [Budget(macs=int(keep * int(graph.macs(graph.sizes)))) for keep in KEEPS]
    return make(request.param, graph, *budgets)


def make(kind: str, graph: ChannelGraph, *budgets: Budget, rungs: Sequence[int] = (0,)) -> Space:
    draw = np.random.default_rng(0)
    return SPACES[kind](
        graph,
        [draw.lognormal(0, 1, graph.n_channels) for _ in range(3)],
        normalization="mean",
        budget=budgets[-1],
        floor=np.ones_like(graph.sizes),
        width=1.5,
        front=budgets if len(budgets) > 1 else (),
        rungs=rungs,
    )


def under(space: Space, budget: Budget) -> Space:
    (kind,) = (name for name, own in SPACES.items() if type(space) is own)
    return make(kind, space.graph, budget)


def score_of(candidate: Candidate) -> Score:
    """Better the wider, and the more even."""
    return Score(
        {"top1": 50.0, "cross_entropy": 10 / sum(candidate.widths) + float(np.std(candidate.widths)) / 100}, 0.0
    )


def search(study: optuna.Study, space: Space, sampler: str, target: int) -> Ledger:
    made = SAMPLERS[sampler](space, 1)
    with Ledger(study, space, made, measure=MEASURES["cross_entropy"], target=target) as ledger:
        with Silent().meter("search", target, "candidates") as meter:
            search_in_process(ledger, score_of, meter)  # type: ignore[arg-type]
    return ledger


@pytest.fixture(scope="module")
def searched(space: Space, tmp_path_factory: pytest.TempPathFactory) -> tuple[optuna.Study, Ledger]:
    """A front of 40 candidates."""
    storage = open_storage(f"sqlite:///{tmp_path_factory.mktemp('front') / 'study.db'}", create=True)
    study = create_study(storage, "s", {"config": {}}, front=True)
    return study, search(study, space, "nsga2", 40)


def test_greedy_and_uniform_have_a_vector_under_every_budget(space: Space) -> None:
    assert isinstance(space.distributions()[BUDGET], optuna.distributions.FloatDistribution)
    for given in (space.greedy_params(), space.uniform_params()):
        for params, budget in zip(given, reversed(space.budgets), strict=True):
            assert space.decode(params) == under(space, budget).decode(params)


def test_a_vector_fills_the_budget_that_it_names(space: Space) -> None:
    params = space.greedy_params()[0]
    macs = [int(space.graph.macs(space.decode(params | {BUDGET: share}).widths)) for share in np.linspace(0, 1, 9)]
    assert macs == sorted(macs, reverse=True)
    wide, tight = space.budgets[0].limits["macs"], space.budgets[-1].limits["macs"]
    limits = [wide * (tight / wide) ** share for share in np.linspace(0, 1, 9)]
    assert all(cost <= limit + 1 for cost, limit in zip(macs, limits, strict=True))
    assert macs[0] > 0.8 * limits[0]


def test_the_front_is_what_nothing_beats(space: Space, searched: tuple[optuna.Study, Ledger]) -> None:
    study, ledger = searched
    points = front(study, space)
    tried = {(int(space.graph.macs(record.candidate.widths)), record.value) for record in ledger.records()}
    for point in points:
        better = [t for t in tried if t[0] <= point.macs and t[1] >= point.value and t != (point.macs, point.value)]
        assert point.beaten == bool(better)
    unbeaten = [point for point in points if not point.beaten]
    assert [point.value for point in unbeaten] == sorted({point.value for point in unbeaten})
    assert sum(point.greedy for point in points) == len({space.decode(params) for params in space.greedy_params()})
    assert unbeaten[-1].macs > 1.5 * unbeaten[0].macs


def test_what_was_found_nearby_is_tried_under_a_budget(space: Space, searched: tuple[optuna.Study, Ledger]) -> None:
    _, ledger = searched
    records = {record.number: record for record in ledger.records()}
    greedy = dict(zip(reversed(space.budgets), map(space.decode, space.greedy_params()), strict=True))
    for budget in space.budgets:
        found = near(list(records.values()), under(space, budget))
        assert all(budget.fits(space.graph, record.candidate.widths) for record in found)
        assert greedy[budget] in {record.candidate for record in found}
        assert budget.macs is not None
        own = [int(space.graph.macs(records[record.number].candidate.widths)) for record in found]
        assert all(budget.macs / BAND <= macs <= budget.macs * BAND for macs in own)
    assert 0 < len(found) < len(records)


@pytest.mark.parametrize("space", ["multipliers"], indirect=True)
@pytest.mark.parametrize("sampler", FRONT_SAMPLERS)
def test_a_killed_front_goes_on_with_the_same_proposals(sampler: str, space: Space, tmp_path: Path) -> None:
    found = []
    for name, targets in (("whole", (12,)), ("halves", (5, 12))):
        storage = open_storage(f"sqlite:///{tmp_path / name}.db", create=True)
        study = create_study(storage, "s", {"config": {}}, front=True)
        for target in targets:
            ledger = search(study, space, sampler, target)
        found.append([record.candidate for record in ledger.records()])
    assert found[0] == found[1]


def test_a_search_between_budgets(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["budget"] = {"keep": [0.8, 0.4], "front": True}
    tiny["search"]["sampler"] = "nsga2"
    result = run(parse_config(tiny, "mine"), study="s", out=tmp_path)
    assert [other.budget["macs"] for other in (*result.others, result)] == [
        int(keep * result.dense.macs) for keep in (0.8, 0.4)
    ]
    points = curves.front(tmp_path)
    assert tuple(points) == result.front
    assert any(point.greedy for point in points) and not all(point.beaten for point in points)
    storage = open_storage(default_storage(tmp_path), create=False)
    study = optuna.load_study(study_name="s", storage=storage)
    assert len(study.directions) == 2
    complete = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    assert result.trials == len(complete) == tiny["search"]["trials"]


def test_what_a_front_needs(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["budget"] = {"keep": 0.4, "front": True}
    with pytest.raises(ConfigError, match="a front lies between several fractions to keep"):
        parse_config(tiny, "mine")
    tiny["budget"] = {"keep": [0.8, 0.4], "front": True}
    tiny["search"]["sampler"] = "auto"
    with pytest.raises(ConfigError, match="auto searches under one budget; a front takes nsga2, nsga3"):
        parse_config(tiny, "mine")
    with pytest.raises(ConfigError, match=r"holds no result\.json of a search with budget.front"):
        curves.front(tmp_path)
