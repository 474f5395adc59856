"""How methods choose: within the budget, by their criterion, and FastNAS by the least worst damage."""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy
import torch
import yaml
from optuna.storages import RDBStorage
from torch import nn

from espalier.agents.actor_critics.actor_critic import GraphActorCritic
from espalier.agents.graph.encoders import GraphEncoder
from espalier.agents.training.transfer import load_knowledge, save_knowledge
from espalier.pruning.graph.allocation import greedy
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.importance.criteria import CRITERIA
from espalier.pruning.importance.normalizations import NORMALIZATIONS
from espalier.search.config.loading import parse_config
from espalier.search.evaluation.candidate_networks import CandidateNetworks, EvaluationSpec
from espalier.search.evaluation.proxies import PROXIES
from espalier.search.methods import ENERGY, METHODS, Choice, Material, choose, fastnas, method
from espalier.search.samplers import SAMPLERS
from espalier.search.samplers.agents import agent_problem, zero_shot
from espalier.search.spaces.candidate import Candidate, Score
from espalier.search.spaces.named_spaces import Multipliers
from espalier.search.study.storage import open_storage
from espalier.search.tasks.classification.measures import MEASURES
from tests.search.conftest import OnCall, images_of

NAME = "half"
BeforeScoring = Callable[[str, Callable[[Candidate], object]], None]


@pytest.fixture
def material(graph: ChannelGraph, spec: EvaluationSpec, tmp_path: Path, tiny_text: str) -> Material:
    """Both rungs of the small network under half of its MACs."""
    draw = np.random.default_rng(3)
    channel_scores = {
        name: [draw.uniform(0.1, 2, graph.n_channels) for _ in range(2)] for name in (ENERGY, "l1", "energy")
    }
    space = Multipliers(
        graph,
        channel_scores[ENERGY],
        normalization="searched",
        budget=int(graph.macs(graph.sizes)) // 2,
        floor=np.ones_like(graph.sizes),
        width=1.5,
    )
    url = f"sqlite:///{tmp_path / 'study.db'}"
    open_storage(url, create=True)
    return Material(
        spec=spec,
        unseen=spec,
        spaces={NAME: space},
        baselines={NAME: space.greedy_candidates()[0]},
        baseline_seconds={NAME: 3.0},
        channel_scores=channel_scores,
        trials=10,
        measure=MEASURES["cross_entropy"],
        proxies=("recalibrated",),
        share=0.25,
        wanted=2,
        storage=url,
        study="s",
        out=tmp_path,
        configs={NAME: parse_config(yaml.safe_load(tiny_text), "tiny").model_dump(mode="json")},
        attributes={"fingerprint": {}},
    )


@pytest.mark.parametrize(
    "name", ["greedy", "uniform", "random_policy", "fastnas", "l1_mean", "energy_raw", "random", "auto"]
)
def test_a_choice_fills_the_budget(name: str, material: Material) -> None:
    space = material.spaces[NAME]
    found = choose(material, (name, NAME, 1))
    assert isinstance(found, Choice)
    widths = np.array(found.candidate.widths)
    assert space.budget.fits(space.graph, widths)
    for group in np.flatnonzero(widths < space.graph.sizes):
        wider = widths.copy()
        wider[group] += 1
        assert not space.budget.fits(space.graph, wider)
    assert found.score.images == 48 and found.seconds > 0
    assert Choice.from_json(found.to_json()) == found
    if METHODS[name].searches:
        assert found.evaluations == len(found.history) == material.trials
    else:
        assert found.history == () and found.importance == {}


def test_an_interrupted_search_leaves_no_transaction_open(material: Material) -> None:
    commits = itertools.count()

    def interrupt(*_: Any) -> None:
        if next(commits) == 12:  # the study is made, trials are told
            signal.raise_signal(signal.SIGINT)

    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            choose(material, ("random", NAME, 1))
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "commit", interrupt)
    assert next(commits) > 12
    other = RDBStorage(material.storage, {"connect_args": {"timeout": 0}})
    other.set_study_user_attr(other.get_study_id_from_name(f"s/{NAME}/random/seed1"), "other", 2)
    found = choose(material, ("random", NAME, 1))
    assert isinstance(found, Choice) and found.evaluations == material.trials


def test_a_methods_failure_of_any_kind_is_its_own(material: Material, before_scoring: BeforeScoring) -> None:
    def full(_: Candidate) -> None:
        raise torch.OutOfMemoryError("no memory")

    before_scoring(material.spec.proxy, full)
    assert str(choose(material, ("uniform", NAME, 1))).startswith("OutOfMemoryError: no memory")

    def disk(_: Candidate) -> None:
        raise OSError("the disk is full")

    before_scoring(material.spec.proxy, disk)
    with pytest.raises(OSError, match="the disk is full"):
        choose(material, ("uniform", NAME, 1))


