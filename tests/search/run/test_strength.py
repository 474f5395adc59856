"""The strength under a budget is that of the baseline which fine-tunes best, whatever proxies say of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from espalier.errors import StudyMismatch
from espalier.search.config.loading import parse_config, with_section
from espalier.search.progress.reporter import Silent
from espalier.search.run import strength
from espalier.search.run.search_run import default_storage, resume, run
from espalier.search.samplers import SAMPLERS
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.space import RUNG, Space
from espalier.search.spaces.table import Multipliers
from espalier.search.study.ledger import record_of
from espalier.search.tasks.classification import task as classification
from espalier.search.tasks.classification.training_loop import train
from espalier.search.training.finetune import Finetuned


class Tuner:
    """Stands for fine-tuning: one rung comes out best under wide budgets, and one under tight ones."""

    def __init__(self, *, best: Sequence[int], wide: float = 0.0) -> None:
        self.best, self.wide = best, wide
        self.asked: list[tuple[Candidate, int]] = []

    def __call__(
        self, spec: Any, candidates: Sequence[Candidate], seeds: Sequence[int], *_: Any, title: str = ""
    ) -> list[Finetuned]:
        self.asked += [(candidate, seed) for candidate in candidates for seed in seeds]
        graph = spec.evaluation.graph
        kept = {c: graph.macs(c.widths) / graph.macs(graph.sizes) for c in candidates}
        right = {c: c.rung == self.best[int(kept[c] < self.wide)] for c in candidates}
        even = {c: -float(np.std(np.array(c.widths) / graph.sizes)) for c in candidates}
        return [Finetuned(c, seed, Path(), 80.0 * right[c] + even[c], 1.0) for c in candidates for seed in seeds]


@pytest.fixture
def fine_tuned_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Puts something in the place of fine-tuning, where the strength is chosen."""
    return lambda tuner: monkeypatch.setattr(strength, "finetune_all", tuner)


