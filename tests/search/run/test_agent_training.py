"""Agents trained on a config's networks: where rewards come from, and how a search begins with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from espalier.cli import app
from espalier.errors import ConfigError
from espalier.search.config.loading import parse_config
from espalier.search.evaluation.candidate_networks import CandidateNetworks, EvaluationSpec
from espalier.search.evaluation.proxies import PROXIES
from espalier.search.progress.reporter import Silent
from espalier.search.run.agent_training import Learned, rewards, task_of
from espalier.search.run.search_run import default_storage, run
from espalier.search.samplers.agents import agent_sampler, axes_of, zero_shot
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.named_spaces import SPACES
from espalier.search.spaces.space import Space
from espalier.search.tasks.classification.data import DATASETS, InMemoryImages, RawData
from tests.search.conftest import OnCall


def smooth(candidate: Candidate) -> float:
    return -float((1.0 / np.array(candidate.widths)).sum())


def test_rewards_are_of_what_is_carried_out_and_cost_one_evaluation(space: Space) -> None:
    scored: list[Candidate] = []

    def score(candidate: Candidate) -> float:
        scored.append(candidate)
        return smooth(candidate)

    evaluate = rewards(space, score)
    vector, reward = evaluate(torch.zeros(len(space.distributions())))
    again, same = evaluate(vector)
    assert reward == same and len(scored) == 1
    assert torch.equal(vector, again)
    assert space.budget.fits(space.graph, np.array(scored[0].widths))


def test_a_surrogate_takes_over_and_ranks_as_the_scores_do(space: Space) -> None:
    calls: list[Candidate] = []
    rng = np.random.default_rng(0)
    names = space.distributions()

    def score(candidate: Candidate) -> float:
        calls.append(candidate)
        return smooth(candidate)

    def candidate() -> Candidate:
        draws = {name: rng.uniform(found.low, found.high) for name, found in names.items()}  # type: ignore[attr-defined]
        return space.decode(draws | {"rung": int(draws["rung"] + 0.5)})

    learned = Learned(space, score, 60)
    while len(calls) < 60:
        learned(candidate())
    fresh = [candidate() for _ in range(40)]
    predicted, true = [learned(each) for each in fresh], [smooth(each) for each in fresh]
    assert len(calls) == 60
    assert np.corrcoef(predicted, true)[0, 1] > 0.7
    recorded = Learned(space, score, 0, {each.key: smooth(each) for each in calls})
    assert [recorded(each) for each in fresh] == predicted and len(calls) == 60


class Untouchable(InMemoryImages):
    """A test split that nobody may look at."""

    def fetch(self, indices: Any, crops: Any = None) -> Any:
        raise AssertionError("the test split was read")

    def take(self, indices: Any) -> Any:
        raise AssertionError("the test split was read")


def blind_digits(root: str | None) -> RawData:
    """A data set, as a config names one."""
    raw = DATASETS["digits"](root=root)
    assert isinstance(raw.test, InMemoryImages)
    return replace(raw, test=Untouchable(raw.test.images, raw.test.labels))


def test_rewards_never_come_from_the_test_split(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["data"]["name"] = f"{__name__}:blind_digits"
    task = task_of("tiny", parse_config(tiny, "tiny"), tmp_path, Silent())
    vector, reward = task.evaluate(torch.full((len(task.problem.axes),), 0.3))
    assert reward < 0 and vector.abs().max() <= 1


def test_every_space_says_what_its_numbers_move(space: Space) -> None:
    for kind in SPACES.values():
        made = kind(
            space.graph, space.energies, normalization="searched", budget=space.budget, floor=space.floor, width=1.0
        )
        axes = axes_of(made)
        assert {node for axis in axes.values() for node in axis.nodes} == set(made.free.tolist())
        assert made.distributions().keys() - axes.keys() <= {"rung", "normalization", "evenness"}
        study = optuna.create_study(sampler=agent_sampler("agent", made, 0))
        for _ in range(2):
            trial = study.ask()
            made.decode(made.suggest(trial))
            study.tell(trial, 1.0)


def test_an_agent_is_trained_and_a_search_begins_with_its_proposal(tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    out = tmp_path / "agent"
    arguments = ["agents", "train", str(tmp_path / "tiny.yaml"), "--keep", "0.5", "--keep", "0.3"]
    made = CliRunner().invoke(
        app, [*arguments, "--episodes", "16", "--out", str(out), "--set", "search.proxy=as_cut"]
    )
    assert made.exit_code == 0, made.output
    file = out / "agent.safetensors"
    assert file.is_file() and (out / "log" / "agent.csv").is_file()
    tiny["search"] |= {"sampler": "agent", "agent": {"pretrained": str(file)}, "trials": 8}
    config = parse_config(tiny, "tiny")
    run(config, study="tiny", out=tmp_path / "run")
    study = optuna.load_study(study_name="tiny", storage=default_storage(tmp_path / "run"))
    trials = study.trials
    greedy = [trial for trial in trials if "fixed_params" in trial.system_attrs]
    assert len(greedy) == 3  # by raw and normalised energies, and the agent's proposal
    assert trials[2].params != trials[0].params
    assert trials[2].params["evenness"] >= 0
    with pytest.raises(ConfigError, match="cmaes begins with no agent; agent, reinforce can"):
        parse_config(tiny | {"search": tiny["search"] | {"sampler": "cmaes"}}, "tiny")
    made_with = config.fingerprint()
    file.write_bytes(b"another agent")
    assert config.fingerprint() != made_with


def test_zero_shot_is_a_vector_of_the_space(space: Space) -> None:
    params = zero_shot(space, {})
    assert params.keys() == space.distributions().keys()
    assert space.decode(params) == space.decode(space.greedy_params()[0])  # what knows nothing proposes the start


def test_an_agent_is_scored_as_a_search_scores(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"batch_size": 32, "memory_format": "contiguous", "precision": "bf16"}
    specs: list[EvaluationSpec] = []

    class Noting(OnCall):
        def prepare(self, networks: CandidateNetworks, candidate: Candidate) -> nn.Module | float:
            specs.append(networks.spec)
            return super().prepare(networks, candidate)

    config = parse_config(tiny | {"search": tiny["search"] | asked}, "tiny")
    monkeypatch.setitem(PROXIES, config.search.proxy, Noting(config.search.proxy, lambda _: None))
    task = task_of("tiny", config, tmp_path, Silent())
    task.evaluate(torch.full((len(task.problem.axes),), 0.3))
    assert {name: getattr(specs[0].execution, name) for name in asked} == asked