def test_the_best_are_judged_again_on_examples_that_the_search_has_not_seen(material: Material) -> None:
    own = images_of(material.spec)
    fewer = replace(own, images=own.images[:16], labels=own.labels[:16], teacher=own.teacher[:16])
    unseen = replace(material.unseen, scoring=fewer)  # so that it shows
    choose(replace(material, unseen=unseen), ("random", NAME, 1))
    study = optuna.load_study(study_name=f"s/{NAME}/random/seed1", storage=material.storage)
    judged = [value for key, value in study.user_attrs.items() if ":promoted:" in key]
    assert judged and {score["images"] for score in judged} == {16}


def test_every_sampler_and_criterion_is_a_method() -> None:
    assert set(SAMPLERS) <= set(METHODS)
    assert {f"{name}_{how}" for name in CRITERIA if name != "random" for how in NORMALIZATIONS} <= set(METHODS)
    assert {"energy_raw", "energy_mean", "l1_mean", "bn_scale_max", "fpgm_mean", "taylor_mean"} <= set(METHODS)
    assert not any(name.startswith("random_") and name != "random_policy" for name in METHODS)


def test_a_ranking_is_the_criterions(material: Material) -> None:
    """Raw scores of the rung that scores better, and its own channels inside the groups."""
    space = material.spaces[NAME]
    found = METHODS["l1_raw"].choose(material, NAME, 0)
    expected = [greedy(space.graph, worth, space.budget, space.floor) for worth in material.scores_by("l1")]
    assert found.candidate.widths == tuple(expected[found.candidate.rung].tolist())
    assert found.evaluations == 2 and found.criterion == "l1"
    ranks = material.ranked_by("l1").ranks
    assert all(
        np.array_equal(r, space.graph.ranks(w)) for r, w in zip(ranks, material.scores_by("l1"), strict=True)
    )
    assert material.ranked_by(ENERGY) is material.spec


def test_greedy_is_where_searches_begin(material: Material) -> None:
    space = material.spaces[NAME]
    found = METHODS["greedy"].choose(material, NAME, 0)
    starts = {space.decode(params) for params in space.greedy_params()}
    assert found.candidate == material.baselines[NAME] and found.candidate in starts
    searched = METHODS["random"].choose(material, NAME, 0)
    assert max(searched.history) >= found.score.value(MEASURES["cross_entropy"])


def test_seeds_change_what_is_drawn_and_nothing_else(material: Material) -> None:
    policies = {METHODS["random_policy"].choose(material, NAME, seed).candidate for seed in range(6)}
    assert len(policies) > 1
    again = METHODS["random_policy"].choose(material, NAME, 2)
    assert again.candidate == METHODS["random_policy"].choose(material, NAME, 2).candidate
    assert [name for name in METHODS if METHODS[name].seeded and not METHODS[name].searches] == ["random_policy"]


def test_a_search_is_a_study_that_goes_on(
    material: Material, monkeypatch: pytest.MonkeyPatch, before_scoring: BeforeScoring
) -> None:
    """Interrupted in the middle, it ends with the trials that it would have had."""
    whole = METHODS["auto"].choose(material, NAME, 5)
    calls = itertools.count()

    def dying(_: Candidate) -> None:
        if next(calls) == 6:
            raise KeyboardInterrupt

    # Another seed's study, with the same seed: a copy under another name.
    elsewhere = Material(**{**material.__dict__, "study": "t"})
    before_scoring(material.spec.proxy, dying)
    with pytest.raises(KeyboardInterrupt):
        METHODS["auto"].choose(elsewhere, NAME, 5)
    monkeypatch.undo()
    resumed = METHODS["auto"].choose(elsewhere, NAME, 5)
    assert resumed.history == whole.history and resumed.candidate == whole.candidate
    names = {s.study_name for s in optuna.get_all_study_summaries(open_storage(material.storage, create=False))}
    assert names == {"s/half/auto/seed5", "t/half/auto/seed5"}