class Lines(Silent):
    """What is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize("best", [0, 1])
def test_a_search_takes_the_rung_whose_baseline_fine_tunes_best(
    best: int, tiny: dict[str, Any], tmp_path: Path, fine_tuned_by: Callable[[Any], None]
) -> None:
    tuner, told = Tuner(best=[best, best]), Lines()
    fine_tuned_by(tuner)
    tiny["finetune"]["epochs"] = 0.1
    config = parse_config(tiny, "tiny")
    result = run(config, study="s", out=tmp_path, reporter=told)
    study = optuna.load_study(study_name="s", storage=default_storage(tmp_path))
    assert {record_of(trial).candidate.rung for trial in study.trials} == {best}
    assert all(RUNG not in trial.params for trial in study.trials)
    assert {result.greedy.strength, result.searched.strength} == {(0.001, 0.01)[best]}
    judged = [candidate for candidate, _ in tuner.asked]
    assert [candidate.rung for candidate in judged].count(0) == 3  # greedy, raw and normalised, and uniform
    assert len(set(judged)) == len(judged) == 6 and {seed for _, seed in tuner.asked} == {1000}
    (said,) = (line for line in told.lines if line.startswith("strength"))
    assert said.startswith(f"strength {(0.001, 0.01)[best]:g} for ")
    assert said.endswith(f" at {(0.001, 0.01)[1 - best]:g}")
    result = run(config, study="s", out=tmp_path)
    assert len(tuner.asked) == 6, "a study that goes on has its strength"


def test_of_equal_strengths_the_weaker_is_taken_and_named(
    tiny: dict[str, Any], tmp_path: Path, fine_tuned_by: Callable[[Any], None]
) -> None:
    """Uniform pruning of the stronger rung comes first in the record, and is as good as greedy of the weaker."""

    def tied(
        _: Any, candidates: Sequence[Candidate], seeds: Sequence[int], *_where: Any, **_title: Any
    ) -> list[Finetuned]:
        strongest_first = sorted(candidates, key=lambda candidate: -candidate.rung)
        return [Finetuned(candidate, seeds[0], Path(), 80.0, 1.0) for candidate in strongest_first]

    fine_tuned_by(tied)
    told = Lines()
    tiny["finetune"]["epochs"] = 0.1
    result = run(parse_config(tiny, "tiny"), study="s", out=tmp_path, reporter=told)
    (said,) = (line for line in told.lines if line.startswith("strength"))
    assert result.greedy.strength == 0.001
    assert said.startswith("strength 0.001 for ")
    assert said.endswith(" has a held-out top-1 80.00 % once fine-tuned, 80.00 at 0.01")


def test_a_budget_that_is_added_is_asked_about_alone(
    tiny: dict[str, Any], tmp_path: Path, fine_tuned_by: Callable[[Any], None]
) -> None:
    tuner = Tuner(best=[0, 1], wide=0.5)
    fine_tuned_by(tuner)
    tiny["finetune"]["epochs"] = 0.1
    run(parse_config(tiny, "tiny"), study="s", out=tmp_path)
    first = len(tuner.asked)
    tiny["budget"] = {"keep": [0.7, 0.4]}
    result = run(parse_config(tiny, "tiny"), study="s", out=tmp_path)
    assert first == 6 and len(tuner.asked) == 12
    assert result.searched.strength == 0.01 and result.others[0].searched.strength == 0.001


def test_a_driver_that_dies_among_the_baselines_goes_on_with_those_that_are_left(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []

    def counted(*arguments: Any, **settings: Any) -> None:
        tunes = arguments[4].epochs == 0.1  # the recipe; the ladder's are longer
        if len(trained) == 4 and tunes and not died:
            died.append(True)
            raise KeyboardInterrupt
        trained.extend([1] * tunes)
        train(*arguments, **settings)

    died: list[bool] = []
    monkeypatch.setattr(classification, "train", counted)
    tiny["finetune"] |= {"epochs": 0.1, "seeds": 1}
    config = parse_config(tiny, "tiny")
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


def test_every_budget_has_its_own_strength(
    tiny: dict[str, Any], tmp_path: Path, fine_tuned_by: Callable[[Any], None]
) -> None:
    fine_tuned_by(Tuner(best=[0, 1], wide=0.5))
    tiny["budget"] = {"keep": [0.7, 0.4]}
    tiny["finetune"]["epochs"] = 0.1
    result = run(parse_config(tiny, "tiny"), study="s", out=tmp_path)
    assert result.searched.strength == result.greedy.strength == 0.01
    (wider,) = result.others
    assert wider.searched.strength == wider.greedy.strength == 0.001


def test_a_front_leaves_open_the_strengths_of_its_budgets(
    tiny: dict[str, Any], tmp_path: Path, fine_tuned_by: Callable[[Any], None]
) -> None:
    fine_tuned_by(Tuner(best=[0, 2], wide=0.5))
    tiny["regularizer"]["strengths"] = [0.001, 0.003, 0.01]
    tiny["budget"] = {"keep": [0.7, 0.4], "front": True}
    tiny["search"] |= {"sampler": "nsga2", "trials": 24}
    tiny["finetune"]["epochs"] = 0.1
    result = run(parse_config(tiny, "tiny"), study="s", out=tmp_path)
    study = optuna.load_study(study_name="s", storage=default_storage(tmp_path))
    assert {record_of(trial).candidate.rung for trial in study.trials} == {0, 2}
    assert result.searched.strength == 0.01 and result.others[0].searched.strength == 0.001


@pytest.mark.parametrize("change", [{"search": {"strength": "searched"}}, {"regularizer": {"strengths": [0.01]}}])
def test_nothing_is_fine_tuned_where_strengths_are_searched_or_there_is_one(
    change: dict[str, dict[str, Any]], tiny: dict[str, Any], tmp_path: Path, fine_tuned_by: Callable[[Any], None]
) -> None:
    tuner = Tuner(best=[0, 0])
    fine_tuned_by(tuner)
    for section, values in change.items():
        tiny[section] |= values
    tiny["finetune"]["epochs"] = 0.1
    run(parse_config(tiny, "tiny"), study="s", out=tmp_path)
    study = optuna.load_study(study_name="s", storage=default_storage(tmp_path))
    several = "search" in change
    assert not tuner.asked
    assert all((RUNG in trial.params) == several for trial in study.trials)
    assert {record_of(trial).candidate.rung for trial in study.trials} == ({0, 1} if several else {0})


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
