"""The strength under a budget is that of the baseline which fine-tunes best, whatever proxies say of it."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from torch import nn

from espalier.errors import StudyMismatch
from espalier.pruning.trace import trace
from espalier.search.config.loading import Config, parse_config, with_section
from espalier.search.run.search_run import default_storage, resume, run
from espalier.search.run.strength import ranked_rungs
from espalier.search.samplers import SAMPLERS
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.metric import Metric
from espalier.search.spaces.named_spaces import Multipliers
from espalier.search.spaces.space import RUNG, Space
from espalier.search.study.ledger import record_of
from espalier.search.tasks.classification.measures import MEASURES
from espalier.search.tasks.task import Part, Reading, Stage
from tests.search.watched import Stops, watched


class Tuner(Stops):
    """A fine-tuning that trains nothing: one rung comes out best under wide budgets, and one under tight ones.

    It is the reporter of a run, too, which tells it why something is fine-tuned. A rung is known by the first bias
    of the classifier, in which its training leaves its number.
    """

    def __init__(self, *, best: Sequence[int], wide: float = 0.0) -> None:
        super().__init__()
        self.best, self.wide = best, wide
        self.asked: list[tuple[int, list[torch.Size], int]] = []
        """Rung, shapes and seed of what is fine-tuned to choose the strength."""

    def config(self, content: dict[str, Any]) -> Config:
        self.strengths = content["regularizer"]["strengths"]
        return parse_config(watched(content, self.train, self.judge), "tiny")

    def train(self, go: Any, network: nn.Module, stage: Stage, *, seed: int, **how: Any) -> None:
        if stage.name == "finetune":
            if self.titles[-1] == "fine-tuning to choose the strength":
                self.asked.append((rung_of(network), [tensor.shape for tensor in network.parameters()], seed))
            return
        go(network, stage, seed=seed, **how)
        if stage.name == "dense":
            self.dense_macs = macs_of(network)
        else:
            with torch.no_grad():
                classifier_of(network).bias[0] = self.strengths.index(how["regularization"].strength) / 1000

    def judge(self, go: Any, network: nn.Module, part: Part) -> Reading:
        found: Reading = go(network, part)
        if part != "judging":
            return found
        kept = macs_of(network) / self.dense_macs
        right = rung_of(network) == self.best[int(kept < self.wide)]
        return replace(found, value=80.0 * right - kept)


def macs_of(network: nn.Module) -> int:
    graph = trace(copy.deepcopy(network), torch.zeros(1, 1, 8, 8))
    return int(graph.macs(graph.sizes))


def rung_of(network: nn.Module) -> int:
    return round(1000 * float(classifier_of(network).bias[0].detach()))


def classifier_of(network: nn.Module) -> nn.Linear:
    return next(layer for layer in network.modules() if isinstance(layer, nn.Linear))


@pytest.mark.parametrize("best", [0, 1])
def test_a_search_takes_the_rung_whose_baseline_fine_tunes_best(
    best: int, tiny: dict[str, Any], tmp_path: Path
) -> None:
    tuner = Tuner(best=[best, best])
    tiny["finetune"]["epochs"] = 0.1
    config = tuner.config(tiny)
    result = run(config, study="s", out=tmp_path, reporter=tuner)
    study = optuna.load_study(study_name="s", storage=default_storage(tmp_path))
    assert {record_of(trial).candidate.rung for trial in study.trials} == {best}
    assert all(RUNG not in trial.params for trial in study.trials)
    assert {result.greedy.strength, result.searched.strength} == {(0.001, 0.01)[best]}
    assert [rung for rung, _, _ in tuner.asked].count(0) == 3  # greedy, raw and normalised, and uniform
    assert len(tuner.asked) == 6 and {seed for _, _, seed in tuner.asked} == {1000}
    assert all(tuner.asked.count(one) == 1 for one in tuner.asked)
    (said,) = (line for line in tuner.lines if line.startswith("strength"))
    assert said.startswith(f"strength {(0.001, 0.01)[best]:g} for ")
    assert said.endswith(f" at {(0.001, 0.01)[1 - best]:g}")
    result = run(config, study="s", out=tmp_path, reporter=tuner)
    assert len(tuner.asked) == 6, "a study that goes on has its strength"


def test_of_equal_strengths_the_weaker_is_taken_and_named(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Uniform pruning of the stronger rung is as good as greedy of the weaker, whatever the order of a record."""
    record = {Candidate(rung, (number, 1)).key: 80.0 for rung in (1, 0) for number in (1, 2)}
    assert list(ranked_rungs(record, MEASURES["top1"])) == [0, 1]

    def tied(go: Any, network: nn.Module, part: Part) -> Reading:
        found: Reading = go(network, part)
        return replace(found, value=80.0)

    told = Stops()
    tiny["finetune"]["epochs"] = 0.1
    result = run(parse_config(watched(tiny, evaluate=tied), "tiny"), study="s", out=tmp_path, reporter=told)
    (said,) = (line for line in told.lines if line.startswith("strength"))
    assert result.greedy.strength == 0.001
    assert said.startswith("strength 0.001 for ")
    assert said.endswith(" has a held-out top-1 80.00 % once fine-tuned, 80.00 at 0.01")