class Damages:
    """Stands for an evaluator: every group loses by itself what its missing channels are worth."""

    def __init__(self, spec: EvaluationSpec, device: str = "cpu") -> None:
        draw = np.random.default_rng(11)
        self.sizes = spec.graph.sizes
        self.worth = [np.sort(draw.uniform(0, 1, size))[::-1] for size in self.sizes]

    def damage(self, widths: Any) -> list[float]:
        return [float(worth[width:].sum()) for worth, width in zip(self.worth, widths, strict=True)]

    def __call__(self, candidate: Candidate) -> Score:
        return Score({"top1": 50.0, "cross_entropy": sum(self.damage(candidate.widths))}, 0.01)


def test_fastnas_has_the_least_worst_damage(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all widths that fit, none has a smaller greatest damage of a group."""
    for place in (method, fastnas):
        monkeypatch.setattr(place, "Evaluator", Damages)
    space = material.spaces[NAME]
    generous = Material(**{**material.__dict__, "trials": 1000})
    found = METHODS["fastnas"].choose(generous, NAME, 0)
    known = Damages(material.spec)
    every = np.array(list(itertools.product(*(range(1, size + 1) for size in space.graph.sizes.tolist()))))
    feasible = every[space.budget.fits(space.graph, every)]
    least = min(max(known.damage(widths)) for widths in feasible)
    assert max(known.damage(found.candidate.widths)) == pytest.approx(least)
    assert found.evaluations == 2 * (1 + sum(space.graph.sizes.tolist()) - len(space.graph.sizes)) + 2


def test_what_fails_says_why(material: Material, before_scoring: BeforeScoring) -> None:
    def broken(_: Candidate) -> None:
        raise RuntimeError("no")

    before_scoring(material.spec.proxy, broken)
    longer = Material(**{**material.__dict__, "trials": 40})
    assert choose(longer, ("random", NAME, 0)) == "20 trials in a row failed, the last one with: RuntimeError: no"


def test_a_search_whose_greedy_fails_once_chooses_among_the_others(
    material: Material, before_scoring: BeforeScoring
) -> None:
    calls = itertools.count()

    def failing(_: Candidate) -> None:
        if next(calls) == 0:
            raise RuntimeError("out of memory")

    before_scoring(material.spec.proxy, failing)
    found = choose(material, ("random", NAME, 0))
    assert isinstance(found, Choice) and found.evaluations == 10
    few = Material(**{**material.__dict__, "trials": 2, "study": "few"})  # than there are vectors of greedy
    assert isinstance(choose(few, ("random", NAME, 0)), Choice)


def test_what_cannot_be_scored_is_not_chosen(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    name, calls = material.spec.proxy, itertools.count()

    class NanFirst(OnCall):
        def prepare(self, networks: CandidateNetworks, candidate: Candidate) -> nn.Module | float:
            return math.nan if next(calls) == 0 else super().prepare(networks, candidate)

    monkeypatch.setitem(PROXIES, name, NanFirst(name, lambda _: None))
    found = METHODS["uniform"].choose(material, NAME, 0)
    assert found.evaluations == 2 and not math.isnan(found.score.measures["cross_entropy"])


def test_a_criterion_that_does_not_apply_fails_its_own_method(material: Material) -> None:
    partly = Material(
        **{**material.__dict__, "channel_scores": {**material.channel_scores, "l1": "no norm behind fc1"}}
    )
    assert choose(partly, ("l1_mean", NAME, 0)) == "no norm behind fc1"
    assert isinstance(choose(partly, ("greedy", NAME, 0)), Choice)


def test_a_trained_agent_begins_the_search_of_the_agent_alone(material: Material, tmp_path: Path) -> None:
    space = material.spaces[NAME]
    network = GraphActorCritic([agent_problem(space)], GraphEncoder())
    save_knowledge(tmp_path / "agent.safetensors", network)
    knowledge = load_knowledge(tmp_path / "agent.safetensors")
    search = {"sampler": "agent", "agent": {"pretrained": str(tmp_path / "agent.safetensors")}}
    config = material.configs[NAME] | {"search": material.configs[NAME]["search"] | search}
    trained = Material(**{**material.__dict__, "knowledge": knowledge, "configs": {NAME: config}})
    for name in ("agent", "random"):
        assert isinstance(choose(trained, (name, NAME, 0)), Choice)
        study = optuna.load_study(study_name=f"s/{NAME}/{name}/seed0", storage=material.storage)
        pretrained = study.user_attrs["espalier:config"]["search"]["agent"]["pretrained"]
        first = {trial.user_attrs["espalier:candidate"] for trial in study.trials[: len(space.greedy_params()) + 1]}
        proposed = space.decode(zero_shot(space, knowledge)).key
        assert (pretrained is not None, proposed in first) == (
            (name == "agent"),
            (name == "agent") or proposed in {candidate.key for candidate in space.greedy_candidates()},
        )