def test_a_budget_that_is_added_is_asked_about_alone(tiny: dict[str, Any], tmp_path: Path) -> None:
    tuner = Tuner(best=[0, 1], wide=0.5)
    tiny["finetune"]["epochs"] = 0.1
    run(tuner.config(tiny), study="s", out=tmp_path, reporter=tuner)
    first = len(tuner.asked)
    tiny["budget"] = {"keep": [0.7, 0.4]}
    result = run(tuner.config(tiny), study="s", out=tmp_path, reporter=tuner)
    assert first == 6 and len(tuner.asked) == 12
    assert result.searched.strength == 0.01 and result.others[0].searched.strength == 0.001


def test_a_driver_that_dies_among_the_baselines_goes_on_with_those_that_are_left(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    trained: list[int] = []

    def counted(go: Any, network: nn.Module, stage: Stage, **how: Any) -> None:
        tunes = stage.name == "finetune"
        if len(trained) == 4 and tunes and not died:
            died.append(True)
            raise KeyboardInterrupt
        trained.extend([1] * tunes)
        go(network, stage, **how)

    died: list[bool] = []
    tiny["finetune"] |= {"epochs": 0.1, "seeds": 1}
    config = parse_config(watched(tiny, counted), "tiny")
    with pytest.raises(KeyboardInterrupt):
        run(config, study="s", out=tmp_path)
    study = optuna.load_study(study_name="s", storage=default_storage(tmp_path))
    assert not study.trials and not any("strength:" in name for name in study.user_attrs)
    result = run(config, study="s", out=tmp_path)
    study = optuna.load_study(study_name="s", storage=default_storage(tmp_path))
    (tops,) = (made for name, made in study.user_attrs.items() if "strength:" in name)
    rungs = {Candidate.from_key(key).rung for key in tops}
    assert len(tops) == 6 and rungs == {0, 1} and result.trials == 6
    finalists = {path.name for path in (tmp_path / "finetuned").glob("*.safetensors")}
    assert len(trained) == len(finalists), "nothing was fine-tuned twice"


def test_a_study_that_is_older_than_the_key_searches_strengths_as_it_did(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    tiny["finetune"]["epochs"] = 0.1
    tiny["search"]["strength"] = "searched"
    run(parse_config(tiny, "tiny"), study="s", out=tmp_path)
    study = optuna.load_study(study_name="s", storage=default_storage(tmp_path))
    config, fingerprint = (study.user_attrs[f"espalier:{name}"] for name in ("config", "fingerprint"))
    del config["search"]["strength"], fingerprint["search.strength"]
    study.set_user_attr("espalier:config", config)
    study.set_user_attr("espalier:fingerprint", fingerprint)
    url = default_storage(tmp_path)
    result = resume(url, "s", change=lambda config: with_section(config, "search", {"trials": 8}))
    study = optuna.load_study(study_name="s", storage=url)
    assert result.trials == 8 and all(RUNG in trial.params for trial in study.trials)
    tiny["search"]["strength"] = "finetuned"
    with pytest.raises(StudyMismatch, match=r"search\.strength was 'searched', now 'finetuned'"):
        run(parse_config(tiny, "tiny"), study="s", out=tmp_path)


def test_every_budget_has_its_own_strength(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["budget"] = {"keep": [0.7, 0.4]}
    tiny["finetune"]["epochs"] = 0.1
    tuner = Tuner(best=[0, 1], wide=0.5)
    result = run(tuner.config(tiny), study="s", out=tmp_path, reporter=tuner)
    assert result.searched.strength == result.greedy.strength == 0.01
    (wider,) = result.others
    assert wider.searched.strength == wider.greedy.strength == 0.001


def test_a_front_leaves_open_the_strengths_of_its_budgets(tiny: dict[str, Any], tmp_path: Path) -> None:
    tuner = Tuner(best=[0, 2], wide=0.5)
    tiny["regularizer"]["strengths"] = [0.001, 0.003, 0.01]
    tiny["budget"] = {"keep": [0.7, 0.4], "front": True}
    tiny["search"] |= {"sampler": "nsga2", "trials": 24}
    tiny["finetune"]["epochs"] = 0.1
    result = run(tuner.config(tiny), study="s", out=tmp_path, reporter=tuner)
    study = optuna.load_study(study_name="s", storage=default_storage(tmp_path))
    assert {record_of(trial).candidate.rung for trial in study.trials} == {0, 2}
    assert result.searched.strength == 0.01 and result.others[0].searched.strength == 0.001


@pytest.mark.parametrize("change", [{"search": {"strength": "searched"}}, {"regularizer": {"strengths": [0.01]}}])
def test_nothing_is_fine_tuned_where_strengths_are_searched_or_there_is_one(
    change: dict[str, dict[str, Any]], tiny: dict[str, Any], tmp_path: Path
) -> None:
    tuner = Tuner(best=[0, 0])
    for section, values in change.items():
        tiny[section] |= values
    tiny["finetune"]["epochs"] = 0.1
    run(tuner.config(tiny), study="s", out=tmp_path, reporter=tuner)
    study = optuna.load_study(study_name="s", storage=default_storage(tmp_path))
    several = "search" in change
    assert not tuner.asked
    assert all((RUNG in trial.params) == several for trial in study.trials)
    assert {record_of(trial).candidate.rung for trial in study.trials} == ({0, 1} if several else {0})


@pytest.mark.parametrize("better", [True, False])
def test_what_is_nan_is_worse_than_anything(better: bool) -> None:
    """Wherever networks are put in order: halving, finalists and strengths go by it."""
    metric, best = Metric("score", "score", greater_is_better=better), 90.0 if better else 50.0
    for values in itertools.permutations([math.nan, 50.0, math.nan, 90.0]):
        assert sorted(values, key=metric.order)[-1] == best
        assert max(values, key=metric.order) == best
    judged = {"0:4": math.nan, "1:4": 50.0, "2:4": math.nan, "2:5": 90.0}
    assert next(iter(ranked_rungs(judged, metric))) == (2 if better else 1)


def test_baselines_are_halved_as_finalists_are(tiny: dict[str, Any], tmp_path: Path) -> None:
    """By real fine-tuning: of six baselines three go on, and the record holds these."""
    tiny["finetune"] |= {"epochs": 0.4, "halvings": 1}
    run(parse_config(tiny, "tiny"), study="s", out=tmp_path)
    study = optuna.load_study(study_name="s", storage=default_storage(tmp_path))
    ((_, tops),) = ((name, made) for name, made in study.user_attrs.items() if "strength:macs" in name)
    assert len(tops) == 3 and all(0 < top1 <= 100 for top1 in tops.values())
    best = Candidate.from_key(max(tops, key=lambda key: tops[key]))
    assert {record_of(trial).candidate.rung for trial in study.trials} == {best.rung}


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "gp"])
def test_one_open_rung_is_searched_as_a_ladder_of_that_one_would_be(name: str, space: Space) -> None:
    """To the last number: what is not open does not matter."""
    found = []
    for energies, rungs in ((space.energies, [1]), (space.energies[1:], [0])):
        own = Multipliers(
            space.graph,
            energies,
            normalization="mean",
            budget=space.budget,
            floor=space.floor,
            width=space.width,
            rungs=rungs,
        )
        study = optuna.create_study(direction="maximize", sampler=SAMPLERS[name](own, 3))
        study.enqueue_trial(own.greedy_params()[0])
        widths = []
        for _ in range(24):
            trial = study.ask()
            candidate = own.decode(own.suggest(trial))
            assert candidate.rung == rungs[0]
            study.tell(trial, -float(np.square(np.diff(candidate.widths)).sum()))
            widths.append(candidate.widths)
        found.append(widths)
    assert found[0] == found[1]
